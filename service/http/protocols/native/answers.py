"""The engine's results -> the bytes of the native routes' answers.

Of /embed, JSON holds one entry an image. The binary formats hold the images that could be answered, stacked: every
array is [images, ...], and `index` says which images they are. If no image could be answered there is no array: JSON
then.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson

from encoders.contract.errors import VisiontowerError
from service.engine.values import DTYPES, Embedding, EmbedResult, Numbers, PlanResult, Scores, SimilarityResult, Timing
from service.http.json import base64_text, json_numbers, json_pieces, raw, to_json, written
from service.http.problems import problem, problem_type
from service.http.protocol import Answer
from service.http.protocols.native.negotiation import MEDIA_TYPES
from service.http.protocols.native.requests import ClassifyReply, EmbedReply, VramReply
from service.spec_json import plan_json

_SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8", "uint8": "U8"}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""NumPy makes a name up each time it is asked."""
_PLAIN = "".join(chr(code) for code in range(33, 127) if chr(code) != "%")
"""Characters that a header's value holds as they are; all others are percent-encoded as UTF-8."""


def write_embed(result: EmbedResult, reply: EmbedReply) -> Answer:
    """Status 200, or 207 if some images failed. The error of a request's only item is raised: it is the answer."""
    has_texts = len(result.texts) > 0
    if len(result.items) == 1 and not has_texts and isinstance(result.items[0], VisiontowerError):
        raise result.items[0]
    format = "json" if reply.parts else reply.format
    done: dict[int, Embedding] = {}
    failed: dict[int, VisiontowerError] = {}
    for index, item in enumerate(result.items):
        if isinstance(item, VisiontowerError):
            failed[index] = item
        else:
            done[index] = item
    usage = {"images": len(done), "tokens": result.tokens}
    of_texts: dict[str, Any] = {}
    if has_texts:
        usage |= {"texts": len(result.texts), "text_tokens": result.text_tokens}
        of_texts = {"truncated": list(result.truncated)}
    milliseconds = timing_ms(result.timing)
    headers = server_timing(milliseconds)
    status = 207 if failed else 200
    if format == "json" or not (done or has_texts):
        answer = {
            "object": "list",
            "model": result.model,
            "data": _entries(result, reply),
            **of_texts,
            "usage": usage,
            "timing_ms": milliseconds,
        }
        in_json = list(json_pieces(answer)) if reply.parts else written(answer, numbers=result.values)
        return Answer(in_json, MEDIA_TYPES["json"], status, headers)
    arrays = _by_name([_arrays(item) for item in done.values()]) if done else {}
    about = {"model": result.model, "index": ",".join(str(index) for index in done)}
    if done:
        first = next(iter(done.values()))
        about |= {"grid": f"{first.grid.rows},{first.grid.cols}", "prefix_tokens": str(first.prefix_tokens)}
    if has_texts:
        arrays["texts"] = list(result.texts)
        about["truncated"] = ",".join(str(index) for index in result.truncated)
    if format == "safetensors":
        errors = [{"index": index, "error": problem(error)} for index, error in failed.items()]
        metadata = {**about, "errors": to_json(errors).decode(), "usage": to_json(usage).decode()}
        return Answer(safetensors(arrays, metadata), MEDIA_TYPES[format], status, headers)
    (name, stack), *_ = arrays.items()
    shape, dtype = _stacked(stack)
    headers |= {f"x-{key.replace('_', '-')}": quote(value, safe=_PLAIN) for key, value in about.items()}
    headers |= {
        "x-tensor-name": name,
        "x-tensor-shape": ",".join(str(side) for side in shape),
        "x-tensor-dtype": dtype.name,
    }
    if failed:
        short = [{"index": index, "type": problem_type(error).uri} for index, error in failed.items()]
        headers["x-errors"] = to_json(short).decode()
    content = npy(stack) if format == "npy" else [raw(array) for array in stack]
    return Answer(content, MEDIA_TYPES[format], status, headers)


def write_similarity(result: SimilarityResult, reply: None) -> Answer:
    """Status 200, or 207 if some images failed: those are null in every list, and named in `errors`.

    The error of a request's only image is raised: it is the answer.
    """
    only = result.items[0]
    if len(result.items) == 1 and isinstance(only, VisiontowerError):
        raise only
    done = [item if isinstance(item, Scores) else None for item in result.items]
    milliseconds = timing_ms(result.timing)
    answer: dict[str, Any] = {
        "object": "similarity",
        "model": result.model,
        "cosine": [item and item.cosine for item in done],
        "logits": [item and item.logits for item in done],
        "probabilities": [item and item.probabilities for item in done],
        "logit_scale": result.scoring.logit_scale,
        "logit_bias": result.scoring.logit_bias,
        "activation": result.scoring.activation,
    }
    answer["truncated"] = list(result.truncated)
    if result.has_heatmaps:
        answer["grid"] = next((list(item.grid) for item in done if item), None)
        answer["heatmap"] = [item and np.ascontiguousarray(item.heatmap) for item in done]
    errors = [
        {"index": index, "error": problem(item)}
        for index, item in enumerate(result.items)
        if isinstance(item, VisiontowerError)
    ]
    if errors:
        answer["errors"] = errors
    answer["usage"] = {"images": sum(item is not None for item in done)}
    answer["timing_ms"] = milliseconds
    content = written(answer, numbers=result.values)
    return Answer(content, "application/json", 207 if errors else 200, server_timing(milliseconds))


def write_classify(result: SimilarityResult, reply: ClassifyReply) -> Answer:
    """Status 200, or 207 if some images failed, each with its error at its place.

    The error of a request's only image is raised: it is the answer.
    """
    only = result.items[0]
    if len(result.items) == 1 and isinstance(only, VisiontowerError):
        raise only
    data = [_classified(index, item, result.texts, reply.top_k) for index, item in enumerate(result.items)]
    failed = sum(isinstance(item, VisiontowerError) for item in result.items)
    milliseconds = timing_ms(result.timing)
    answer = {
        "object": "classification",
        "model": result.model,
        "activation": result.scoring.activation,
        "logit_scale": result.scoring.logit_scale,
        "logit_bias": result.scoring.logit_bias,
        "data": data,
        "labels": len(result.texts),
        "truncated": list(result.truncated),
        "usage": {"images": len(data) - failed},
        "timing_ms": milliseconds,
    }
    content = written(answer, numbers=result.values)
    return Answer(content, "application/json", 207 if failed else 200, server_timing(milliseconds))


def _classified(index: int, item: Scores | VisiontowerError, labels: Sequence[str], top_k: int) -> orjson.Fragment:
    """An image's entry, written at once: its labels may be many, and `json_pieces` would go through each."""
    if isinstance(item, VisiontowerError):
        return orjson.Fragment(to_json({"index": index, "error": problem(item)}))
    return orjson.Fragment(to_json({"index": index, "labels": _likeliest(item, labels, top_k)}))


def _likeliest(scores: Scores, labels: Sequence[str], top_k: int) -> list[dict[str, object]]:
    """The likeliest first; of equals the one that was named first."""
    order = np.argsort(-scores.logits, kind="stable")[:top_k]
    return [
        {
            "label": labels[index],
            "index": index,
            "probability": scores.probabilities[index],
            "cosine": scores.cosine[index],
        }
        for index in order.tolist()
    ]


def write_vram(result: PlanResult, reply: VramReply) -> Answer:
    """One row, or a list of them."""
    about = {"model": result.model, "device": result.device, "budget_bytes": result.budget_bytes}
    rows = [plan_json(each.row, each.spec, max_resolution=each.max_resolution) for each in result.rows]
    answer = {"object": "list", **about, "data": rows} if reply.is_table else {**about, **rows[0]}
    return Answer(to_json(answer), "application/json")


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


def safetensors(tensors: Mapping[str, Sequence[Numbers]], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """A safetensors file in pieces: u64 header length, JSON header, the tensors' bytes, which are not copied.

    A tensor is a stack of arrays of equal shape.

    https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, stack in tensors.items():
        shape, dtype = _stacked(stack)
        size = math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _SAFETENSORS[dtype.name],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # tensors start at a multiple of 8
    return [len(head).to_bytes(8, "little") + head, *(raw(array) for stack in tensors.values() for array in stack)]


def npy(stack: Sequence[Numbers]) -> list[bytes | memoryview]:
    """Arrays of equal shape as one in NumPy's own file format, in pieces; it has no bfloat16."""
    shape, dtype = _stacked(stack)
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, about)
    return [head.getvalue(), *(raw(array) for array in stack)]


def _stacked(stack: Sequence[Numbers]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of the arrays as one. They are alike: a request has one model, size and layer."""
    return (len(stack), *stack[0].shape), stack[0].dtype


def _entries(result: EmbedResult, reply: EmbedReply) -> list[dict[str, Any]]:
    """Of the images, then of the texts."""
    entries: list[dict[str, Any]] = []
    for index, item in enumerate(result.items):
        if isinstance(item, VisiontowerError):
            entries.append({"index": index, "error": problem(item)})
            continue
        entry: dict[str, Any] = {"index": index, "grid": list(item.grid), "prefix_tokens": item.prefix_tokens}
        if item.tokens is not None and reply.parts:
            entry["tokens"] = {"shape": item.tokens.shape, "dtype": item.tokens.dtype.name}
            entry["part"] = reply.parts.part(item.tokens, item.grid)
        elif item.tokens is not None:
            entry["tokens"] = _json_array(item.tokens, encoding=reply.encoding)
        if item.pooled is not None:
            entry["pooled"] = _json_array(item.pooled, encoding=reply.encoding)
        entries.append(entry)
    for index, vector in enumerate(result.texts, len(entries)):
        entries.append({"index": index, "pooled": _json_array(vector, encoding=reply.encoding)})
    return entries


def _json_array(array: Numbers, *, encoding: str) -> dict[str, object]:
    values = base64_text(array) if encoding == "base64" else json_numbers(array)
    return {"shape": array.shape, "dtype": _NAMES.get(array.dtype) or array.dtype.name, "data": values}


def _arrays(item: Embedding) -> dict[str, Numbers]:
    """The arrays that were asked for, by name."""
    both = {"tokens": item.tokens, "pooled": item.pooled}
    return {name: array for name, array in both.items() if array is not None}


def _by_name(items: Sequence[dict[str, Numbers]]) -> dict[str, list[Numbers]]:
    return {name: [arrays[name] for arrays in items] for name in items[0]}
