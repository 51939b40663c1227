"""A body in the Content-Encoding it came in -> the body itself, never larger than the limit. For every protocol.

RFC 9110, section 8.4.1: gzip (also by the name x-gzip) and deflate, which is zlib's form; its bare form is sent too.
"""

import zlib

from service.http.errors import BodyTooLarge, InvalidBody, UnsupportedContentEncoding

_GZIP, _ZLIB, _BARE = 31, 15, -15
"""zlib's names of the forms: its argument wbits."""
_CHUNK_BYTES = 16_384
"""Read at a time: what lies behind the end of a gzip member is copied, and there may be many members."""


def inflated(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """Raises UnsupportedContentEncoding, InvalidBody for broken data, or BodyTooLarge."""
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            return _inflated(body, _GZIP, max_bytes=max_bytes)
        case "deflate":
            return _inflated(body, _ZLIB if _is_zlib(body) else _BARE, max_bytes=max_bytes)
    raise UnsupportedContentEncoding(encoding)


def _is_zlib(body: bytes) -> bool:
    """By the two bytes of its header (RFC 1950)."""
    return len(body) > 1 and body[0] & 15 == zlib.DEFLATED and (body[0] << 8 | body[1]) % 31 == 0


def _inflated(body: bytes, form: int, *, max_bytes: int) -> bytes:
    view, at, room, pieces = memoryview(body), 0, max_bytes, []
    stream = zlib.decompressobj(form)
    while at < len(view):
        if stream.eof:
            if form != _GZIP:
                raise InvalidBody("The body goes on behind the end of its deflated data.")
            stream = zlib.decompressobj(form)  # a gzip file may have several members
        chunk = view[at : at + _CHUNK_BYTES]
        try:
            piece = stream.decompress(chunk, room + 1)
        except zlib.error as error:
            name = "gzip" if form == _GZIP else "deflate"
            raise InvalidBody(f"The body is not the {name} data that Content-Encoding announces: {error}.") from error
        room -= len(piece)
        if room < 0:
            raise BodyTooLarge(actual=None, limit=max_bytes, is_inflated=True)
        pieces.append(piece)
        at += len(chunk) - len(stream.unused_data)
    if not stream.eof:
        raise InvalidBody("The compressed body ends too early.")
    return b"".join(pieces)
