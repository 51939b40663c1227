"""JPEG XL: the size that its header announces, since its decoder decodes before it says so."""

import struct

from encoders.contract.errors import UndecodableImage

_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width to height, by their number in the header (ISO/IEC 18181-1, SizeHeader)."""

_MOST_BOXES = 1024
"""Before the codestream."""


def announced_size(file: bytes) -> tuple[int, int]:
    """Width and height. Raises UndecodableImage if there is no header."""
    header = _codestream(file)[2:24]
    if len(header) < 2:
        raise UndecodableImage("JXL", "it has no header")
    return _size(int.from_bytes(header, "little"))


def _codestream(file: bytes) -> bytes:
    """Its beginning, bare or in a box."""
    if file[:2] == b"\xff\x0a":
        return file[:64]
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
            return file[body : body + 64]
        if kind == b"jxlp":  # in parts, each with its number before it
            return file[body + 4 : body + 68]
        if length < 8:
            break
        at += length
    return b""


def _size(bits: int) -> tuple[int, int]:
    """Width and height out of the header's bits, the lowest first."""

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    is_small = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if is_small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        return height * across // down, height
    return side(), height
