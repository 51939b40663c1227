"""The texts of the API's own pages: on the whole, and on the routes that are no protocol's. Knows OpenAPI."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from service.http.problems import MEDIA_TYPE

DESCRIPTION = """A multimodal vision-encoder inference server: images and texts in; patch tokens, embeddings, scores and
labels out.

The `native` protocol has everything. Its errors are `application/problem+json` (RFC 9457); each `type` is a page:
`/problems/{slug}`, listed at `/problems`. A request with several images of which some are bad answers 207: each bad one
is an `error` at its `index`, the others are answered. A request with one image answers its problem with the problem's
own status.

The other protocols are for clients that speak them. Each has its errors in its own form.

Where the server asks for an access key, send it as `Authorization: Bearer KEY`. Without one, or with a wrong one, it
answers 401; 403 for a model that the key may not use; 429 and `Retry-After` if the key has used what it may for now."""

EXAMPLE_PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
"""One pixel, as PNG in base64: examples that have it can be sent as they are."""

PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "And the facts of the error: limit, actual, model...",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string", "example": "/problems/undecodable-image"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
    },
}


_ABOUT = {
    400: "The body is broken.",
    404: "No such model, or no such page.",
    406: "No such format.",
    413: "Over a limit; refused whole.",
    415: "Not an image, or a Content-Type that is not read.",
    422: "An image or an option that cannot be used.",
    500: "The encoder failed, or gave NaN.",
    507: "The device ran out of memory, or the model is over its budget.",
    503: "Overloaded, draining or not ready; see Retry-After.",
    504: "Not answered in time.",
}


def option_schemas(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Option -> its JSON schema."""
    properties: dict[str, dict[str, Any]] = model.model_json_schema(mode="validation")["properties"]
    return {name: {k: v for k, v in schema.items() if k != "title"} for name, schema in properties.items()}


def object_schema(properties: Mapping[str, Any], *, optional: Sequence[str] = ()) -> dict[str, Any]:
    """Of an object with these properties, and maybe others."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": dict(properties)}


def error_responses(
    schema: dict[str, Any], *statuses: int, media_type: str = "application/json"
) -> dict[int | str, dict[str, Any]]:
    """These statuses, each answered with an error of this schema."""
    content = {media_type: {"schema": schema}}
    return {
        **{code: {"description": _ABOUT[code], "content": content} for code in statuses},
        "default": {"description": "Any other error.", "content": content},
    }


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses, each answered with a problem."""
    return error_responses(PROBLEM, *statuses, media_type=MEDIA_TYPE)


_COLOUR = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
_PREPROCESSING = {
    "description": "How the encoder was trained to see an image. `/embed` does all of it; a client needs it to draw "
    "the patch grid over the picture.",
    **object_schema(
        {
            "resize": {
                "type": "string",
                "enum": ["shortest", "edge", "longest", "squash", "pad"],
                "description": "`shortest` and `edge` crop from the centre, `longest` and `pad` add `fill`, `squash` "
                "changes the proportions.",
            },
            "crop_pct": {"type": "number", "description": "The share of the resized image that is kept, each side."},
            "crop_offset": {
                "type": "string",
                "enum": ["round", "floor"],
                "description": "How a crop halves an odd margin: half to even, or down.",
            },
            "fill": {"anyOf": [{"type": "integer"}, {**_COLOUR, "items": {"type": "integer"}}]},
            "interpolation": {"type": "string", "enum": ["nearest", "bilinear", "bicubic", "lanczos"]},
            "mean": {**_COLOUR, "description": "Of red, green and blue, in 0..1."},
            "std": _COLOUR,
        }
    ),
}
_CARD = {
    "type": "object",
    "required": ["id", "family", "trained_on", "image_size", "preprocessing", "state"],
    "properties": {
        "trained_on": {
            "anyOf": [{"type": "string"}, {"type": "null"}],
            "description": "The pictures that the encoder knows where they are not photographs, for example drawings.",
        },
        "preprocessing": _PREPROCESSING,
    },
}
_RECOMMENDED = {
    "description": "An encoder that knows photographs: `visiontower serve --model ID`.",
    **object_schema(
        {
            "id": {"type": "string", "example": "openclip:RN50@openai"},
            "purpose": {"type": "string", "description": "What it is good for."},
            "download_bytes": {"type": "integer", "description": "Its weights, fetched at the first start."},
        }
    ),
}
_STATE = {"type": "object", "required": ["state"], "properties": {"state": {"type": "string"}}}


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _readiness(status: str, *, required: list[str]) -> dict[str, Any]:
    """Which models there are, and what they do; `reason` if not all is well."""
    properties = {
        "status": {"type": "string", "enum": [status]},
        "reason": {"type": "string"},
        "models": {"type": "object", "additionalProperties": _STATE},
    }
    return {"type": "object", "required": required, "properties": properties}


MODELS: dict[str, Any] = {
    "description": "Each served encoder: what it is, what it can be asked, and its state. And encoders that know "
    "photographs, small to large, for a server that has none.",
    "responses": {
        200: _json(
            "The encoders, the default first.",
            {
                "type": "object",
                "required": ["object", "data", "recommended"],
                "properties": {
                    "object": {"type": "string", "enum": ["list"]},
                    "data": {"type": "array", "items": _CARD},
                    "recommended": {"type": "array", "items": _RECOMMENDED},
                },
            },
        )
    },
}
MODEL: dict[str, Any] = {
    "description": "One served encoder. The id stands in the path as it is, slashes and all.",
    "responses": {200: _json("The encoder.", _CARD), **problem_responses(404)},
}
READY: dict[str, Any] = {
    "description": "200 if requests can be answered: a real forward of at least one model has worked, the device "
    "threads live and none hangs, and the server is not draining. With `model`, 200 if requests for that model can be "
    "answered. The state of each model stands beside.",
    "responses": {
        200: _json("Ready.", _readiness("ready", required=["status", "models"])),
        503: _json("Not ready, and why.", _readiness("not ready", required=["status", "reason", "models"])),
        **problem_responses(404),
    },
}
METRICS: dict[str, Any] = {
    "responses": {
        200: {
            "description": "Text, or OpenMetrics with exemplars if `Accept` names it",
            "content": {
                "text/plain": {"schema": {"type": "string"}},
                "application/openmetrics-text": {"schema": {"type": "string"}},
            },
        }
    }
}
PROBLEM_PAGE: dict[str, Any] = {"responses": problem_responses(404)}
