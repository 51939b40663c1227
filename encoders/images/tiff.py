"""TIFF files with only the tags that pixels need, and the layouts of samples that are read right.

Pillow reads some layouts wrongly and without a word, so the tags are judged here, by a list of what was compared
with tifffile (tests/encoders/images/test_tiff.py).
"""

import struct
from itertools import zip_longest
from typing import TypeAlias

from encoders.contract.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from encoders.images.containers import Picture

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_BYTES, _PLANAR = 273, 274, 277, 278, 279, 284
_T4_OPTIONS, _T6_OPTIONS, _PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_LENGTH = 292, 293, 317, 320, 322, 323
_TILE_OFFSETS, _TILE_BYTES, _SUB_IFDS, _INK_SET, _EXTRA, _FORMAT = 324, 325, 330, 332, 338, 339
_JPEG_TABLES, _SUBSAMPLING, _KIND_OF_PAGE, _DNG_VERSION = 347, 530, 254, 50706

_NEEDED = {
    _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIP_OFFSETS, _SAMPLES, _ROWS_PER_STRIP,
    _STRIP_BYTES, _PLANAR, _T4_OPTIONS, _T6_OPTIONS, _PREDICTOR, _COLOUR_MAP, _TILE_WIDTH, _TILE_LENGTH,
    _TILE_OFFSETS, _TILE_BYTES, _INK_SET, _EXTRA, _FORMAT, _JPEG_TABLES, _SUBSAMPLING, _KIND_OF_PAGE, _SUB_IFDS,
    _DNG_VERSION, _ORIENTATION,
    *range(512, 522),   # old-style JPEG
    529, 531, 532,      # YCbCr: coefficients, positioning, reference black and white
}  # fmt: skip
_NOT_PASSED_ON = {_ORIENTATION, _SUB_IFDS, _DNG_VERSION, _KIND_OF_PAGE, _FILL_ORDER}
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Every byte with its bits the other way round."""
_BYTES_IN_ORDER = {6, 7}
"""Compressions whose bytes a fill order does not turn round: the JPEGs."""
_MOST_VALUES = 1 << 18
"""Of one tag. A strip or tile costs Pillow an object."""
_MANY_PIECES, _LEAST_PIECE = 4096, 16
"""Of more strips or tiles than that, each must hold so many pixels on average. The standard's smallest tile has 256."""

_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
_NAMES = {
    0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELab", 9: "ICCLab",
    10: "ITULab", 32844: "LogL", 32845: "LogLuv", 51177: "depth map",
}  # fmt: skip
_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000}
_DEVELOP = "Develop it to JPEG or TIFF"
_SAVE = "Save it as an 8-bit TIFF or PNG"

Entry: TypeAlias = tuple[int, int, bytes]
"""Type, count, and the values as they lie in the file."""


def tiff(file: bytes, *, max_pixels: int) -> Picture:
    """The first page, by a directory that holds only what its pixels need.

    Raises UnsupportedImage for layouts that are not read, UndecodableImage for a broken directory, ImageTooLarge.
    """
    order = "<" if file[:1] == b"I" else ">"
    is_big = 43 in (file[2], file[3])
    (at,) = _unpack(f"{order}{'Q' if is_big else 'I'}", file, 8 if is_big else 4)
    tags = _directory(file, at, order, is_big=is_big)
    size = _first(tags, _WIDTH, order), _first(tags, _HEIGHT, order)
    if not all(size):
        raise UndecodableImage("TIFF", "its directory names no width and height")
    if size[0] * size[1] > max_pixels:
        raise ImageTooLarge(pixels=size[0] * size[1], limit=max_pixels)
    _refuse_thumbnail(file, tags, size, order, is_big=is_big)
    bits, white_is_zero = _layout(tags, order)
    _check_pieces(file, tags, size, order)
    _declare_extras(tags, order)
    turned = _first(tags, _ORIENTATION, order, 1)
    if _first(tags, _FILL_ORDER, order, 1) == 2 and _first(tags, _COMPRESSION, order, 1) not in _BYTES_IN_ORDER:
        file = file.translate(_REVERSED)  # Pillow knows it in some layouts, and overlooks it in others
    if white_is_zero:
        tags[_PHOTOMETRIC] = 3, 1, struct.pack(f"{order}H", 1)
    if _COLOUR_MAP in tags and max(colours := _values(tags, _COLOUR_MAP, order), default=0) < 256:
        # Meant as bytes, though the standard's colours are of 16 bits; libtiff takes them so too
        wide = struct.pack(f"{order}{len(colours)}H", *(257 * value for value in colours))
        tags[_COLOUR_MAP] = 3, len(colours), wide
    if bits == 12:  # packed: the same in both byte orders, and Pillow knows one
        tags = {tag: (kind, count, _swapped(kind, body, order)) for tag, (kind, count, body) in tags.items()}
        order = "<"
    rewritten = _rewritten(file, tags, order)
    return Picture("TIFF", rewritten, turned if 1 <= turned <= 8 else 1, bits, white_is_zero)


def _layout(tags: dict[int, Entry], order: str) -> tuple[int, bool]:
    """Bits of a sample, and whether white is 0. Raises UnsupportedImage."""
    compression = _first(tags, _COMPRESSION, order, 1)
    photometric = _first(tags, _PHOTOMETRIC, order, 0)
    planes = _first(tags, _PLANAR, order, 1)
    count = _first(tags, _SAMPLES, order, 1)
    bits, formats = set(_values(tags, _BITS, order) or [1]), set(_values(tags, _FORMAT, order) or [1])
    if _PHOTOMETRIC not in tags:
        raise UnsupportedImage("a TIFF that does not say what its samples mean (PhotometricInterpretation)", _SAVE)
    if photometric in (32803, 34892) or _DNG_VERSION in tags:
        raise UnsupportedImage("a camera raw (DNG or its kin)", _DEVELOP)
    if photometric not in _COLOURS:
        raise UnsupportedImage(f"a TIFF with {_NAMES.get(photometric, f'photometric {photometric}')} samples", _SAVE)
    if compression not in _COMPRESSIONS:
        raise UnsupportedImage(f"a TIFF with compression {compression}", "Save it uncompressed or with LZW or deflate")
    if len(bits) != 1 or len(formats) != 1:
        raise UnsupportedImage("a TIFF whose samples differ in their bits or format", _SAVE)
    (width,), (sample_format,) = bits, formats
    name = _NAMES[photometric]
    if sample_format not in (1, 3, 4):
        kind = {2: "signed", 5: "complex signed", 6: "complex"}.get(sample_format, f"format {sample_format}")
        raise UnsupportedImage(f"a TIFF with {kind} {width}-bit samples, and does not say which is black", _SAVE)
    extras = count - _COLOURS[photometric]
    if sample_format == 3:  # compressed and big-endian: Pillow takes the bytes the wrong way round
        is_read = name == "grey" and extras == 0 and width == 32 and (order == "<" or compression == 1)
    elif name == "grey":
        is_read = (extras == 0 and width in (1, 2, 4, 8, 12, 16)) or (extras == 1 and width == 8)
        if extras == 1 and photometric == 0 and _first(tags, _EXTRA, order) == 1:
            raise UnsupportedImage("a TIFF whose alpha is multiplied into grey samples that are 0 for white", _SAVE)
    elif name == "palette":
        is_read = extras == 0 and width in (1, 2, 4, 8)
    elif name == "RGB":
        is_read = (width == 8 and 0 <= extras <= 3) or (width == 16 and 0 <= extras <= 1)
    elif name == "CMYK":
        is_read = extras == 0 and width in (8, 16) and _first(tags, _INK_SET, order, 1) == 1
    else:
        is_read = extras == 0 and width == 8
    if name == "YCbCr" and compression not in (6, 7):
        is_read = is_read and _values(tags, _SUBSAMPLING, order) == [1, 1]
    is_planar = planes == 2 and count > 1
    if is_planar:
        is_read = is_read and name == "RGB" and extras == 0 and width == 8
    if not is_read:
        kind = "float" if sample_format == 3 else "integer"
        kind = f"big-endian compressed {kind}" if sample_format == 3 and order == ">" and compression != 1 else kind
        where = " in separate planes" if is_planar else ""
        more = f" and {extras} more" if extras > 0 else ""
        raise UnsupportedImage(f"a TIFF with {width}-bit {kind} {name} samples{more}{where}", _SAVE)
    return width, photometric == 0


def _declare_extras(tags: dict[int, Entry], order: str) -> None:
    """Name as many extra samples as there are; those that the file says nothing of mean nothing."""
    extras = _first(tags, _SAMPLES, order, 1) - _COLOURS[_first(tags, _PHOTOMETRIC, order)]
    named = [*_values(tags, _EXTRA, order), *[0] * extras][:extras]
    tags.pop(_EXTRA, None)
    if named:
        tags[_EXTRA] = 3, extras, struct.pack(f"{order}{extras}H", *named)


def _check_pieces(file: bytes, tags: dict[int, Entry], size: tuple[int, int], order: str) -> None:
    """Pillow leaves black what no strip or tile covers, and the rewritten file is longer than this one."""
    width, height = size
    if _TILE_OFFSETS in tags:
        offsets, lengths = _values(tags, _TILE_OFFSETS, order), _values(tags, _TILE_BYTES, order)
        across, down = _first(tags, _TILE_WIDTH, order), _first(tags, _TILE_LENGTH, order)
        needed = -(-width // max(1, across)) * -(-height // max(1, down))
    else:
        offsets, lengths = _values(tags, _STRIP_OFFSETS, order), _values(tags, _STRIP_BYTES, order)
        needed = -(-height // max(1, _first(tags, _ROWS_PER_STRIP, order, height)))
    if _first(tags, _PLANAR, order, 1) == 2:
        needed *= _first(tags, _SAMPLES, order, 1)
    if needed > _MANY_PIECES and needed * _LEAST_PIECE > width * height:
        raise UnsupportedImage(f"a TIFF of {width * height:,} pixels in {needed:,} strips or tiles", _SAVE)
    if len(offsets) < needed:
        raise UndecodableImage("TIFF", f"it has {len(offsets):,} of {needed:,} strips or tiles")
    is_raw = _first(tags, _COMPRESSION, order, 1) == 1
    if any(at + (length if is_raw else 0) > len(file) for at, length in zip_longest(offsets, lengths, fillvalue=0)):
        raise UndecodableImage("TIFF", "it is truncated")
    samples = _first(tags, _SAMPLES, order, 1)
    row = -(-width * _first(tags, _BITS, order, 1) * samples // 8)
    if is_raw and lengths and sum(lengths) < height * row:
        raise UndecodableImage("TIFF", "its strips are shorter than its rows")


def _refuse_thumbnail(file: bytes, tags: dict[int, Entry], size: tuple[int, int], order: str, *, is_big: bool) -> None:
    if _first(tags, _KIND_OF_PAGE, order, 0) & 1:
        raise UnsupportedImage("a TIFF whose first page is a thumbnail, as in camera raws", _DEVELOP)
    for at in _values(tags, _SUB_IFDS, order)[:16]:
        try:
            inner = _directory(file, at, order, is_big=is_big)
        except UndecodableImage:
            continue
        if _first(inner, _WIDTH, order) * _first(inner, _HEIGHT, order) > size[0] * size[1]:
            raise UnsupportedImage("a TIFF whose first page is a thumbnail, as in camera raws", _DEVELOP)


def _directory(file: bytes, at: int, order: str, *, is_big: bool) -> dict[int, Entry]:
    """The needed entries whose values lie in the file."""
    (entries,) = _unpack(f"{order}{'Q' if is_big else 'H'}", file, at)
    at, step, inline = (at + 8, 20, 8) if is_big else (at + 2, 12, 4)
    tags: dict[int, Entry] = {}
    for entry in range(at, min(at + step * min(entries, 0xFFFF), len(file) - step + 1), step):
        tag, kind, count = struct.unpack_from(f"{order}HH{'Q' if is_big else 'I'}", file, entry)
        if tag not in _NEEDED or tag in tags or kind not in _SIZES or (kind != 7 and count > _MOST_VALUES):
            continue
        length, where = count * _SIZES[kind], entry + step - inline
        if length > inline:
            (where,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", file, where)
        if 0 < length <= len(file) - where:
            tags[tag] = kind, count, file[where : where + length]
    return tags


def _unpack(layout: str, file: bytes, at: int) -> tuple[int, ...]:
    if at + struct.calcsize(layout) > len(file):
        raise UndecodableImage("TIFF", "its directory lies outside of the file")
    return struct.unpack_from(layout, file, at)


def _values(tags: dict[int, Entry], tag: int, order: str) -> list[int]:
    kind, count, body = tags.get(tag, (3, 0, b""))
    return list(struct.unpack(f"{order}{count}{_CODES[kind]}", body)) if kind in _CODES else []


def _first(tags: dict[int, Entry], tag: int, order: str, default: int = 0) -> int:
    kind, count, body = tags.get(tag, (3, 0, b""))
    if not count or kind not in _CODES:
        return default
    return int(struct.unpack_from(f"{order}{_CODES[kind]}", body)[0])


def _rewritten(file: bytes, tags: dict[int, Entry], order: str) -> bytes:
    """The file with a directory of these tags behind it, as classic TIFF."""
    kept = {tag: _narrow(entry, order) for tag, entry in sorted(tags.items()) if tag not in _NOT_PASSED_ON}
    at = len(file) + len(file) % 2
    values_at = at + 2 + 12 * len(kept) + 4
    entries, values = [], []
    for tag, (kind, count, body) in kept.items():
        if len(body) > 4:
            entries.append(struct.pack(f"{order}HHII", tag, kind, count, values_at))
            values.append(body + bytes(len(body) % 2))
            values_at += len(values[-1])
        else:
            entries.append(struct.pack(f"{order}HHI", tag, kind, count) + body.ljust(4, b"\0"))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(entries) + bytes(4) + b"".join(values)
    return b"".join([head, memoryview(file)[8:], bytes(len(file) % 2), directory])


def _narrow(entry: Entry, order: str) -> Entry:
    """BigTIFF's 64-bit values as 32-bit ones: a file here is far smaller than 4 GiB."""
    kind, count, body = entry
    if kind not in (16, 17, 18):
        return entry
    wide = struct.unpack(f"{order}{count}Q", body)
    return 4, count, struct.pack(f"{order}{count}I", *(min(value, 0xFFFFFFFF) for value in wide))


def _swapped(kind: int, body: bytes, order: str) -> bytes:
    """Little-endian values."""
    step = {5: 4, 10: 4}.get(kind, _SIZES[kind])
    if order == "<" or step == 1:
        return body
    return b"".join(body[at : at + step][::-1] for at in range(0, len(body), step))
