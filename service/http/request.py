"""Request body -> images (still bytes, or a URL) and fields. Knows media types and limits; decodes no image.

A body is read up to its limit and no further, and kept in memory: nothing is spooled to disk. What is wrong with one
image stands at its index as the error it is; what is wrong with the request is raised.
"""

import base64
import binascii
import math
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from encoders.contract.errors import ImageError
from service.errors import BodyTooLarge, InvalidBase64, InvalidBody, TooManyImages, UnsupportedMediaType

_MAX_PARTS = 16_384
"""Parts of a multipart body; each costs parsing, so tiny ones are bounded too."""
_SPACE = re.compile(rb"\s+")


@dataclass(frozen=True)
class ImageUrl:
    """An image that is yet to be fetched."""

    url: str


Source: TypeAlias = bytes | ImageUrl | ImageError
"""One image of a request: its bytes, where they are, or why there are none."""


@dataclass(frozen=True)
class Body:
    """What a body held. fields: name and value, in order, repeated names included; texts in forms, any type in JSON."""

    images: list[Source] = field(default_factory=list)
    fields: list[tuple[str, object]] = field(default_factory=list)


async def read(chunks: AsyncIterator[bytes], *, content_length: str | None, max_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLarge before reading where the length is announced, else once it is over."""
    if content_length is not None and content_length.isdecimal() and int(content_length) > max_bytes:
        raise BodyTooLarge(actual=int(content_length), limit=max_bytes)
    received: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise BodyTooLarge(actual=None, limit=max_bytes)
        received.append(chunk)
    return received[0] if len(received) == 1 else b"".join(received)


def media_type(content_type: str) -> str:
    """Without parameters, in lower case."""
    return content_type.partition(";")[0].strip().lower()


def parse(body: bytes, *, content_type: str, max_images: int) -> Body:
    """Images and fields of a body.

    Raises UnsupportedMediaType, InvalidBody, InvalidOption or TooManyImages.
    """
    kind = media_type(content_type)
    if kind == "multipart/form-data":
        return _multipart(body, content_type=content_type, max_images=max_images)
    if kind == "application/json":
        return _json(body, max_images=max_images)
    if kind.startswith("image/") or kind == "application/octet-stream" or (not kind and not body):
        return Body(images=[body])
    raise UnsupportedMediaType(content_type or "none")


def _json(body: bytes, *, max_images: int) -> Body:
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
    return Body(images=[_source(image) for image in images], fields=list(fields.items()))


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


def _multipart(body: bytes, *, content_type: str, max_images: int) -> Body:
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

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_field": name,
            "on_header_value": value,
            "on_header_end": lambda: part.end_header(),
            "on_part_data": content,
            "on_part_end": end_part,
            "on_end": end,
        },
        math.inf,
    )
    try:
        parser.write(body)
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
        raise InvalidBody(f"The field '{name}' is not UTF-8 text.") from error
