"""Cohere's protocol: /v2/embed, for its SDK.

Vectors are L2-normalised, as Cohere's are. Of `texts`, `images` and `inputs` a request has one; an input has one text
or one image. `embedding_types` may name several forms of the same vectors; `input_type` changes nothing, as the
encoders here embed a query like a document.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args

import numpy as np
from pydantic import FailFast, Field

from service import errors as s
from service.engine.postprocess import quantized
from service.engine.values import EmbedRequest, EmbedResult, Numbers
from service.http import errors as h
from service.http.items import ImageText, Item, Items, require_few
from service.http.json import NUMBER_BYTES, Text, base64_text, to_json, written
from service.http.json_body import fields_of, kind_of
from service.http.openapi import error_responses, object_schema, option_schemas
from service.http.options import ResolutionOption, json_options
from service.http.problems import headers, message, problem_type
from service.http.protocol import Answer, Asked, Incoming, Protocol, Route
from service.settings import Settings

EmbeddingType: TypeAlias = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
_EXAMPLE = '{"model": "...", "input_type": "image", "images": ["data:image/png;base64,..."]}'
_ITEMS = ("texts", "images", "inputs")
_CHAR_BYTES = 6
"""Of an answer for each character of its texts: JSON may need as many."""
_NAMED = 20
"""Texts that a warning names."""


class EmbedOptions(ResolutionOption):
    """Options of /v2/embed: Cohere's, and our `resolution`."""

    input_type: Literal["search_document", "search_query", "classification", "clustering", "image"] | None = Field(
        default=None, description="Changes nothing: queries and documents are embedded alike."
    )
    embedding_types: Annotated[tuple[EmbeddingType, ...], FailFast()] = Field(
        default=("float",), min_length=1, description="Forms of the vectors; each is an answer's list."
    )
    output_dimension: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Must be the number that the model has."
    )
    truncate: Literal["NONE", "START", "END"] = Field(
        default="END", description="Cut texts past the context length at their end, or (NONE) refuse them."
    )
    priority: int = Field(default=0, ge=0, le=999, description="Not used.")


@dataclass(frozen=True)
class Reply:
    """The form of an answer. types: each once."""

    items: Items
    types: Sequence[EmbeddingType]


def read_embed(incoming: Incoming) -> Asked:
    """Raises UnsupportedMediaType, InvalidBody, InvalidOption, BadItem or LimitExceeded."""
    fields = fields_of(incoming, example=_EXAMPLE)
    options = json_options(EmbedOptions, fields, beside=_ITEMS)
    if options.truncate == "START":
        raise s.InvalidOption("truncate", "Texts are cut at their end: 'truncate' must be END or NONE.")
    items = Items.of(_items(fields, incoming.settings), incoming.settings)
    if not items.sources:
        options.require_no_images()
    types = tuple(dict.fromkeys(options.embedding_types))
    request = EmbedRequest(
        items.sources,
        items.texts,
        model=options.model,
        output="pooled",
        resolution=options.resolution,
        normalize=True,
        truncate=options.truncate == "END",
        width=options.output_dimension,
    )
    chars = min(sum(map(len, items.texts)), incoming.settings.max_prompt_chars)  # with more it is refused
    return Asked(
        request,
        Reply(items, types),
        NUMBER_BYTES * len(types),
        incoming.settings.max_json_values // len(types),
        "ask for less in one request",
        other_bytes=_CHAR_BYTES * chars,
    )


def _items(fields: Mapping[str, object], settings: Settings) -> Mapping[str, Item]:
    """By what the caller calls them. Raises InvalidBody, LimitExceeded, or BadItem for what is no text and no image."""
    given = [name for name in _ITEMS if fields.get(name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise h.InvalidBody(f"A request has one of 'texts', 'images' and 'inputs', and this has {found}: {_EXAMPLE}.")
    (name,) = given
    values = fields[name]
    if not isinstance(values, list) or not values:
        what = "empty" if values == [] else kind_of(values)
        raise h.InvalidBody(f"'{name}' must be a list with at least one entry, and is {what}.")
    require_few(values, settings)
    items = {}
    for index, value in enumerate(values):
        where = f"{name}[{index}]"
        if name == "inputs":
            items[where] = _input(where, value)
        elif isinstance(value, str):
            items[where] = value if name == "texts" else ImageText(value)
        else:
            raise h.BadItem(where, h.InvalidBody(f"It must be a string, and is {kind_of(value)}."))
    return items


def _input(where: str, given: object) -> Item:
    """The one text or image of an input."""
    content = given.get("content") if isinstance(given, dict) else None
    if not isinstance(content, list) or not content:
        reason = 'An input is {"content": [...]} with one text or one image.'
        raise h.BadItem(where, h.InvalidBody(f"{reason} This is {kind_of(given)}."))
    if len(content) > 1:
        reason = "the encoders here do not join several into one vector: make an input of each."
        raise h.BadItem(where, h.InvalidBody(f"It has {len(content)} parts, and {reason}"))
    match content[0]:
        case {"type": "text", "text": str(text)}:
            return text
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return ImageText(url)
    forms = '{"type": "text", "text": "..."} or {"type": "image_url", "image_url": {"url": "..."}}'
    raise h.BadItem(where, h.InvalidBody(f"A part is {forms}. This is {kind_of(content[0])}."))


def write_embed(result: EmbedResult, reply: Reply) -> Answer:
    """A list of vectors for each form, in the order of the request. Raises BadItem for an image that cannot be used."""
    vectors = np.stack(reply.items.arrays(result))
    images = len(result.items)
    billed = {"images": images, "image_tokens": result.tokens} if images else {}
    if reply.items.texts:
        billed |= {"input_tokens": result.text_tokens}
    meta: dict[str, Any] = {"api_version": {"version": "2"}, "billed_units": billed}
    if truncated := reply.items.truncated(result):
        names = ", ".join(reply.items.where[index] for index in truncated[:_NAMED])
        more = f" and {len(truncated) - _NAMED} more" if len(truncated) > _NAMED else ""
        meta["warnings"] = [f"cut to the model's context length: {names}{more}"]
    answer = {
        "id": f"{random.getrandbits(128):032x}",
        "embeddings": {each: _in_form(vectors, each) for each in reply.types},
        "texts": reply.items.texts,
        "meta": meta,
        "response_type": "embeddings_by_type",
    }
    return Answer(written(answer, numbers=result.values * len(reply.types)), "application/json")


def _in_form(vectors: Numbers, form: EmbeddingType) -> Numbers | list[str | Text]:
    """Vectors float32 [items, width] as lists, or as base64 of each.

    ubinary: a bit a number, eight to a byte [items, width / 8 rounded up], the first the highest; binary: that byte
    minus 128.
    """
    match form:
        case "float":
            return vectors
        case "base64":
            return [base64_text(vector) for vector in vectors]
        case "int8" | "uint8":
            return quantized(vectors, form)
        case "ubinary":
            return quantized(vectors, "binary")
        case "binary":
            signed: Numbers = (quantized(vectors, "binary").astype(np.int16) - 128).astype(np.int8)
            return signed


def write_error(error: Exception) -> Answer:
    """In Cohere's form."""
    return Answer(to_json({"message": message(error)}), "application/json", problem_type(error).status, headers(error))


_TEXT, _NUMBER, _COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer", "minimum": 0}
_TEXTS = {"type": "array", "items": _TEXT}
_ROWS = {"type": "array", "items": {"type": "array", "items": _NUMBER}}
_PART = object_schema({"type": {"type": "string", "enum": ["text", "image_url"]}})
_INPUT = object_schema({"content": {"type": "array", "items": _PART, "minItems": 1, "maxItems": 1}})
_OPTIONS = option_schemas(EmbedOptions)
_ANSWER = object_schema(
    {
        "id": _TEXT,
        "embeddings": object_schema(
            {form: _TEXTS if form == "base64" else _ROWS for form in get_args(EmbeddingType)},
            optional=get_args(EmbeddingType),
        ),
        "texts": _TEXTS,
        "meta": object_schema(
            {
                "api_version": object_schema({"version": _TEXT}),
                "billed_units": {"type": "object", "additionalProperties": _COUNT},
                "warnings": _TEXTS,
            },
            optional=("warnings",),
        ),
        "response_type": {"type": "string", "enum": ["embeddings_by_type"]},
    }
)
_PAGE: dict[str, Any] = {
    "summary": "Cohere: images or texts to vectors",
    "description": "Vectors are L2-normalised. One of `texts`, `images` and `inputs`; an input has one text or one "
    "image. One bad item refuses the request, and the message names it.",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": object_schema(
                        {"texts": _TEXTS, "images": _TEXTS, "inputs": {"type": "array", "items": _INPUT}, **_OPTIONS},
                        optional=(*_ITEMS, *_OPTIONS),
                    ),
                    "example": {"model": "demo:vit", "texts": ["a red circle"], "embedding_types": ["float", "int8"]},
                }
            },
        }
    },
    "responses": {
        200: {"description": "As Cohere answers.", "content": {"application/json": {"schema": _ANSWER}}},
        **error_responses(object_schema({"message": _TEXT}), 400, 404, 413, 415, 422, 500, 503, 504, 507),
    },
}

PROTOCOL = Protocol(
    "cohere", (Route("/v2/embed", read_embed, write_embed, documentation=_PAGE),), write_error, under=("/v2/embed",)
)
