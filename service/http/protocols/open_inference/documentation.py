"""The routes of the Open Inference Protocol in the API's own pages. Knows OpenAPI."""

from typing import Any

from service.http.openapi import error_responses, object_schema, option_schemas
from service.http.options import EmbeddingOptions
from service.http.protocols.open_inference.requests import IMAGES, PARAMETERS, POOLED, TEXT_VECTORS, TEXTS, TOKENS
from service.http.protocols.open_inference.tensors import HEADER_LENGTH

_TEXT, _FLAG, _COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_SHAPE = _list({"type": "integer"})
_ERROR = object_schema({"error": _TEXT})
_TENSOR = object_schema({"name": _TEXT, "datatype": _TEXT, "shape": _SHAPE})
_READY = object_schema({"name": _TEXT, "ready": _FLAG, "error": _TEXT}, optional=("name", "error"))
_CONFIG_TENSOR = object_schema({"name": _TEXT, "data_type": _TEXT, "dims": _SHAPE})
_MODEL = object_schema(
    {
        "name": _TEXT,
        "versions": _list(_TEXT),
        "platform": _TEXT,
        "inputs": _list(_TENSOR),
        "outputs": _list(_TENSOR),
    }
)
_CONFIG = object_schema(
    {
        "name": _TEXT,
        "platform": _TEXT,
        "backend": _TEXT,
        "max_batch_size": _COUNT,
        "input": _list(_CONFIG_TENSOR),
        "output": _list(_CONFIG_TENSOR),
    }
)
_ANSWER = object_schema(
    {
        "model_name": _TEXT,
        "model_version": _TEXT,
        "id": _TEXT,
        "outputs": _list(
            object_schema(
                {**_TENSOR["properties"], "parameters": {"type": "object"}, "data": _list({})},
                optional=("parameters", "data"),
            )
        ),
    },
    optional=("id",),
)
_OPTIONS = {name: schema for name, schema in option_schemas(EmbeddingOptions).items() if name in PARAMETERS}
_REQUEST = object_schema(
    {
        "id": _TEXT,
        "parameters": object_schema(
            {
                **_OPTIONS,
                "binary_data_output": {**_FLAG, "description": "All outputs that are not named follow as bytes."},
                "timeout": {"type": "integer", "minimum": 1, "description": "Microseconds."},
            },
            optional=(*_OPTIONS, "binary_data_output", "timeout"),
        ),
        "inputs": _list(
            object_schema(
                {
                    "name": {"type": "string", "enum": [IMAGES, TEXTS]},
                    "datatype": {"type": "string", "enum": ["BYTES"]},
                    "shape": {**_SHAPE, "minItems": 1, "maxItems": 2},
                    "data": _list(_TEXT),
                    "parameters": object_schema({"binary_data_size": _COUNT}, optional=("binary_data_size",)),
                },
                optional=("data", "parameters"),
            )
        ),
        "outputs": _list(
            object_schema(
                {
                    "name": {"type": "string", "enum": [TOKENS, POOLED, TEXT_VECTORS]},
                    "parameters": object_schema({"binary_data": _FLAG}, optional=("binary_data",)),
                },
                optional=("parameters",),
            )
        ),
    },
    optional=("id", "parameters", "outputs"),
)
_EXAMPLE = {
    "inputs": [{"name": TEXTS, "datatype": "BYTES", "shape": [1], "data": ["a red circle"]}],
    "parameters": {"normalize": True},
}
_INFER_TEXT = f"""Images are the input `{IMAGES}`, texts the input `{TEXTS}`: BYTES of shape [n]. In JSON an image is
base64, a data: URI, or a URL where the server allows it. With the header `{HEADER_LENGTH}` the bytes of the
tensors that say `binary_data_size` follow the JSON.

Outputs: `{TOKENS}` [images, tokens, width] and `{POOLED}` [images, width] of images, `{TEXT_VECTORS}` [texts, width] of
texts; those that are named, else all. They are numbers in JSON, or follow it as bytes where `binary_data` or
`binary_data_output` say so. `dtype` says what they are: FP32, FP16, BF16, INT8, UINT8.

A tensor has no place for an error, so one broken image refuses the request: the error names it."""


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _about(
    name: str,
    summary: str,
    responses: dict[int | str, dict[str, Any]],
    *,
    description: str = "",
    of_model: bool = False,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Keywords of a route. Its errors, of every status, have `error`."""
    extra: dict[str, Any] = {}
    if of_model:
        about = "A model's id as it is, slashes and all, or percent-encoded."
        extra["parameters"] = [{"name": "model", "in": "path", "required": True, "description": about, "schema": _TEXT}]
    if body is not None:
        extra["requestBody"] = body
    return {
        "summary": f"Open Inference Protocol: {summary}",
        "description": description or 'An error is `{"error": "..."}`.',
        "operation_id": f"open_inference_{name}",
        "openapi_extra": extra,
        "responses": {**responses, **error_responses(_ERROR)},
    }


SERVER = _about(
    "server",
    "the server",
    {200: _json("The server.", object_schema({"name": _TEXT, "version": _TEXT, "extensions": _list(_TEXT)}))},
)
LIVE = _about("live", "whether the server answers", {200: _json("It does.", object_schema({"live": _FLAG}))})
READY = _about(
    "ready",
    "whether requests can be answered",
    {200: _json("They can.", _READY), 503: _json("They cannot, and why.", _READY)},
)
MODEL_READY = _about(
    "model_ready",
    "whether requests for a model can be answered",
    {200: _json("They can.", _READY), 503: _json("They cannot, and why.", {"anyOf": [_READY, _ERROR]})},
    of_model=True,
)
MODEL = _about("model", "a model's inputs and outputs", {200: _json("The model.", _MODEL)}, of_model=True)
CONFIG = _about("config", "the same as Triton's configuration", {200: _json("The model.", _CONFIG)}, of_model=True)
INFER = _about(
    "infer",
    "images and texts to tensors",
    {
        200: {
            "description": "The outputs.",
            "content": {
                "application/json": {"schema": _ANSWER},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
    description=_INFER_TEXT,
    of_model=True,
    body={"required": True, "content": {"application/json": {"schema": _REQUEST, "example": _EXAMPLE}}},
)
INDEX = _about(
    "index",
    "all models and their states",
    {
        200: _json(
            "The models.",
            _list(
                object_schema(
                    {
                        "name": _TEXT,
                        "version": _TEXT,
                        "state": {"type": "string", "enum": ["READY", "UNAVAILABLE"]},
                        "reason": _TEXT,
                    }
                )
            ),
        )
    },
    body={
        "content": {
            "application/json": {
                "schema": object_schema({"ready": _FLAG}, optional=("ready",)),
                "example": {"ready": True},
            }
        }
    },
)
