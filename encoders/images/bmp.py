"""BMP files: the kinds that are read, and bit fields that decoders do not know, as those that they read alike."""

import struct

import numpy as np
from numpy.typing import NDArray

from encoders.contract.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from encoders.images.containers import Picture

_HEADERS = {12, 40, 52, 56, 64, 108, 124}
_BIT_FIELDS, _ALPHA_BIT_FIELDS = 3, 6
_BITS = {0: {1, 4, 8, 16, 24, 32}, 1: {8}, 2: {4}, _BIT_FIELDS: {16, 24, 32}, _ALPHA_BIT_FIELDS: {16, 32}}
"""Of a pixel, by compression."""
_COMPRESSIONS = {1: "run lengths of 8 bits", 2: "run lengths of 4 bits", 4: "a JPEG in it", 5: "a PNG in it"}
_STANDARD = (0xFF0000, 0xFF00, 0xFF)
_KNOWN = {
    (16, 0xF800, 0x7E0, 0x1F, 0), (16, 0x7C00, 0x3E0, 0x1F, 0), (24, *_STANDARD, 0), (32, *_STANDARD, 0),
    (32, *_STANDARD, 0xFF000000), (32, 0xFF, 0xFF00, 0xFF0000, 0xFF000000), (32, 0, 0, 0, 0),
}  # fmt: skip
"""Bits of a pixel, and masks of red, green, blue and alpha, that Pillow reads right."""
_WIDEST = 16
"""Bits of one mask."""
_PIXELS_AT_ONCE = 1 << 18
_SAVE = "Save it as PNG, or as BMP of 24 bits"


def bmp(file: bytes, *, max_pixels: int) -> Picture:
    """Samples of n bits become round(255 v / (2^n - 1)).

    Raises UnsupportedImage for kinds that are not read, ImageTooLarge, and UndecodableImage for a broken file.
    """
    (header,) = struct.unpack_from("<I", file, 14)
    if header not in _HEADERS:
        raise UnsupportedImage(f"a BMP with a header of {header:,} bytes", _SAVE)
    if len(file) < 14 + header:
        raise UndecodableImage("BMP", "its header is broken")
    if header == 12:
        (bits,), compression = struct.unpack_from("<H", file, 24), 0
    else:
        bits, compression = struct.unpack_from("<HI", file, 28)
    if bits not in _BITS.get(compression, ()):
        kind = _COMPRESSIONS.get(compression, f"compression {compression}")
        raise UnsupportedImage(f"a BMP of {bits} bits a pixel" + (f" and {kind}" if compression else ""), _SAVE)
    if compression not in (_BIT_FIELDS, _ALPHA_BIT_FIELDS):
        return Picture("BMP", file)
    if len(file) < 14 + 56:
        raise UndecodableImage("BMP", "its header is broken")
    red, green, blue, alpha = struct.unpack_from("<4I", file, 14 + 40)
    if compression == _BIT_FIELDS and header < 56:
        alpha = 0
    if compression == _BIT_FIELDS and (bits, red, green, blue, alpha) in _KNOWN:
        return Picture("BMP", file)
    return _with_standard_fields(file, bits, (red, green, blue, alpha), max_pixels)


def _with_standard_fields(file: bytes, bits: int, masks: tuple[int, int, int, int], max_pixels: int) -> Picture:
    """The picture with 8 bits for each colour, and for alpha if it has some."""
    if bits == 24 or not all(masks[:3]) or not all(_is_field(mask, bits) for mask in masks):
        named = ", ".join(f"{mask:#x}" for mask in masks)
        raise UnsupportedImage(f"a BMP of {bits} bits a pixel with the bit fields {named}", _SAVE)
    at, width, height = *struct.unpack_from("<I", file, 10), *struct.unpack_from("<ii", file, 18)
    rows = abs(height)
    if width < 1 or not rows:
        raise UndecodableImage("BMP", "its header is broken")
    if width * rows > max_pixels:
        raise ImageTooLarge(pixels=width * rows, limit=max_pixels)
    stride = -(-width * bits // 32) * 4
    if at + stride * rows > len(file):
        raise UndecodableImage("BMP", "it is truncated")
    lines = np.frombuffer(file, f"<u{bits // 8}", rows * stride // (bits // 8), at).reshape(rows, -1)[:, :width]
    pixels = np.zeros((rows, width, 4), np.uint8)
    band = max(1, _PIXELS_AT_ONCE // width)
    order = [(channel, mask) for channel, mask in zip((2, 1, 0, 3), masks, strict=True) if mask]
    for top in range(0, rows, band):
        for channel, mask in order:
            pixels[top : top + band, :, channel] = _field(lines[top : top + band], mask)
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, _BIT_FIELDS, pixels.nbytes, 0, 0, 0, 0)
    fields = struct.pack("<4I", *_STANDARD, 0xFF000000 if masks[3] else 0)
    head = b"BM" + struct.pack("<IHHI", 122 + pixels.nbytes, 0, 0, 122) + (head + fields).ljust(108, b"\0")
    return Picture("BMP", b"".join([head, pixels.data]))


def _is_field(mask: int, bits: int) -> bool:
    """Whether its ones stand side by side, within a pixel; no ones are a field too."""
    ones = mask >> _shift(mask)
    return mask < 1 << bits and ones & (ones + 1) == 0 and ones.bit_length() <= _WIDEST


def _shift(mask: int) -> int:
    return max(0, (mask & -mask).bit_length() - 1)


def _field(pixels: NDArray[np.unsignedinteger], mask: int) -> NDArray[np.uint8]:
    """The samples under a mask, as 8 bits."""
    greatest = mask >> _shift(mask)
    samples = (pixels.astype(np.uint32) & mask) >> _shift(mask)
    narrowed: NDArray[np.uint8] = ((samples * 255 + greatest // 2) // greatest).astype(np.uint8)
    return narrowed
