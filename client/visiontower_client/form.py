"""Images and fields -> the body of a multipart form. httpx's own writer takes several times as long."""

import secrets
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Body(NamedTuple):
    """The bytes of a request, and what they are."""

    content: bytes
    content_type: str


def form(images: Iterable[bytes], fields: Iterable[tuple[str, str]] = ()) -> Body:
    """Parts named `image`, in order, then the fields. Raises ValueError for a text that is no Unicode."""
    boundary = secrets.token_hex(16).encode()
    image = b"--" + boundary + b'\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'
    pieces: list[bytes] = []
    for content in images:
        pieces += (image, content, b"\r\n")
    for name, text in fields:
        pieces.append(b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n' % (boundary, name.encode()))
        pieces += (text.encode(), b"\r\n")
    pieces.append(b"--" + boundary + b"--\r\n")
    return Body(b"".join(pieces), f"multipart/form-data; boundary={boundary.decode()}")


def fields_of(name: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    """Fields of a form, all of one name. Raises TypeError for what is no str."""
    fields = [(name, text) for text in texts]
    for place, (_, text) in enumerate(fields):
        if not isinstance(text, str):
            raise TypeError(f"{name} {place} is {type(text).__name__}, and no str.")
    return fields


def templates_of(given: Sequence[str] | str) -> list[tuple[str, str]]:
    """The fields of templates, or of one. Raises as `fields_of`."""
    return fields_of("template", [given] if isinstance(given, str) else given)
