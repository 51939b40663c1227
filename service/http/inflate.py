"""A body in the Content-Encoding it came in -> the body itself, never larger than the limit. For every protocol.

The bytes are taken from the account as they come out.

RFC 9110, section 8.4.1: gzip (also by the name x-gzip) and deflate, which is zlib's form; its bare form is sent too.
"""

import io
import zlib

from service.http.errors import BodyTooLarge, InvalidBody, UnsupportedContentEncoding
from service.memory.account import Account, Hold

_GZIP, _ZLIB, _BARE = 31, 15, -15
"""zlib's names of the forms: its argument wbits."""
_FREE_BYTES, _MOST_READ = 65_536, 2
"""Bytes that may be read beyond so many for each that comes out. Compressed data are about as long as what they hold at
the most; blocks and members that hold nothing take seconds for a body.
"""
_CHUNK_BYTES = 1024
"""Read at a time: up to a thousand times as many come out, before the account is asked for them."""


def inflated(body: bytes, encoding: str, *, max_bytes: int, account: Account, is_json: bool = False) -> bytes:
    """The body. On a thread. What it takes of the account is given back at the end: the caller takes it anew.

    A caller that has left cannot give back what a thread still takes. So the thread does.

    Raises UnsupportedContentEncoding, InvalidBody for broken data, BodyTooLarge, HostMemoryFull or OverHostMemory.
    """
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            form = _GZIP
        case "deflate":
            form = _ZLIB if _is_zlib(body) else _BARE
        case _:
            raise UnsupportedContentEncoding(encoding)
    with account.hold("body") as hold:
        return _inflated(body, form, max_bytes=max_bytes, hold=hold, is_json=is_json)


def _is_zlib(body: bytes) -> bool:
    """By the two bytes of its header (RFC 1950)."""
    return len(body) > 1 and body[0] & 15 == zlib.DEFLATED and (body[0] << 8 | body[1]) % 31 == 0


def _inflated(body: bytes, form: int, *, max_bytes: int, hold: Hold, is_json: bool) -> bytes:
    view, at, room, pieces = memoryview(body), 0, max_bytes, io.BytesIO()
    free = _FREE_BYTES
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
            raise BodyTooLarge(actual=None, limit=max_bytes, is_inflated=True, is_json=is_json)
        hold.grow(len(piece))
        pieces.write(piece)
        read = len(chunk) - len(stream.unused_data)
        at += read
        free += _MOST_READ * len(piece) - read
        if free < 0:
            raise InvalidBody("The compressed body is nearly empty: it is many times as long as what it holds.")
    if not stream.eof:
        raise InvalidBody("The compressed body ends too early.")
    return pieces.getvalue()
