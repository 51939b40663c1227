"""OpenAI's protocol: /v1/embeddings and /v1/models, for its SDK and whatever else speaks it.

Vectors are L2-normalised unless `normalize` is false, as OpenAI's are. A string of `input` is a text, with these
exceptions: a data: URI of an image is an image, and with `modality: image` every string is one (base64, data: URI, or
URL where the server fetches them). A URL is a text otherwise: somebody may want its vector, and nothing is fetched that
was not called an image. An object says which it is: {"text"}, {"image"}, {"bytes"}, {"url"}, or a part of a chat
message. Base64 always holds float32: that is how the SDKs read it, whatever `dtype` is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from encoders.contract import errors as e
from service import errors as s
from service.access import errors as a
from service.engine.values import EmbedResult, ModelsRequest, ModelsResult, Numbers
from service.http import errors as h
from service.http.items import ImageText, Item, Items, require_few
from service.http.json import NUMBER_BYTES, base64_text, json_numbers, to_json, written
from service.http.json_body import fields_of, kind_of
from service.http.openapi import EXAMPLE_PICTURE, error_responses, object_schema, option_schemas
from service.http.options import EmbeddingOptions, json_options
from service.http.problems import headers, message, problem, problem_type
from service.http.protocol import Answer, Asked, Incoming, Protocol, Route
from service.settings import Settings

_EXAMPLE = '{"model": "...", "input": ["..."]}'
_IMAGE_KEYS = ("image", "bytes", "url", "image_url", "image_base64")
_BESIDE = ("type", "detail")
"""Of an item, beside what it is: a chat message's parts have them."""
_TOKEN_IDS = (
    "It holds token ids, which mean nothing to the encoders here: send strings. LangChain sends them with "
    "OpenAIEmbeddings(check_embedding_ctx_length=False)."
)


class EmbeddingsOptions(EmbeddingOptions):
    """Options of /v1/embeddings: OpenAI's, Infinity's `modality`, and ours."""

    output: Literal["pooled", "tokens"] = Field(
        default="pooled", description="One vector an item, or an image's tokens as a multi-vector, with its `shape`."
    )
    normalize: bool = Field(default=True, description="L2-normalise each vector.")
    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="Lists of numbers, or base64 of little-endian float32, as OpenAI's SDK asks for."
    )
    dimensions: int = Field(
        default=0, ge=0, le=1_000_000, description="0 for all that the model has; any other number must be that one."
    )
    modality: Literal["text", "image"] = Field(
        default="text", description="What strings are; a data: URI of an image is an image in any case."
    )
    user: str | None = Field(default=None, description="Not used.")


@dataclass(frozen=True)
class Reply:
    """The form of an answer."""

    items: Items
    encoding: Literal["float", "base64"]


def read_embeddings(incoming: Incoming) -> Asked:
    """Raises UnsupportedMediaType, InvalidBody, InvalidOption, BadItem or LimitExceeded."""
    fields = fields_of(incoming, example=_EXAMPLE)
    options = json_options(EmbeddingsOptions, fields, beside=("input",))
    settings = incoming.settings
    items = Items.of(_items(fields.get("input"), modality=options.modality, settings=settings), settings)
    if items.texts and options.output == "tokens":
        raise s.InvalidOption("output", "'output' is 'tokens', which texts do not have: ask for their vectors apart.")
    if not items.sources:
        options = options.of_texts()
    request = options.request(items.sources, items.texts, width=options.dimensions or None)
    reply = Reply(items, options.encoding_format)
    most = settings.max_json_values if options.encoding_format == "float" else None
    return Asked(request, reply, NUMBER_BYTES, most, "ask for encoding_format=base64")


def _items(given: object, *, modality: str, settings: Settings) -> Mapping[str, Item]:
    """By what the caller calls them. Raises LimitExceeded, or BadItem for what is neither a text nor an image."""
    if given is None or given == []:
        what = "missing" if given is None else "empty"
        raise h.BadItem("input", h.InvalidBody(f"It is {what}: send {_EXAMPLE}."))
    if not isinstance(given, list):
        return {"input": _item("input", given, modality=modality)}
    if isinstance(given[0], int) and not isinstance(given[0], bool):
        raise h.BadItem("input", h.InvalidBody(_TOKEN_IDS))
    require_few(given, settings)
    return {f"input[{at}]": _item(f"input[{at}]", each, modality=modality) for at, each in enumerate(given)}


def _item(where: str, given: object, *, modality: str) -> Item:
    if isinstance(given, str):
        is_image = modality == "image" or given[:32].lstrip()[:11].lower() == "data:image/"
        return ImageText(given) if is_image else given
    if isinstance(given, dict):
        return _item_of_object(where, given)
    has_ids = isinstance(given, list) and given and isinstance(given[0], int)
    reason = _TOKEN_IDS if has_ids else f"It must be a text or an image, and is {kind_of(given)}."
    raise h.BadItem(where, h.InvalidBody(reason))


def _item_of_object(where: str, given: Mapping[str, object]) -> Item:
    """Jina's, NV-CLIP's and Infinity's form, or a part of a chat message."""
    names = [name for name, value in given.items() if name not in _BESIDE and value is not None]
    if len(names) != 1 or names[0] not in ("text", *_IMAGE_KEYS):
        reason = 'An item has one text or one image, as {"text": "..."} or {"image": "..."}.'
        raise h.BadItem(where, h.InvalidBody(f"{reason} This is {kind_of(given)}."))
    (name,) = names
    value = given[name]
    if isinstance(value, dict) and name == "image_url":
        value = value.get("url")
    if not isinstance(value, str):
        raise h.BadItem(where, h.InvalidBody(f"'{name}' must be a string, and is {kind_of(value)}."))
    return value if name == "text" else ImageText(value)


def write_embeddings(result: EmbedResult, reply: Reply) -> Answer:
    """An entry an item, in order. Raises BadItem for an image that could not be used."""
    data = [_entry(index, array, reply) for index, array in enumerate(reply.items.arrays(result))]
    used = result.tokens + result.text_tokens
    answer: dict[str, Any] = {"object": "list", "model": result.model, "data": data}
    if truncated := reply.items.truncated(result):
        answer["truncated"] = truncated
    answer["usage"] = {"prompt_tokens": used, "total_tokens": used}
    return Answer(written(answer, numbers=result.values), "application/json")


def _entry(index: int, array: Numbers, reply: Reply) -> dict[str, Any]:
    """With a multi-vector's shape, as base64 is flat."""
    is_base64 = reply.encoding == "base64"
    values = base64_text(np.ascontiguousarray(array, dtype="<f4")) if is_base64 else json_numbers(array)
    shape = {"shape": array.shape} if array.ndim > 1 else {}
    return {"object": "embedding", "index": index, "embedding": values, **shape}


def read_models(incoming: Incoming) -> Asked:
    """All of them."""
    return Asked(ModelsRequest())


def read_model(incoming: Incoming) -> Asked:
    """The one that the path names."""
    return Asked(ModelsRequest(incoming.path["model"]))


def write_models(result: ModelsResult, reply: None) -> Answer:
    """The served encoders, the default first."""
    return Answer(to_json({"object": "list", "data": _cards(result)}), "application/json")


def write_model(result: ModelsResult, reply: None) -> Answer:
    """One encoder."""
    (card,) = _cards(result)
    return Answer(to_json(card), "application/json")


def _cards(result: ModelsResult) -> list[dict[str, object]]:
    """created: nobody says when weights were made."""
    return [{"id": spec.id, "object": "model", "created": 0, "owned_by": "visiontower"} for spec in result.specs]


_ABOUT_INPUT = (
    s.LimitExceeded,
    s.TooManyTexts,
    s.TooMuchText,
    s.TextTooLong,
    h.TooManyImages,
    e.InvalidText,
)
_ABOUT: Mapping[type[Exception], str] = {
    **dict.fromkeys(_ABOUT_INPUT, "input"),
    s.UnknownModel: "model",
    a.ModelNotAllowed: "model",
    a.TooManyImagesForKey: "input",
    s.WidthNotOffered: "dimensions",
    e.LayerNotFound: "layer",
    e.UnsupportedResolution: "resolution",
}
"""The parameter that an error is about, where the error does not name it itself."""


_CODES: Mapping[type[Exception], str] = {
    s.UnknownModel: "model_not_found",
    a.InvalidKey: "invalid_api_key",
    a.RequestsTooFast: "rate_limit_exceeded",
    a.ImagesInFlight: "rate_limit_exceeded",
    a.DayUsedUp: "insufficient_quota",
}
"""OpenAI's own, where it has one."""


def write_error(error: Exception) -> Answer:
    """In OpenAI's form. code: OpenAI's, or the name of our problem type; of a bad item that of its cause.

    The SDKs try again by Retry-After up to a minute, and else after a second or two: not so for a day that is used up.
    """
    members, status = problem(error), problem_type(error).status
    cause = error.cause if isinstance(error, h.BadItem) else error
    code = _CODES.get(type(error), problem_type(cause).slug)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if isinstance(error, a.KeyLimitReached):
        kind = "insufficient_quota" if isinstance(error, a.DayUsedUp) else "requests"
    shown = {
        "message": message(error),
        "type": kind,
        "param": members.get("where") or members.get("option") or _ABOUT.get(type(error)),
        "code": code,
    }
    no_retry = {"x-should-retry": "false"} if isinstance(error, a.DayUsedUp) else {}
    return Answer(to_json({"error": shown}), "application/json", status, {**headers(error), **no_retry})


_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
_ERROR = object_schema(
    {
        "error": object_schema(
            {
                "message": _TEXT,
                "type": {
                    "type": "string",
                    "enum": ["invalid_request_error", "requests", "insufficient_quota", "server_error"],
                },
                "param": {"anyOf": [_TEXT, {"type": "null"}]},
                "code": {"type": "string", "example": "undecodable-image"},
            }
        )
    }
)
_ITEM = {"anyOf": [_TEXT, {"type": "object", "additionalProperties": {"anyOf": [_TEXT, {"type": "object"}]}}]}
_EMBEDDINGS = object_schema(
    {
        "object": {"type": "string", "enum": ["list"]},
        "model": _TEXT,
        "data": {
            "type": "array",
            "items": object_schema(
                {
                    "object": {"type": "string", "enum": ["embedding"]},
                    "index": _COUNT,
                    "embedding": {"anyOf": [{"type": "array", "items": {}}, _TEXT]},
                    "shape": {"type": "array", "items": _COUNT},
                },
                optional=("shape",),
            ),
        },
        "truncated": {"type": "array", "items": _COUNT, "description": "Indices of the items whose text was cut."},
        "usage": object_schema({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
    },
    optional=("truncated",),
)
_MODEL = object_schema(
    {"id": _TEXT, "object": {"type": "string", "enum": ["model"]}, "created": _COUNT, "owned_by": _TEXT}
)
_MODELS = object_schema({"object": {"type": "string", "enum": ["list"]}, "data": {"type": "array", "items": _MODEL}})


def _answers(schema: dict[str, Any], *errors: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": schema}}
    return {200: {"description": "As OpenAI answers.", "content": content}, **error_responses(_ERROR, *errors)}


_EMBEDDINGS_PAGE: dict[str, Any] = {
    "summary": "OpenAI: images and texts to vectors",
    "description": "Vectors are L2-normalised unless `normalize` is false. A string is a text; a data: URI of an image "
    "is an image; with `modality: image` every string is one. An object has one text or one image: `text`, `image`, "
    "`bytes`, `url`, or a part of a chat message. One bad item refuses the request, and `param` names it.",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": object_schema(
                        {
                            "input": {
                                "anyOf": [_ITEM, {"type": "array", "items": _ITEM, "minItems": 1}],
                                "description": "A text or an image, or a list of them.",
                            },
                            **option_schemas(EmbeddingsOptions),
                        },
                        optional=tuple(EmbeddingsOptions.model_fields),
                    ),
                    "example": {"model": "demo:vit", "input": ["a red circle", {"image": EXAMPLE_PICTURE}]},
                }
            },
        }
    },
    "responses": _answers(_EMBEDDINGS, 400, 404, 413, 415, 422, 500, 503, 504, 507),
}
_MODEL_PAGE: dict[str, Any] = {
    "summary": "OpenAI: one encoder",
    "description": "The id stands in the path as it is, slashes and all.",
    "openapi_extra": {"parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}]},
    "responses": _answers(_MODEL, 404),
}

PROTOCOL = Protocol(
    "openai",
    (
        Route("/v1/embeddings", read_embeddings, write_embeddings, documentation=_EMBEDDINGS_PAGE),
        Route(
            "/v1/models",
            read_models,
            write_models,
            method="GET",
            has_images=False,
            documentation={
                "summary": "OpenAI: the served encoders",
                "description": "The default first.",
                "responses": _answers(_MODELS),
            },
        ),
        Route(
            "/v1/models/{model:path}",
            read_model,
            write_model,
            method="GET",
            has_images=False,
            documentation=_MODEL_PAGE,
        ),
    ),
    write_error,
    under=("/v1",),
)
