"""Portable any-maps (PBM, PGM, PPM) of any greatest value, as the 8-bit ones that decoders read alike."""

import re
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from encoders.contract.errors import ImageTooLarge, UndecodableImage
from encoders.images.containers import Picture

Samples: TypeAlias = NDArray[np.integer[Any]]

_PART = 1024**2
"""Samples that are converted at once: NumPy makes 8 bytes of each."""
_MOST_HEADER = 64 * 1024
"""Bytes before a number in the header: space and comments."""

_COMMENT = re.compile(rb"#[^\r\n]*")
_TOKEN = re.compile(rb"(?:\s|#[^\r\n]*+)*+(\d{1,9})")
_SCALE = re.compile(rb"(?:\s|#[^\r\n]*+)*+([-+.\deE]{1,10})(?=\s)")


def netpbm(file: bytes, *, max_pixels: int) -> Picture:
    """Samples v of 0 to the greatest value m become round(255 v / m).

    Raises ImageTooLarge, and UndecodableImage for a broken or truncated file.
    """
    kind = file[1:2]
    numbers, at = [], 2
    for _ in range(2 if kind in b"14f" else 3):
        token = _TOKEN.match(file, at, at + _MOST_HEADER)
        if token is None:
            raise UndecodableImage("PPM", "its header is broken")
        numbers.append(int(token[1]))
        at = token.end()
    width, height, greatest = *numbers[:2], numbers[2] if len(numbers) > 2 else 1
    if width * height > max_pixels:
        raise ImageTooLarge(pixels=width * height, limit=max_pixels)
    if not width or not height or not 0 < greatest < 65536:
        raise UndecodableImage("PPM", "its header is broken")
    if kind in b"f4" or (kind in b"56" and greatest == 255):
        head = b"P%b %d %d" % (kind, width, height)
        if kind == b"f":
            scale = _SCALE.match(file, at, at + _MOST_HEADER)
            if scale is None:
                raise UndecodableImage("PPM", "its header is broken")
            head, at = b"%b %b" % (head, scale[1]), scale.end()
        elif kind != b"4":
            head += b" 255"
        # Pillow reads comments byte by byte
        return Picture("PPM", head + file[at:] if b"#" in file[:at] else file)
    count = width * height * (3 if kind in b"36" else 1)
    samples = _binary(file, at + 1, count, greatest) if kind in b"56" else _plain(file[at:], count, kind == b"1")
    if len(samples) < count:
        raise UndecodableImage("PPM", "it is truncated")
    if kind == b"1":
        samples = 1 - samples  # ink is 1
    table = ((np.arange(greatest + 1) * 255 + greatest // 2) // greatest).astype(np.uint8)
    parts = (samples[at : at + _PART] for at in range(0, count, _PART))
    pixels = b"".join(table.take(part, mode="clip").tobytes() for part in parts)
    return Picture("PPM", b"P%d %d %d 255\n%b" % (6 if kind in b"36" else 5, width, height, pixels))


def _binary(file: bytes, at: int, count: int, greatest: int) -> Samples:
    width = np.dtype(">u2" if greatest > 255 else "u1")
    return np.frombuffer(
        file, width, count=min(count, max(0, len(file) - at) // width.itemsize), offset=min(at, len(file))
    )


def _plain(text: bytes, count: int, is_bitmap: bool) -> Samples:
    text = _COMMENT.sub(b" ", text)
    if is_bitmap:  # without spaces in between, if the writer likes
        text = text.translate(None, b" \t\r\n\v\f")
        samples: Samples = np.frombuffer(text[:count], np.uint8) - ord("0")
    elif re.search(rb"[^\d\s]", text):
        raise UndecodableImage("PPM", "its samples are no numbers")
    else:
        samples = np.fromstring(text, np.int32, sep=" ")[:count]
    if is_bitmap and samples.max(initial=0) > 1:
        raise UndecodableImage("PPM", "its samples are neither 0 nor 1")
    return samples
