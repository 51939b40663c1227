"""JPEG XL: what its header announces. Its decoder decodes before it says so, and reads some kinds wrongly."""

import struct

from encoders.contract.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from encoders.images.containers import Picture

_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width to height, by their number in the header (ISO/IEC 18181-1, SizeHeader)."""

_MOST_BOXES = 1024
"""Before the codestream."""
_PEEK = 1024
"""Bytes of the codestream that are looked at. A header has some tens."""
_ALPHA = 0
_INKS = {2: "a spot colour", 4: "black ink", 5: "a camera's colour filter"}
"""Kinds of channels beside the colours, without which the colours are not the picture."""
_SAVE = "Save it as PNG"


class _Bits:
    """The header's, the lowest first; zeros behind its end."""

    def __init__(self, header: bytes) -> None:
        self._left = int.from_bytes(header, "little")

    def take(self, count: int) -> int:
        value, self._left = self._left & ((1 << count) - 1), self._left >> count
        return value

    def one_of(self, *choices: tuple[int, int]) -> int:
        """Of four: the least value, and how many bits are added to it."""
        least, count = choices[self.take(2)]
        return least + self.take(count)


def jxl(file: bytes, *, max_pixels: int) -> Picture:
    """Raises ImageTooLarge, UnsupportedImage for kinds that the decoder reads wrongly, and UndecodableImage."""
    bits = _header(file)
    width, height = _size(bits)
    if width * height > max_pixels:
        raise ImageTooLarge(pixels=width * height, limit=max_pixels)
    _check_kind(bits)
    return Picture("JXL", file, None, bits=16)


def announced_size(file: bytes) -> tuple[int, int]:
    """Width and height. Raises UndecodableImage if there is no header."""
    return _size(_header(file))


def _header(file: bytes) -> _Bits:
    header = _codestream(file)[2:]
    if len(header) < 2:
        raise UndecodableImage("JXL", "it has no header")
    return _Bits(header)


def _codestream(file: bytes) -> bytes:
    """Its beginning, bare or in a box."""
    if file[:2] == b"\xff\x0a":
        return file[:_PEEK]
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 16 > len(file):
            break
        length, kind = struct.unpack_from(">I4s", file, at)
        body = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", file, at + 8)
            body += 8
        if kind == b"jxlc":
            return file[body : body + _PEEK]
        if kind == b"jxlp":  # in parts, each with its number before it
            return file[body + 4 : body + 4 + _PEEK]
        if length < 8:
            break
        at += length
    return b""


def _size(bits: _Bits) -> tuple[int, int]:
    """Width and height."""
    is_small = bits.take(1)

    def side() -> int:
        return (bits.take(5) + 1) * 8 if is_small else bits.one_of((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    ratio = bits.take(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        return height * across // down, height
    return side(), height


def _check_kind(bits: _Bits) -> None:
    """Of the header behind the size (ImageMetadata). Raises UnsupportedImage."""
    if bits.take(1):
        return  # 8 bits, and nothing that is not usual
    if bits.take(1):
        bits.take(3)  # the orientation, which the decoder knows
        if bits.take(1):
            _size(bits)  # for screens
        if bits.take(1):
            raise UnsupportedImage("a JPEG XL with a preview", _SAVE)
        if bits.take(1):
            raise UnsupportedImage("an animated JPEG XL", "Save its first frame as PNG")
    depth = _depth(bits)
    bits.take(1)  # how decoders may compute
    kinds = [_channel(bits) for _ in range(bits.one_of((0, 0), (1, 0), (2, 4), (1, 12)))]
    bits.take(1)  # how the colours are coded
    is_grey = not bits.take(1) and not bits.take(1) and bits.one_of((0, 0), (1, 0), (2, 4), (18, 6)) == 1
    if is_grey and depth > 8 and _ALPHA in kinds:
        raise UnsupportedImage(f"a JPEG XL in grey of {depth} bits with alpha", _SAVE)


def _depth(bits: _Bits) -> int:
    """Bits of a sample."""
    if not bits.take(1):
        return bits.one_of((8, 0), (10, 0), (12, 0), (1, 6))
    depth = bits.one_of((32, 0), (16, 0), (24, 0), (1, 6))
    bits.take(4)  # of the exponent
    return depth


def _channel(bits: _Bits) -> int:
    """The kind of a channel beside the colours (ExtraChannelInfo). Raises UnsupportedImage."""
    if bits.take(1):
        return _ALPHA
    kind = bits.one_of((0, 0), (1, 0), (2, 4), (18, 6))
    _depth(bits)
    bits.one_of((0, 0), (3, 0), (4, 0), (1, 3))  # how much smaller it is
    bits.take(8 * bits.one_of((0, 0), (0, 4), (16, 5), (48, 10)))  # its name
    if kind == _ALPHA and bits.take(1):
        raise UnsupportedImage("a JPEG XL whose alpha is multiplied into its colours", _SAVE)
    if kind in _INKS:
        raise UnsupportedImage(f"a JPEG XL with a channel of {_INKS[kind]}", _SAVE)
    return kind
