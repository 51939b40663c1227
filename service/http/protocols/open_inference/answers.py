"""The engine's results -> answers of the Open Inference Protocol."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from encoders.contract.errors import VisiontowerError
from encoders.contract.spec import EncoderSpec
from service.engine.values import Embedding, EmbedResult, ModelsResult, Numbers, ReadyResult
from service.http.errors import BadItem
from service.http.json import json_numbers, json_pieces, raw, to_json, written
from service.http.problems import headers, message, problem_type
from service.http.protocol import Answer
from service.http.protocols.open_inference.requests import (
    IMAGES,
    POOLED,
    TEXT_VECTORS,
    TEXTS,
    TOKENS,
    InferReply,
)
from service.http.protocols.open_inference.tensors import HEADER_LENGTH

VERSION = "1"
"""Of every model: one is served at a time."""
_JSON = "application/json"
_DATATYPES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16", "int8": "INT8", "uint8": "UINT8"}
_BAD_REQUEST = {415: 400, 422: 400}
"""The protocol says 400 of whatever is wrong with a request."""


def write_error(error: Exception) -> Answer:
    """`{"error": "..."}`."""
    status = problem_type(error).status
    return Answer(to_json({"error": message(error)}), _JSON, _BAD_REQUEST.get(status, status), headers(error))


def write_server(result: ModelsResult, reply: None) -> Answer:
    """What the server is."""
    extensions = ["binary_tensor_data", "model_configuration", "model_repository"]
    return _json({"name": "visiontower", "version": version("visiontower"), "extensions": extensions})


def write_live(result: ModelsResult, reply: None) -> Answer:
    """That it answers."""
    return _json({"live": True})


def write_ready(result: ReadyResult, model: str | None) -> Answer:
    """Status 503 if it is not; model: that was asked about, None for the server."""
    about: dict[str, Any] = {} if model is None else {"name": model}
    about["ready"] = result.reason is None
    if result.reason is not None:
        about["error"] = result.reason
    return _json(about, 200 if result.reason is None else 503)


def write_model(result: ModelsResult, reply: None) -> Answer:
    """What a request without parameters takes and gives; -1 is an axis that requests differ in."""
    (spec,) = result.specs
    inputs = [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in _inputs(spec)]
    outputs = [{"name": name, "datatype": "FP32", "shape": shape} for name, shape in _outputs(spec).items()]
    return _json(
        {"name": spec.id, "versions": [VERSION], "platform": _platform(spec), "inputs": inputs, "outputs": outputs}
    )


def write_config(result: ModelsResult, reply: None) -> Answer:
    """The same in the words of Triton's configuration. max_batch_size 0: the batch is an axis of the shapes."""
    (spec,) = result.specs
    inputs = [{"name": name, "data_type": "TYPE_STRING", "dims": [-1]} for name in _inputs(spec)]
    outputs = [{"name": name, "data_type": "TYPE_FP32", "dims": shape} for name, shape in _outputs(spec).items()]
    about = {"name": spec.id, "platform": _platform(spec), "backend": "visiontower", "max_batch_size": 0}
    return _json({**about, "input": inputs, "output": outputs})


def write_index(result: ModelsResult, is_ready_wanted: bool) -> Answer:
    """Every model and its state; those alone that can be asked if wanted."""
    rows = []
    for spec in result.specs:
        reason = result.troubles.get(spec.id)
        if reason is None or not is_ready_wanted:
            state = "READY" if reason is None else "UNAVAILABLE"
            rows.append({"name": spec.id, "version": VERSION, "state": state, "reason": reason or ""})
    return _json(rows)


def write_infer(result: EmbedResult, reply: InferReply) -> Answer:
    """All outputs asked for. Raises BadItem: a tensor has no place for the error of one image."""
    items: list[Embedding] = []
    for index, item in enumerate(result.items):
        if isinstance(item, VisiontowerError):
            raise BadItem(f"{IMAGES}[{index}]", item)
        items.append(item)
    binary: list[memoryview] = []
    outputs = []
    for name, is_binary in reply.outputs.items():
        arrays = _arrays(name, result, items)
        parameters: dict[str, Any] = _about(name, result, items)
        first = arrays[0]
        output = {
            "name": name,
            "datatype": _DATATYPES[first.dtype.name],
            "shape": [len(arrays), *first.shape],
            "parameters": parameters,
        }
        if is_binary:
            raws = [raw(array) for array in arrays]
            parameters["binary_data_size"] = sum(map(len, raws))
            binary += raws
        else:
            output["data"] = [json_numbers(array) for array in arrays]
        outputs.append(output)
    answer = {"model_name": result.model, "model_version": VERSION, "outputs": outputs}
    if reply.id is not None:
        answer["id"] = reply.id
    if not binary:
        return Answer(written(answer, numbers=result.values), _JSON)
    head = b"".join(json_pieces(answer))
    return Answer([head, *binary], "application/octet-stream", headers={HEADER_LENGTH: str(len(head))})


def _arrays(name: str, result: EmbedResult, items: Sequence[Embedding]) -> Sequence[Numbers]:
    """Of one output: an array an image, or a text."""
    if name == TEXT_VECTORS:
        return list(result.texts)
    found = [item.tokens if name == TOKENS else item.pooled for item in items]
    return [array for array in found if array is not None]


def _about(name: str, result: EmbedResult, items: Sequence[Embedding]) -> dict[str, Any]:
    """What there is to know of an output beside its shape. A parameter is a text, a number, true or false."""
    if name == TOKENS:
        first = items[0]
        return {"grid_rows": first.grid.rows, "grid_cols": first.grid.cols, "prefix_tokens": first.prefix_tokens}
    if name == TEXT_VECTORS and result.truncated:
        return {"truncated": ",".join(map(str, result.truncated))}
    return {}


def _platform(spec: EncoderSpec) -> str:
    return f"visiontower_{spec.runtime}"


def _inputs(spec: EncoderSpec) -> tuple[str, ...]:
    return (IMAGES, TEXTS) if spec.has_text else (IMAGES,)


def _outputs(spec: EncoderSpec) -> Mapping[str, list[int]]:
    """Shapes by name. The number of tokens follows `resolution` and `prefix`."""
    outputs = {TOKENS: [-1, -1, spec.hidden_size], POOLED: [-1, spec.pooled_size]}
    return outputs | ({TEXT_VECTORS: [-1, spec.embed_dim or -1]} if spec.has_text else {})


def _json(value: object, status: int = 200) -> Answer:
    return Answer(to_json(value), _JSON, status)
