"""An embed result -> the bytes of an answer, in each format.

JSON holds one entry an image. The binary formats hold the images that could be answered, stacked: every array is
[images, ...], and `index` says which images they are. If no image could be answered there is no array: JSON then.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from encoders.contract.errors import VisiontowerError
from encoders.contract.values import Floats
from service.engine.values import Embedding, EmbedResult, Timing
from service.http.json import to_json
from service.http.problems import problem, problem_type
from service.http.protocol import Answer
from service.http.protocols.native.negotiation import MEDIA_TYPES
from service.http.protocols.native.options import Format

_SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_PLAIN = "".join(chr(code) for code in range(33, 127) if chr(code) != "%")
"""Characters that a header's value holds as they are; all others are percent-encoded as UTF-8."""


def write(result: EmbedResult, *, format: Format, encoding: str = "float") -> Answer:
    """The answer in this format: status 200, or 207 if some images failed."""
    done: dict[int, Embedding] = {}
    failed: dict[int, VisiontowerError] = {}
    for index, item in enumerate(result.items):
        if isinstance(item, VisiontowerError):
            failed[index] = item
        else:
            done[index] = item
    usage = {"images": len(done), "tokens": result.tokens}
    milliseconds = timing_ms(result.timing)
    headers = server_timing(milliseconds)
    status = 207 if failed else 200
    if format == "json" or not done:
        answer = {
            "object": "list",
            "model": result.model,
            "data": _entries(result.items, encoding=encoding),
            "usage": usage,
            "timing_ms": milliseconds,
        }
        return Answer(to_json(answer), MEDIA_TYPES["json"], status, headers)
    stacked = _stack([item.arrays for item in done.values()])
    first = next(iter(done.values()))
    about = {
        "model": result.model,
        "index": ",".join(str(index) for index in done),
        "grid": f"{first.grid.rows},{first.grid.cols}",
        "prefix_tokens": str(first.prefix_tokens),
    }
    if format == "safetensors":
        errors = [{"index": index, "error": problem(error)} for index, error in failed.items()]
        metadata = {**about, "errors": to_json(errors).decode(), "usage": to_json(usage).decode()}
        return Answer(safetensors(stacked, metadata), MEDIA_TYPES[format], status, headers)
    (name, array), *_ = stacked.items()
    headers |= {f"x-{key.replace('_', '-')}": quote(value, safe=_PLAIN) for key, value in about.items()}
    headers |= {
        "x-tensor-name": name,
        "x-tensor-shape": ",".join(str(side) for side in array.shape),
        "x-tensor-dtype": array.dtype.name,
    }
    if failed:
        short = [{"index": index, "type": problem_type(error).uri} for index, error in failed.items()]
        headers["x-errors"] = to_json(short).decode()
    return Answer(npy(array) if format == "npy" else array.tobytes(), MEDIA_TYPES[format], status, headers)


def timing_ms(timing: Timing) -> dict[str, float]:
    """Milliseconds by stage; `fetch` only if an image was fetched."""
    milliseconds = {"fetch": round(1000 * timing.fetch, 3)} if timing.fetch else {}
    for stage in ("decode", "preprocess", "queue", "forward", "total"):
        milliseconds[stage] = round(1000 * getattr(timing, stage), 3)
    return milliseconds


def server_timing(milliseconds: Mapping[str, float]) -> dict[str, str]:
    """The header of that name."""
    parts = []
    for stage, value in milliseconds.items():
        parts.append(f"{stage};dur={value:g}")
    return {"Server-Timing": ", ".join(parts)}


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


def _entries(items: Sequence[Embedding | VisiontowerError], *, encoding: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        if isinstance(item, VisiontowerError):
            entries.append({"index": index, "error": problem(item)})
            continue
        entry: dict[str, Any] = {"index": index, "grid": list(item.grid), "prefix_tokens": item.prefix_tokens}
        for name, array in item.arrays.items():
            entry[name] = _json_array(array, encoding=encoding)
        entries.append(entry)
    return entries


def _json_array(array: Floats, *, encoding: str) -> dict[str, object]:
    dtype = array.dtype.name
    if encoding == "base64":
        values: object = base64.b64encode(_raw(array)).decode("ascii")
    else:
        values = array.astype(np.float32) if dtype == "bfloat16" else array
    return {"shape": array.shape, "dtype": dtype, "data": values}


def _stack(items: Sequence[dict[str, Floats]]) -> dict[str, Floats]:
    """Arrays of one request are of equal shape: it has one model, size and layer. A single image's are not copied."""
    if len(items) == 1:
        return {name: array[None] for name, array in items[0].items()}
    return {name: np.stack([arrays[name] for arrays in items]) for name in items[0]}
