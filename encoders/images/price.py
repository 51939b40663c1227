"""What decoding an image file will take, told from its header and structure. Decodes nothing, in well under 1 ms.

A file is **plain** if its pixels bound the time of its decode, and they are few enough that other images can wait for
it: baseline and ordinary progressive JPEG, 8-bit PNG, still WebP. Everything else is dear, rare, or does not say in its
header what it takes. It is decoded in a process that can be killed (process.py).
"""

import re
import struct
from dataclasses import dataclass, replace
from math import isqrt
from typing import NamedTuple

from encoders.contract.errors import ImageTooLarge
from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize
from encoders.images.jxl import announced_size
from encoders.images.preprocess import BAND_PIXELS, enough, padded_size
from encoders.images.signatures import format_of

_MIB = 1024 * 1024
_PLAIN_WORK = 32_000_000
"""Work up to which a file can be plain: a baseline JPEG of 32 megapixels takes some 0.2 s."""

_PIXEL_BYTES, _BESIDE = 4, 1024 * 1024
"""Bytes of a plain file: a pixel's samples, not compressed, and metadata. Bytes that fill no pixels take time too."""

_MOST_SEGMENTS = 512
"""JPEG segments before the first scan, TIFF entries, boxes: a file with more is not plain, and priced as unknown."""
_MOST_SCANS = 32
"""Of a plain progressive JPEG. Writers make 6 or 10."""
_MOST_COUNTED = 4 * _MIB
"""Bytes in which scans are counted."""
_PEEK = 256 * 1024

UNKNOWN_PIXELS = 1_000_000
"""A file that does not say its size where it is looked for is priced, and held, to so many pixels."""

_RGB, _ARRAY, _UPRIGHT = 4, 3, 4
"""Bytes a pixel: Pillow's RGB, NumPy's, and the copy of a picture that is turned or converted."""
_BAND = 20
"""Bytes a pixel of a band, while it is converted."""
_FIXED = 256 * 1024
"""Of tables and buffers."""
_ENLARGED = 48 * _MIB
"""Of a narrow strip, which is resized to up to 4 megapixels before it is cut."""
_STRIP = 8

_GROUP, _MOST_GROUPS, _GROUP_PIXELS = 5800, 1 << 16, 16
"""Of lossless WebP's groups of Huffman codes: bytes of tables, the most in a file, and pixels that each needs. It needs
2.5 bytes of the file too."""
_MOST_TABLES = 32 * _MIB
"""Of all groups: some 5,800; writers make up to 2,600. Where a file has room for more, the process that decodes it is
held to so many bytes."""

_CPU_S, _CPU_S_PER_WORK, _MOST_WORK = 5.0, 0.03e-6, 16
"""Seconds of processor time that a decode may take, several times what an honest file needs; _MOST_WORK: a pixel. What
is over that makes a file stand further behind, and gives it no more time."""


class _Kind(NamedTuple):
    """What formats take in the process that decodes: bytes a pixel at the peak, and work a pixel (baseline JPEG: 1)."""

    nbytes: int
    work: int


_KINDS = {
    "PNG": _Kind(16, 6),  # of 16 bits
    "WEBP": _Kind(24, 4),
    "GIF": _Kind(16, 4),
    "BMP": _Kind(12, 2),
    "TIFF": _Kind(20, 6),
    "PPM": _Kind(16, 6),
    "AVIF": _Kind(24, 8),
    "HEIF": _Kind(24, 8),
    "JXL": _Kind(40, 16),
}


@dataclass(frozen=True, slots=True)
class Price:
    """What an image takes until its pixels are made.

    decode_bytes: memory at the peak of the decode, in the process that decodes. nbytes: memory in all processes, until
    the image is resized; the file itself, as it came, is not in it. work: time, in pixels of a baseline JPEG. cpu_s:
    seconds of processor time after which a decode is given up.
    """

    is_plain: bool
    decode_bytes: int
    nbytes: int
    work: int
    cpu_s: int


def price(
    image_bytes: bytes, preprocessing: Preprocessing, size: ImageSize, *, exact: bool = False, max_pixels: int
) -> Price:
    """The price of `decode_for` and of resizing to `size`. A file that is no image is plain, and costs nearly nothing.

    Raises ImageTooLarge if the header says so; whatever else is wrong is the decoder's to say.
    """
    depth = 8
    if image_bytes.startswith(b"\xff\xd8\xff"):
        name, found = "JPEG", _jpeg(image_bytes)
        width, height = found.size if all(found.size) else (isqrt(UNKNOWN_PIXELS),) * 2
    elif image_bytes.startswith(b"\x89PNG\r\n\x1a\n"):
        is_first = image_bytes[12:16] == b"IHDR" and len(image_bytes) > 32
        name = "PNG"
        width, height, depth = struct.unpack_from(">IIB", image_bytes, 16) if is_first else (0, 0, 16)
    else:
        image_format = format_of(image_bytes)
        if image_format is None:
            return Price(True, _FIXED, _FIXED, 1, int(_CPU_S))
        name = image_format
        width, height = _size(name, image_bytes)
    if width * height > max_pixels and name not in ("AVIF", "HEIF"):  # of several pictures the largest is found
        raise ImageTooLarge(pixels=width * height, limit=max_pixels)
    is_plain = len(image_bytes) <= _PIXEL_BYTES * width * height + _BESIDE
    if name == "JPEG":
        part = 1 if exact else part_of(width, height, enough(preprocessing, size))
        decoded = width // part, height // part
        work = width * height * (3 + found.scans // 4 if found.coefficients else 1) + len(image_bytes)
        decode_bytes = 2 * len(image_bytes) + found.coefficients + decoded[0] * decoded[1] * (_RGB + _UPRIGHT)
        is_plain = is_plain and found.is_common and found.scans <= _MOST_SCANS and work <= _PLAIN_WORK
        cost = _price(is_plain, decode_bytes, work, decoded, preprocessing, size)
        most = int(_CPU_S + _CPU_S_PER_WORK * (_MOST_WORK * width * height + len(image_bytes)))
        return cost if cost.cpu_s <= most else replace(cost, cpu_s=most)
    if name == "PNG" and depth <= 8:
        work = (3 * width * height + len(image_bytes)) * (2 if image_bytes[28] else 1)  # interlaced: inflated twice
        decode_bytes = len(image_bytes) + width * height * (_RGB + _UPRIGHT)
        return _price(is_plain and work <= _PLAIN_WORK, decode_bytes, work, (width, height), preprocessing, size)
    pixels = min(width * height, max_pixels) or UNKNOWN_PIXELS
    kind = _KINDS[name]
    work = kind.work * pixels + len(image_bytes)
    tables = _webp_tables(image_bytes, pixels) if name == "WEBP" else 0
    is_plain = is_plain and name == "WEBP" and work <= _PLAIN_WORK
    is_plain = is_plain and tables <= _MOST_TABLES and not _is_animated(image_bytes)
    copies = 1 if is_plain else 3
    decode_bytes = copies * len(image_bytes) + kind.nbytes * pixels + min(tables, _MOST_TABLES)
    sides = (width, height) if pixels == width * height else (isqrt(pixels), isqrt(pixels))
    return _price(is_plain, decode_bytes, work, sides, preprocessing, size)


def size_of(image_bytes: bytes) -> ImageSize | None:
    """The size that an image's header says, before it is turned upright; None if none is found where it is looked for.

    Of several pictures in a file it is the largest one's, in HEIF as it is coded: that may be padded.
    """
    if image_bytes.startswith(b"\xff\xd8\xff"):
        width, height = _jpeg(image_bytes).size
    elif image_bytes.startswith(b"\x89PNG\r\n\x1a\n"):
        is_first = image_bytes[12:16] == b"IHDR" and len(image_bytes) >= 24
        width, height = struct.unpack_from(">II", image_bytes, 16) if is_first else (0, 0)
    else:
        name = format_of(image_bytes)
        width, height = (0, 0) if name is None else _size(name, image_bytes)
    return ImageSize(height, width) if width and height else None


def part_of(width: int, height: int, at_least: int) -> int:
    """The part of its size that a JPEG is decoded at: 1, 2, 4 or 8, so that both sides keep `at_least` pixels.

    Both sides must divide by it: else the last row or column stands for less than the others, and resizing would move
    all of the picture by up to half a pixel.
    """
    for part in (8, 4, 2):
        if min(width, height) // part >= at_least and not width % part and not height % part:
            return part
    return 1


def _price(
    is_plain: bool,
    decode_bytes: int,
    work: int,
    size: tuple[int, int],
    preprocessing: Preprocessing,
    target: ImageSize,
) -> Price:
    """size: width and height of the decoded picture."""
    pixels = size[0] * size[1]
    decode_bytes += _BAND * min(pixels, BAND_PIXELS) + _FIXED
    made = _ARRAY * pixels
    if preprocessing.resize == "pad" and (padded := padded_size(ImageSize(size[1], size[0]), target)):
        made = (_RGB + _ARRAY) * padded.height * padded.width
    if max(size) > _STRIP * min(size):
        made += _ENLARGED
    nbytes = decode_bytes + made if is_plain else decode_bytes + _RGB * pixels + made  # what is freed is not given back
    return Price(is_plain, decode_bytes, nbytes, work, int(_CPU_S + _CPU_S_PER_WORK * work))


class _Jpeg(NamedTuple):
    """size: width and height, (0, 0) if it was not found. coefficients: bytes that hold them all; 0 if none need be."""

    size: tuple[int, int] = (0, 0)
    coefficients: int = 0
    scans: int = 1
    is_common: bool = False


def _jpeg(file: bytes) -> _Jpeg:
    """What the segments before the first scan say. A decoder keeps all coefficients if there is more than one scan."""
    at, marker, frame, components = 2, 0, 0, b""
    size = (0, 0)
    for _ in range(_MOST_SEGMENTS):
        if at + 10 > len(file):
            return _Jpeg(size)
        if file[at] != 0xFF:  # rubbish between segments
            at = file.find(b"\xff", at, at + _PEEK)
            if at < 0:
                return _Jpeg(size)
            continue
        marker = file[at + 1]
        if marker == 0xFF or marker <= 1 or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA or marker == 0xD9:
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = marker
            size = int.from_bytes(file[at + 7 : at + 9], "big"), int.from_bytes(file[at + 5 : at + 7], "big")
            components = file[at + 10 : at + 10 + 3 * file[at + 9]]
        at += 2 + max(2, int.from_bytes(file[at + 2 : at + 4], "big"))
    else:
        return _Jpeg(size)
    if marker == 0xD9 or not components:
        return _Jpeg(size)
    if frame in (0xC0, 0xC1) and file[at + 4] * 3 >= len(components):
        return _Jpeg(size, is_common=True)
    is_common = frame in (0xC0, 0xC1, 0xC2) and len(file) - at <= _MOST_COUNTED  # not the arithmetic ones
    scans = file.count(b"\xff\xda", at) if is_common else _MOST_SCANS
    return _Jpeg(size, _coefficients(size, components), scans, is_common)


def _coefficients(size: tuple[int, int], components: bytes) -> int:
    """Bytes of all coefficients, 2 each. components: 3 bytes each, of which the second says how it is sampled."""
    across = [max(1, factors >> 4) for factors in components[1::3]]
    down = [max(1, factors & 15) for factors in components[1::3]]
    units = -(-size[0] // (8 * max(across, default=1))) * -(-size[1] // (8 * max(down, default=1)))
    return 128 * units * sum(x * y for x, y in zip(across, down, strict=True))


def _is_animated(file: bytes) -> bool:
    return file[12:16] == b"VP8X" and len(file) > 20 and bool(file[20] & 2)


_PPM = re.compile(rb"P.(?:\s|#[^\r\n]*+)*+(\d{1,9})(?:\s|#[^\r\n]*+)++(\d{1,9})")


def _size(name: str, file: bytes) -> tuple[int, int]:
    """Width and height as the header says, (0, 0) if it does not say them where they are looked for."""
    try:
        match name:
            case "WEBP":
                return _webp_size(file)
            case "GIF":
                return struct.unpack_from("<HH", file, 6)
            case "BMP":
                return _bmp_size(file)
            case "TIFF":
                return _tiff_size(file)
            case "PPM":
                found = _PPM.match(file, 0, _PEEK)
                return (int(found[1]), int(found[2])) if found else (0, 0)
            case "JXL":
                return announced_size(file)
            case _:
                return _iso_size(file)
    except Exception:  # a broken header is the decoder's to name
        return 0, 0


def _webp_size(file: bytes) -> tuple[int, int]:
    kind = file[12:16]
    if kind == b"VP8X":
        return int.from_bytes(file[24:27], "little") + 1, int.from_bytes(file[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(file[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", file, 26)
    return width & 0x3FFF, height & 0x3FFF


def _webp_tables(file: bytes, pixels: int) -> int:
    """Bytes that the tables of a still WebP's lossless part, its picture or its alpha, may take; 0 if it has none."""
    at, begin = 12, 0
    for _ in range(_MOST_SEGMENTS):
        kind, length = file[at : at + 4], int.from_bytes(file[at + 4 : at + 8], "little")
        if kind == b"VP8 " or at >= len(file):
            break
        begin = at if kind in (b"ALPH", b"VP8L") and not begin else begin
        at += 8 + length + length % 2
        if kind == b"VP8L":
            break
    else:
        begin, at = 12, len(file)
    coded = min(at, len(file)) - begin if begin else 0
    return _GROUP * min(_MOST_GROUPS, pixels // _GROUP_PIXELS, coded * 2 // 5)


def _bmp_size(file: bytes) -> tuple[int, int]:
    if file[14] == 12:
        return struct.unpack_from("<HH", file, 18)
    width, height = struct.unpack_from("<ii", file, 18)
    return abs(width), abs(height)


def _tiff_size(file: bytes) -> tuple[int, int]:
    """Of the first directory; a BigTIFF's entries are longer."""
    order = "<" if file[:1] == b"I" else ">"
    is_big = 43 in (file[2], file[3])
    (at,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", file, 8 if is_big else 4)
    (entries,) = struct.unpack_from(f"{order}{'Q' if is_big else 'H'}", file, at)
    at, step = (at + 8, 20) if is_big else (at + 2, 12)
    sides = {256: 0, 257: 0}
    for entry in range(at, at + step * min(entries, _MOST_SEGMENTS), step):
        tag, kind = struct.unpack_from(f"{order}HH", file, entry)
        if tag in sides:
            code = {1: "B", 3: "H", 4: "I", 16: "Q"}[kind]
            (sides[tag],) = struct.unpack_from(order + code, file, entry + step - (8 if is_big else 4))
        if all(sides.values()):
            break
    return sides[256], sides[257]


def _iso_size(file: bytes) -> tuple[int, int]:
    """The largest picture in an AVIF or HEIF."""
    at = 0
    for _ in range(_MOST_SEGMENTS):
        (length,) = struct.unpack_from(">I", file, at)
        if file[at + 4 : at + 8] == b"meta":
            break
        if length == 1:
            (length,) = struct.unpack_from(">Q", file, at + 8)
        if length < 8:
            return 0, 0
        at += length
    sizes = [struct.unpack(">II", each) for each in re.findall(rb"(?s)ispe.{4}(.{8})", file[at : at + _PEEK])]
    return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
