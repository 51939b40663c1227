"""The text that stands for an image in JSON -> a source: base64 in any of its spellings, a data: URI, or a URL."""

import base64
import binascii
import re

import numpy as np

from service.engine.values import ImageUrl, Source
from service.errors import shown
from service.http.errors import InvalidBase64

_SPACE = b" \t\r\n\v\f"
_FOREIGN = re.compile(rb"[^A-Za-z0-9+/=]")
_HEAD = 1000
"""Characters of a data: URI, at most, ahead of its comma."""
_SLICE = 65_536
_ADDRESS = re.compile(
    r"[a-z][a-z0-9+.-]{0,20}://|[a-z]:\\|\.{0,2}[/\\][^,;]*\.[a-z]{3,4}$|[\w ().-]{1,200}\.[a-z]{3,4}$", re.IGNORECASE
)
"""Of something that the server does not fetch: file://, s3://, C:\\, /photos/cat.jpg, cat.jpg."""
_HEADLESS = re.compile(r"(?:image/[\w.+-]{1,40};?\s*)?base64\s*[,:]", re.IGNORECASE)
"""The beginning of a data: URI that has lost its first word."""
_HEXADECIMAL = re.compile(r"(?:ffd8ff|89504e47|47494638|52494646|424d|49492a00|4d4d002a)[0-9a-f]{32}", re.IGNORECASE)
"""How JPEG, PNG, GIF, WebP, BMP and TIFF begin in hexadecimal, which is base64 of something else."""
_DIGITS = np.full(256, 16, np.uint8)
_DIGITS[list(b"0123456789abcdef")] = range(16)
_DIGITS[list(b"ABCDEF")] = range(10, 16)
"""The values of hexadecimal digits by their byte; 16 of others."""
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_SIGNATURES = (b"/9j/", b"iVBORw0KGgo", b"R0lGOD", b"UklGR", b"Qk", b"SUkqA", b"TU0AK", b"AAAA")
"""How base64 of JPEG, PNG, GIF, WebP, BMP, TIFF and AVIF begins."""
_BASE64 = re.compile(rb"[A-Za-z0-9+/_=-]{32,}")


def source_of(text: str) -> Source:
    """An image as bytes, a URL that is yet to be fetched, or the error that it is."""
    text = text.strip()
    scheme = text[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return ImageUrl(text)
    if not scheme.startswith("data:"):
        return _decoded(text)
    comma = text.find(",", 0, _HEAD)
    if comma < 0:
        return InvalidBase64("the data: URI has no comma")
    head, payload = text[:comma], text[comma + 1 :]
    words = [word.strip().lower() for word in head.split(";")]
    if "base64" in words[1:] or is_base64(payload[:64].encode("utf-8", "replace")):
        return _decoded(payload)
    return _unquoted(payload)


def _unquoted(text: str) -> bytes:
    """Percent-decoded, in slices: positions take eight times as much as what they are of."""
    quoted, slices, start = text.encode("utf-8", "replace"), [], 0
    while start < len(quoted):
        end = start + _SLICE
        cut = quoted.rfind(b"%", end - 2, end)
        end = end if cut < 0 else cut
        slices.append(_unescaped(quoted[start:end]))
        start = end
    return b"".join(slices)


def _unescaped(quoted: bytes) -> bytes:
    """As urllib.parse.unquote_to_bytes, which makes an object of every '%'."""
    letters = np.frombuffer(quoted, np.uint8)
    digits = _DIGITS[letters]
    escapes = np.flatnonzero((letters[:-2] == ord("%")) & (digits[1:-1] < 16) & (digits[2:] < 16))
    decoded, is_kept = letters.copy(), np.ones(len(letters), bool)
    decoded[escapes] = digits[escapes + 1] * 16 + digits[escapes + 2]
    is_kept[escapes + 1] = is_kept[escapes + 2] = False
    return decoded[is_kept].tobytes()


def is_base64(beginning: bytes) -> bool:
    """Whether an image in base64 begins so, in 64 bytes of it."""
    return beginning.startswith(_SIGNATURES) and _BASE64.fullmatch(beginning) is not None


def _decoded(text: str) -> Source:
    try:
        decoded = base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error is one
        return _leniently_decoded(text)
    if is_base64(decoded[:64]) or decoded[:5].lower() == b"data:":
        return InvalidBase64("it is base64 of base64: encode the image once")
    return InvalidBase64("it is hexadecimal") if _HEXADECIMAL.match(text) else decoded


def _leniently_decoded(text: str) -> Source:
    """Of base64 that is percent-encoded, in the alphabet for URLs, broken into lines, or not padded."""
    raw = _unquoted(text) if "%" in text else text.encode("utf-8", "replace")
    raw = raw.translate(_URL_SAFE, _SPACE).rstrip(b"=")
    if len(raw) % 4 != 1:
        try:
            return base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
        except binascii.Error:
            pass
    return InvalidBase64(_reason(text, raw))


def _reason(text: str, raw: bytes) -> str:
    if _ADDRESS.match(text[:300]):
        return f"'{shown(text)}' is an address; the server takes http(s) URLs, where allowed, and reads no files"
    if text.startswith(("b'", 'b"')):
        return "it is how Python shows bytes (b'...'): decode() what b64encode gives"
    if _HEADLESS.match(text):
        return "it begins as a data: URI without its 'data:'"
    if found := _FOREIGN.search(raw):
        character = raw[found.start() : found.start() + 4].decode("utf-8", "replace")[0]
        return f"base64 has no {character!r}, which stands at {found.start()}"
    if b"=" in raw:
        return "it goes on behind its padding ('=')"
    return f"{len(raw)} characters cannot be: it has been cut, or something got lost"
