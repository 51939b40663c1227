"""A body -> the JSON object in it."""

import codecs
from itertools import islice
from typing import Any

import orjson

from encoders.images.signatures import format_of
from service.errors import shown
from service.http.errors import InvalidBody, UnsupportedMediaType
from service.http.protocol import Incoming, media_type

_MAX_MARKS = 250_000
"""Commas and opening brackets: there are about as many values, and while they are read nothing else runs."""


def fields_of(incoming: Incoming, *, example: str) -> dict[str, Any]:
    """Of a request that reads JSON alone. Raises UnsupportedMediaType or InvalidBody."""
    if media_type(incoming.content_type) != "application/json":
        raise UnsupportedMediaType(incoming.content_type or "none", read="application/json")
    return json_object(incoming.body, example=example)


def json_object(body: bytes, *, example: str) -> dict[str, Any]:
    """example: of a right one. Raises InvalidBody."""
    if sum(map(body.count, (b",", b"[", b"{"))) > _MAX_MARKS:
        raise InvalidBody(
            f"The JSON body has over {_MAX_MARKS:,} commas and brackets: that is no list of images or texts."
        )
    try:
        fields = orjson.loads(body.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        raise InvalidBody(_not_json(body, str(error))) from error
    if not isinstance(fields, dict):
        raise InvalidBody(f"The JSON body must be an object, {example}, and is {kind_of(fields)}.")
    return fields


def _not_json(body: bytes, reason: str) -> str:
    """Why a body cannot be read as JSON."""
    if kind := format_of(body):
        return f"The body is an image ({kind}), but Content-Type says JSON: send it with Content-Type: image/*."
    if body.startswith(b"\x1f\x8b"):
        return "The body is gzip, not JSON: say so with Content-Encoding: gzip."
    is_wide = b"\0" in body[:4] and body[:4].strip(b"\0 \t\r\n")[:1] in (b"{", b"[", b'"')
    if is_wide or body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "The JSON body is in UTF-16 or UTF-32: send it in UTF-8."
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"The JSON body is not UTF-8, as JSON must be: see its byte {error.start}."
    return f"The body is not valid JSON: {reason}."


def kind_of(value: object) -> str:
    """JSON's name of a value's type, with the keys of an object."""
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(shown(key)[:40] for key in islice(value, 5))}"
    names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
