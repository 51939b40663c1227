"""Immich's machine-learning protocol, as far as its smart search needs it: the clip tasks, visual and textual.

Immich sends faces and text recognition (OCR) to the same URL. They are refused, so that it asks its next URL:
docs/immich.md. Contract: server/src/repositories/machine-learning.repository.ts and machine-learning/immich_ml/main.py
of https://github.com/immich-app/immich.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from encoders.adapters.registry import EncoderId
from encoders.contract.errors import EncoderIdError, VisiontowerError
from encoders.contract.values import ImageSize
from encoders.images.price import size_of
from service.engine.values import EmbedRequest, EmbedResult, ReadyRequest, ReadyResult
from service.errors import InvalidOption, shown
from service.http.errors import InvalidBody, UnsupportedMediaType
from service.http.form import Part, form_parts
from service.http.json import NUMBER_BYTES, to_json
from service.http.json_body import json_object, kind_of
from service.http.openapi import error_responses, object_schema
from service.http.problems import headers, message, problem_type
from service.http.protocol import Answer, Asked, Incoming, Protocol, Route, media_type

_CLIP, _VISUAL, _TEXTUAL = "clip", "visual", "textual"
_EXAMPLE = '{"clip": {"visual": {"modelName": "ViT-B-32__openai"}}}'
_SHOWN = 3
"""Tasks that a refusal names."""


@dataclass(frozen=True)
class PredictReply:
    """size: of the image as its header says; None for a text, and for an image that does not say it."""

    size: ImageSize | None = None


def read_ping(incoming: Incoming) -> Asked:
    """Whether any model can be asked."""
    return Asked(ReadyRequest())


def write_ping(result: ReadyResult, reply: None) -> Answer:
    """Immich looks at the status alone."""
    if result.reason is None:
        return Answer(b"pong", "text/plain")
    return Answer(to_json({"detail": f"Not ready: {result.reason}."}), "application/json", 503)


def read_predict(incoming: Incoming) -> Asked:
    """A form with `entries`, and `image` or `text`.

    Raises UnsupportedMediaType, InvalidBody, or InvalidOption for another task than clip's.
    """
    if media_type(incoming.content_type) != "multipart/form-data":
        raise UnsupportedMediaType(incoming.content_type or "none", read="multipart/form-data")
    parts: dict[str, Part] = {}
    for part in form_parts(incoming.body, content_type=incoming.content_type):
        if part.name in parts:
            raise InvalidBody(f"The form has two parts '{shown(part.name)}'.")
        parts[part.name] = part
    kind, entry = _task(_needed(parts, "entries").text(advice="It holds JSON"))
    model = _served(_model_name(entry), incoming.settings.model)
    if kind == _TEXTUAL:
        text = _needed(parts, "text").text(advice="An image goes in the part 'image'")
        request = EmbedRequest((), [text], model=model, normalize=True)
        return Asked(request, PredictReply(), NUMBER_BYTES)
    image = _needed(parts, "image").content
    request = EmbedRequest([image], model=model, output="pooled", normalize=True)
    return Asked(request, PredictReply(size_of(image)), NUMBER_BYTES)


def write_predict(result: EmbedResult, reply: PredictReply) -> Answer:
    """The vector as a text, which Immich hands to its database as it is. Raises the image's error."""
    if len(result.texts):
        return Answer(to_json({_CLIP: to_json(result.texts[0]).decode()}), "application/json")
    (item,) = result.items
    if isinstance(item, VisiontowerError):
        raise item
    answer: dict[str, Any] = {_CLIP: to_json(item.pooled).decode()}
    if reply.size is not None:
        answer |= {"imageHeight": reply.size.height, "imageWidth": reply.size.width}
    return Answer(to_json(answer), "application/json")


def write_error(error: Exception) -> Answer:
    """In the form of Immich's own server. Immich reads the status alone, and asks its next URL."""
    return Answer(to_json({"detail": message(error)}), "application/json", problem_type(error).status, headers(error))


def _needed(parts: Mapping[str, Part], name: str) -> Part:
    if name not in parts:
        raise InvalidBody(f"The form has no part '{name}'. /predict takes 'entries', and 'image' or 'text'.")
    return parts[name]


def _task(entries: str) -> tuple[str, Mapping[str, Any]]:
    """The clip task, visual or textual, and what is said of it. Raises InvalidBody or InvalidOption."""
    tasks = json_object(entries.encode(), example=_EXAMPLE)
    others = [shown(name) for name in tasks if name != _CLIP]
    if others:
        raise InvalidOption(
            "entries",
            f"{', '.join(others[:_SHOWN])}: faces and text recognition are not served here, clip alone is. "
            "Immich asks the next of its machine-learning URLs.",
        )
    kinds = tasks.get(_CLIP)
    if not isinstance(kinds, dict) or len(kinds) != 1 or not kinds.keys() <= {_VISUAL, _TEXTUAL}:
        raise InvalidOption("entries", f"'entries' must ask for one clip task, visual or textual: {_EXAMPLE}.")
    ((kind, entry),) = kinds.items()
    if not isinstance(entry, dict):
        raise InvalidOption("entries", f"The task '{kind}' must be an object, and is {kind_of(entry)}.")
    return kind, entry


def _model_name(entry: Mapping[str, Any]) -> str:
    name = entry.get("modelName")
    if not isinstance(name, str):
        raise InvalidOption("modelName", f"'modelName' must be a text, and is {kind_of(name)}.")
    return name


def _served(name: str, ids: Sequence[str]) -> str:
    """The first served model of Immich's name: ARCHITECTURE__TAG is openclip:ARCHITECTURE@TAG.

    Capitals, dashes and underscores differ between Immich's list and open_clip's. Weights in a file are of the tag
    that the file is named after: openclip:ViT-B-32@/weights/openai.safetensors.

    If there is none, the id that it would have: whoever knows what the caller may see refuses it.
    """
    architecture, _, tag = name.rpartition("/")[2].replace("::", "__").partition("__")  # `::` in old versions
    for model in ids:
        try:
            found = EncoderId.parse(model)
        except EncoderIdError:
            continue
        tags = {_plain(found.weights), _plain(PurePath(found.weights).stem)} if found.weights else set()
        if tag and found.scheme == "openclip" and _plain(found.name) == _plain(architecture) and _plain(tag) in tags:
            return model
    return f"openclip:{architecture}@{tag}" if tag else name


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def _answers(description: str, content: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """Its errors, of every status, have `detail`."""
    errors = error_responses(object_schema({"detail": {"type": "string"}}))
    return {200: {"description": description, "content": content}, **errors}


_PING = {
    "summary": "Immich: whether requests can be answered",
    "description": "Immich looks at the status alone.",
    "operation_id": "immich_ping",
    "responses": _answers("They can.", {"text/plain": {"schema": {"type": "string", "enum": ["pong"]}}}),
}
_PREDICT = {
    "summary": "Immich: the clip tasks of its smart search",
    "description": "`modelName` is Immich's: `ViT-B-32__openai` is the served `openclip:ViT-B-32@openai`. `image` for "
    "a visual task, `text` for a textual one. `clip` is a vector of length 1, as text. Faces and text recognition are "
    "refused.",
    "operation_id": "immich_predict",
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": object_schema(
                        {
                            "entries": {"type": "string", "description": f"JSON: {_EXAMPLE}"},
                            "image": {"type": "string", "format": "binary"},
                            "text": {"type": "string"},
                        },
                        optional=("image", "text"),
                    )
                }
            },
        }
    },
    "responses": _answers(
        "The vector.",
        {
            "application/json": {
                "schema": object_schema(
                    {
                        "clip": {"type": "string", "example": "[0.6,0.8]"},
                        "imageHeight": {"type": "integer", "minimum": 0},
                        "imageWidth": {"type": "integer", "minimum": 0},
                    },
                    optional=("imageHeight", "imageWidth"),
                )
            }
        },
    ),
}

PROTOCOL = Protocol(
    "immich",
    (
        Route("/ping", read_ping, write_ping, method="GET", has_images=False, is_open=True, documentation=_PING),
        Route("/predict", read_predict, write_predict, documentation=_PREDICT),
    ),
    write_error,
    under=("/ping", "/predict"),
)
