"""A JSON object or a form -> images (still bytes, or a URL) and fields. Decodes no image.

An error of one image stands at its index; an error of the whole request is raised.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.engine.values import Source
from service.errors import InvalidOption, shown
from service.http.errors import InvalidBody, TooManyImages
from service.http.json_body import json_object, kind_of
from service.http.protocols.native.hints import IMAGES_GO, as_image
from service.http.sources import source_of

_MAX_PARTS = 16_384
"""Parts of a multipart body; each costs parsing, so tiny ones are bounded too."""
_MAX_PARAMETERS = 16
"""Of a part's Content-Disposition."""
_MAX_CONTENT_TYPE = 1024
"""Characters of a form's Content-Type; a boundary has at most 70."""
_MAX_FIELD_BYTES = 1024 * 1024
"""Of one field of a form that is no image."""


@dataclass(frozen=True)
class Body:
    """What a body held. fields: name and value, in order, repeated names included; texts in forms, any type in JSON."""

    images: list[Source] = field(default_factory=list)
    fields: list[tuple[str, object]] = field(default_factory=list)


def json_body(body: bytes, *, max_images: int) -> Body:
    """Of a JSON object. Raises InvalidBody or TooManyImages."""
    fields = json_object(body, example='{"images": [...]}')
    images = fields.pop("images", [])
    if not isinstance(images, list):
        raise InvalidBody(f"'images' must be a list, of one image too, and is {kind_of(images)}.")
    for index, image in enumerate(images):
        if not isinstance(image, str):
            raise InvalidBody(
                f"'images' must be a list of strings: base64, data: URIs or http(s) URLs. Entry {index} is "
                f"{kind_of(image)}."
            )
    if len(images) > max_images:
        raise TooManyImages(actual=len(images), limit=max_images)
    return Body(images=[source_of(image) for image in images], fields=list(fields.items()))


class _Part:
    """The part being parsed."""

    def __init__(self) -> None:
        self.header_name = b""
        self.header_value = b""
        self.disposition = b""
        self.content_type = b""
        self.content: list[bytes] = []

    def end_header(self) -> None:
        header = self.header_name.lower()
        if header == b"content-disposition":
            self.disposition = self.header_value
        elif header == b"content-type":
            self.content_type = self.header_value
        self.header_name = self.header_value = b""

    @cached_property
    def parameters(self) -> dict[bytes, bytes]:
        """Of its Content-Disposition. Raises InvalidBody."""
        if self.disposition.count(b";") > _MAX_PARAMETERS:
            raise InvalidBody(f"A part's Content-Disposition has over {_MAX_PARAMETERS} parameters.")
        return parse_options_header(self.disposition)[1]

    @property
    def name(self) -> str:
        return self.parameters.get(b"name", b"").decode("utf-8", "replace")

    def text(self, content: bytes) -> str:
        """Of a field. Raises InvalidOption for an image or a long one, InvalidBody for another text than UTF-8."""
        try:
            if len(content) > _MAX_FIELD_BYTES and b"\0" not in content[:1024]:
                raise InvalidOption(
                    self.name,
                    f"The field '{shown(self.name)}' has {len(content):,} bytes, over {_MAX_FIELD_BYTES:,}. "
                    f"{IMAGES_GO}.",
                )
            if self.content_type[:6].lower() != b"image/":
                return content.decode()
        except UnicodeDecodeError as error:
            if b"filename" not in self.parameters and b"\0" not in content:
                raise InvalidBody(f"The field '{shown(self.name)}' is not UTF-8 text.") from error
        raise InvalidOption(self.name, f"The part '{shown(self.name)}' holds a file. {IMAGES_GO}.")


def _require_few_parts(body: bytes, delimiter: bytes) -> None:
    """Raises InvalidBody for what takes the parser long: it goes from delimiter to delimiter, and blank by blank."""
    if body.count(delimiter) > _MAX_PARTS:
        raise InvalidBody(f"The multipart body has over {_MAX_PARTS} parts.")
    if delimiter + b" " in body or delimiter + b"\t" in body:
        raise InvalidBody("The multipart body is broken: blanks follow its boundary.")


def form_body(body: bytes, *, content_type: str, max_images: int) -> Body:
    """Of a multipart form. Raises InvalidBody, InvalidOption or TooManyImages."""
    if len(content_type) > _MAX_CONTENT_TYPE:
        raise InvalidBody(f"The Content-Type has {len(content_type):,} characters, over {_MAX_CONTENT_TYPE:,}.")
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise InvalidBody("The Content-Type multipart/form-data has no boundary: leave the header to your HTTP client.")
    _require_few_parts(body, b"\r\n--" + boundary)
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
        content = part.content[0] if len(part.content) == 1 else b"".join(part.content)
        if part.name == "image":
            images.append(as_image(content) if content[:16].isascii() else content)
        else:
            fields.append((part.name, part.text(content)))

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
        if body.startswith(b"--") and not body.startswith(b"--" + boundary):
            raise InvalidBody(
                "The multipart body does not begin with the boundary that its Content-Type names: leave the header to "
                "your HTTP client."
            ) from error
        raise InvalidBody(f"The multipart body is broken: {error}.") from error
    if body and not is_complete:
        raise InvalidBody("The multipart body ends before its closing boundary.")
    if len(images) > max_images:
        raise TooManyImages(actual=len(images), limit=max_images)
    return Body(images=images, fields=fields)
