"""A JSON object or a form -> images (still bytes, or a URL) and fields. Decodes no image.

An error of one image stands at its index; an error of the whole request is raised.
"""

import base64
import binascii
import math
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.engine.values import ImageUrl, Source
from service.errors import InvalidOption, shown
from service.http.errors import InvalidBase64, InvalidBody, TooManyImages

_MAX_PARTS = 16_384
"""Parts of a multipart body; each costs parsing, so tiny ones are bounded too."""
_SPACE = re.compile(rb"\s+")


@dataclass(frozen=True)
class Body:
    """What a body held. fields: name and value, in order, repeated names included; texts in forms, any type in JSON."""

    images: list[Source] = field(default_factory=list)
    fields: list[tuple[str, object]] = field(default_factory=list)


def json_body(body: bytes, *, max_images: int) -> Body:
    """Of a JSON object. Raises InvalidBody, InvalidOption or TooManyImages."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidBody(f"The body is not valid JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise InvalidBody("The JSON body must be an object.")
    images = fields.pop("images", [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise InvalidBody("'images' must be a list of strings: base64, data: URIs or http(s) URLs.")
    if len(images) > max_images:
        raise TooManyImages(actual=len(images), limit=max_images)
    for name, value in fields.items():
        _require_flat(name, value)
    return Body(images=[_source(image) for image in images], fields=list(fields.items()))


def _require_flat(name: str, value: object) -> None:
    """No option is nested; a caller's nest may be deeper than Python can walk."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, list | dict):
            raise InvalidOption(name, f"'{shown(name)}' must be a value or a list of values, not nested ones.")


def _source(text: str) -> Source:
    scheme = text[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return ImageUrl(text)
    if scheme.startswith("data:"):
        head, comma, payload = text.partition(",")
        if not comma:
            return InvalidBase64("the data: URI has no comma")
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(payload)
        text = payload
    try:
        return base64.b64decode(_SPACE.sub(b"", text.encode("ascii")), validate=True)
    except binascii.Error as error:
        return InvalidBase64(str(error).rstrip("."))
    except UnicodeEncodeError:
        return InvalidBase64("it has characters outside ASCII")


class _Part:
    """The part being parsed."""

    def __init__(self) -> None:
        self.header_name = b""
        self.header_value = b""
        self.disposition = b""
        self.content: list[bytes] = []

    def end_header(self) -> None:
        if self.header_name.lower() == b"content-disposition":
            self.disposition = self.header_value
        self.header_name = self.header_value = b""

    @property
    def name(self) -> str:
        _, parameters = parse_options_header(self.disposition)
        return parameters.get(b"name", b"").decode("utf-8", "replace")


def form_body(body: bytes, *, content_type: str, max_images: int) -> Body:
    """Of a multipart form. Raises InvalidBody or TooManyImages."""
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise InvalidBody("The Content-Type multipart/form-data has no boundary.")
    images: list[Source] = []
    fields: list[tuple[str, object]] = []
    part = _Part()
    is_complete = False

    def begin() -> None:
        nonlocal part
        part = _Part()

    def name(chunk: bytes, start: int, end: int) -> None:
        part.header_name += chunk[start:end]

    def value(chunk: bytes, start: int, end: int) -> None:
        part.header_value += chunk[start:end]

    def content(chunk: bytes, start: int, end: int) -> None:
        part.content.append(chunk[start:end])

    def end_part() -> None:
        if len(images) + len(fields) >= _MAX_PARTS:
            raise InvalidBody(f"The multipart body has over {_MAX_PARTS} parts.")
        content = part.content[0] if len(part.content) == 1 else b"".join(part.content)
        if part.name == "image":
            images.append(content)
        else:
            fields.append((part.name, _text(part.name, content)))

    def end() -> None:
        nonlocal is_complete
        is_complete = True

    callbacks: Any = {
        "on_part_begin": begin,
        "on_header_field": name,
        "on_header_value": value,
        "on_header_end": lambda: part.end_header(),
        "on_part_data": content,
        "on_part_end": end_part,
        "on_end": end,
    }
    try:
        MultipartParser(boundary, callbacks, math.inf).write(body)
    except FormParserError as error:
        raise InvalidBody(f"The multipart body is broken: {error}.") from error
    if body and not is_complete:
        raise InvalidBody("The multipart body ends before its closing boundary.")
    if len(images) > max_images:
        raise TooManyImages(actual=len(images), limit=max_images)
    return Body(images=images, fields=fields)


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidBody(f"The field '{shown(name)}' is not UTF-8 text.") from error
