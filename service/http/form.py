"""A multipart form -> its parts. It knows no protocol: what a part is for is said by whoever reads it."""

import math
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidOption, shown
from service.http.errors import InvalidBody

_MAX_PARTS = 16_384
"""Parts of a multipart body; each costs parsing, so tiny ones are bounded too."""
_MAX_PARAMETERS = 16
"""Of a part's Content-Disposition."""
_MAX_CONTENT_TYPE = 1024
"""Characters of a form's Content-Type; a boundary has at most 70."""
_MAX_FIELD_BYTES = 1024 * 1024
"""Of one field of a form that is no image."""


@dataclass(frozen=True)
class Part:
    """One part. content_type: as it came, empty if it says none. is_file: it has a file's name."""

    name: str
    content: bytes
    content_type: bytes = b""
    is_file: bool = False

    def text(self, *, advice: str) -> str:
        """Of a field. advice: a sentence on where files go.

        Raises InvalidOption for a file or a long text, InvalidBody for another text than UTF-8.
        """
        try:
            if len(self.content) > _MAX_FIELD_BYTES and b"\0" not in self.content[:1024]:
                raise InvalidOption(
                    self.name,
                    f"The field '{shown(self.name)}' has {len(self.content):,} bytes, over {_MAX_FIELD_BYTES:,}. "
                    f"{advice}.",
                )
            if self.content_type[:6].lower() != b"image/":
                return self.content.decode()
        except UnicodeDecodeError as error:
            if not self.is_file and b"\0" not in self.content:
                raise InvalidBody(f"The field '{shown(self.name)}' is not UTF-8 text.") from error
        raise InvalidOption(self.name, f"The part '{shown(self.name)}' holds a file. {advice}.")


class _Parsed:
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

    def part(self) -> Part:
        """Raises InvalidBody."""
        if self.disposition.count(b";") > _MAX_PARAMETERS:
            raise InvalidBody(f"A part's Content-Disposition has over {_MAX_PARAMETERS} parameters.")
        parameters = parse_options_header(self.disposition)[1]
        return Part(
            parameters.get(b"name", b"").decode("utf-8", "replace"),
            self.content[0] if len(self.content) == 1 else b"".join(self.content),
            self.content_type,
            is_file=b"filename" in parameters,
        )


def _require_few_parts(body: bytes, delimiter: bytes) -> None:
    """Raises InvalidBody for what takes the parser long: it goes from delimiter to delimiter, and blank by blank."""
    if body.count(delimiter) > _MAX_PARTS:
        raise InvalidBody(f"The multipart body has over {_MAX_PARTS} parts.")
    if delimiter + b" " in body or delimiter + b"\t" in body:
        raise InvalidBody("The multipart body is broken: blanks follow its boundary.")


def form_parts(body: bytes, *, content_type: str) -> list[Part]:
    """The parts of a multipart form, in order. content_type: of the body, with its boundary. Raises InvalidBody."""
    if len(content_type) > _MAX_CONTENT_TYPE:
        raise InvalidBody(f"The Content-Type has {len(content_type):,} characters, over {_MAX_CONTENT_TYPE:,}.")
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise InvalidBody("The Content-Type multipart/form-data has no boundary: leave the header to your HTTP client.")
    _require_few_parts(body, b"\r\n--" + boundary)
    parts: list[Part] = []
    parsed = _Parsed()
    is_complete = False

    def begin() -> None:
        nonlocal parsed
        parsed = _Parsed()

    def name(chunk: bytes, start: int, end: int) -> None:
        parsed.header_name += chunk[start:end]

    def value(chunk: bytes, start: int, end: int) -> None:
        parsed.header_value += chunk[start:end]

    def content(chunk: bytes, start: int, end: int) -> None:
        parsed.content.append(chunk[start:end])

    def end() -> None:
        nonlocal is_complete
        is_complete = True

    callbacks: Any = {
        "on_part_begin": begin,
        "on_header_field": name,
        "on_header_value": value,
        "on_header_end": lambda: parsed.end_header(),
        "on_part_data": content,
        "on_part_end": lambda: parts.append(parsed.part()),
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
    return parts
