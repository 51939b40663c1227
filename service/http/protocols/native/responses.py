"""Finished tensors -> the bytes of an answer, in each wire format. Knows formats; no queue, no encoder.

JSON holds one entry an image. The binary formats hold the images that could be answered, stacked: every tensor is
[images, ...], and `index` says which images they are. If none could be answered there is no tensor: JSON then.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import orjson

from encoders.contract.errors import VisiontowerError
from encoders.contract.values import Floats
from service.engine.postprocess import Tensors
from service.http.problems import problem, problem_type
from service.http.protocols.native.negotiation import MEDIA_TYPES
from service.http.protocols.native.options import Format

Item: TypeAlias = Tensors | VisiontowerError

_SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Answered:
    """A request's answer before it has a wire form. timing_ms: milliseconds by stage."""

    model: str
    items: Sequence[Item]
    timing_ms: Mapping[str, float]

    @cached_property
    def done(self) -> dict[int, Tensors]:
        """The images that were answered, by index."""
        return {index: item for index, item in enumerate(self.items) if isinstance(item, Tensors)}

    @cached_property
    def failed(self) -> dict[int, VisiontowerError]:
        """The others."""
        return {index: item for index, item in enumerate(self.items) if isinstance(item, VisiontowerError)}

    @cached_property
    def usage(self) -> dict[str, int]:
        """Images and tokens answered."""
        return {"images": len(self.done), "tokens": sum(item.token_count for item in self.done.values())}


@dataclass(frozen=True)
class Rendered:
    """An answer as bytes."""

    content: bytes
    media_type: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def to_json(value: object) -> bytes:
    """JSON; float arrays as nested lists, each number in the fewest digits that give it back."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def render(answered: Answered, *, format: Format, encoding: str = "float") -> Rendered:
    """The answer in this format: status 200, or 207 if some images failed."""
    status = 207 if answered.failed else 200
    timing = ", ".join(f"{name};dur={value:g}" for name, value in answered.timing_ms.items())
    headers = {"Server-Timing": timing}
    if format == "json" or not answered.done:
        return Rendered(_json(answered, encoding=encoding), MEDIA_TYPES["json"], status, headers)
    stacked = _stack(list(answered.done.values()))
    first = next(iter(answered.done.values()))
    about = {
        "model": answered.model,
        "index": ",".join(str(index) for index in answered.done),
        "grid": f"{first.grid.rows},{first.grid.cols}",
        "prefix_tokens": str(first.prefix_tokens),
    }
    if format == "safetensors":
        errors = [{"index": index, "error": problem(error)} for index, error in answered.failed.items()]
        metadata = {**about, "errors": to_json(errors).decode(), "usage": to_json(answered.usage).decode()}
        return Rendered(safetensors(stacked, metadata), MEDIA_TYPES[format], status, headers)
    (name, array), *_ = stacked.items()
    headers |= {f"x-{key.replace('_', '-')}": value for key, value in about.items()}
    headers |= {
        "x-tensor-name": name,
        "x-tensor-shape": ",".join(str(side) for side in array.shape),
        "x-tensor-dtype": array.dtype.name,
    }
    if answered.failed:
        short = [{"index": i, "type": problem_type(e).uri} for i, e in answered.failed.items()]
        headers["x-errors"] = to_json(short).decode()
    return Rendered(npy(array) if format == "npy" else array.tobytes(), MEDIA_TYPES[format], status, headers)


def safetensors(tensors: Mapping[str, Floats], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file: u64 header length, JSON header, the tensors' bytes; each is copied once.

    https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": _SAFETENSORS[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # tensors start at a multiple of 8
    return b"".join([len(head).to_bytes(8, "little"), head, *(_raw(array) for array in tensors.values())])


def npy(array: Floats) -> bytes:
    """One array as NumPy's own file format; it has no bfloat16."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    return b"".join([head.getvalue(), _raw(array)])


def _raw(array: Floats) -> memoryview:
    """The bytes of a contiguous array, not copied; by way of uint8, as bfloat16 has no buffer of its own."""
    return array.reshape(-1).view(np.uint8).data


def _json(answered: Answered, *, encoding: str) -> bytes:
    entries: list[dict[str, Any]] = []
    for index, item in enumerate(answered.items):
        if isinstance(item, VisiontowerError):
            entries.append({"index": index, "error": problem(item)})
            continue
        tensors = {name: _json_tensor(array, encoding=encoding) for name, array in item.named.items()}
        entries.append({"index": index, "grid": list(item.grid), "prefix_tokens": item.prefix_tokens, **tensors})
    return to_json(
        {
            "object": "list",
            "model": answered.model,
            "data": entries,
            "usage": answered.usage,
            "timing_ms": answered.timing_ms,
        }
    )


def _json_tensor(array: Floats, *, encoding: str) -> dict[str, object]:
    dtype = array.dtype.name
    if encoding == "base64":
        values: object = base64.b64encode(_raw(array)).decode("ascii")
    else:
        values = array.astype(np.float32) if dtype == "bfloat16" else array
    return {"shape": array.shape, "dtype": dtype, "data": values}


def _stack(items: Sequence[Tensors]) -> dict[str, Floats]:
    """Tensors of one request are of equal shape: it has one model, size and layer. A single one is not copied."""
    named = [item.named for item in items]
    if len(named) == 1:
        return {name: array[None] for name, array in named[0].items()}
    return {name: np.stack([tensors[name] for tensors in named]) for name in named[0]}
