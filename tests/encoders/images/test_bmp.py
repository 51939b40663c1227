"""BMP: bit fields are read by their masks, alpha included; kinds that are not read are refused by name."""

import struct

import numpy as np
import pytest

from encoders.contract.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from encoders.images.decode import decode

WIDTH, HEIGHT = 5, 3


def bitmap(
    values: np.ndarray,
    bits: int,
    masks: tuple[int, ...] = (),
    *,
    compression: int = 3,
    header: int = 40,
    upside_down: bool = True,
) -> bytes:
    """values: pixels as integers, [HEIGHT, WIDTH]."""
    height, width = values.shape
    lines = values[::-1] if upside_down else values
    stored = np.ascontiguousarray(lines).astype("<u4").view("u1").reshape(height, width, 4)[..., : bits // 8]
    body = b"".join(line.tobytes() + bytes(-line.size % 4) for line in np.ascontiguousarray(stored))
    rows = height if upside_down else -height
    head = struct.pack("<IiiHHIIiiII", header, width, rows, 1, bits, compression, len(body), 0, 0, 0, 0)
    head = (head + struct.pack(f"<{len(masks)}I", *masks)).ljust(header, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body


def seen(values: np.ndarray, masks: tuple[int, ...]) -> np.ndarray:
    """What the masks say, laid over white."""
    fields = [
        (values & mask) / mask if mask else np.ones_like(values, dtype=float) for mask in (*masks, 0)[:4]
    ]  # an alpha without a mask is opaque
    colour, alpha = np.stack(fields[:3], axis=-1), fields[3][..., None]
    over_white: np.ndarray = (colour * alpha + 1 - alpha) * 255
    return over_white


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
        (16, (0xF00, 0xF0, 0xF, 0xF000)),
        (16, (0x1F, 0x7E0, 0xF800)),
        (16, (0xF800, 0x7E0, 0x1F)),
        (32, (0xFF, 0xFF00, 0xFF0000)),
        (32, (0xFF00, 0xFF0000, 0xFF000000, 0xFF)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF)),
        (32, (0xFF0000, 0xFF00, 0xFF, 0x7F000000)),
        (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    ],
)
def test_pixels_are_what_the_masks_say(bits: int, masks: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (HEIGHT, WIDTH))
    header = 108 if len(masks) == 4 else 40
    for upside_down in (False, True):
        found = np.asarray(decode(bitmap(values, bits, masks, header=header, upside_down=upside_down)))
        assert np.abs(found - seen(values, masks)).max() <= 2
    found = np.asarray(decode(bitmap(values, bits, (*masks, 0)[:4], compression=6)))
    assert np.abs(found - seen(values, masks)).max() <= 2


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (bitmap(np.zeros((HEIGHT, WIDTH), int), 16, (0xF0F0, 0xF00, 0xF)), "bit fields 0xf0f0"),
        (bitmap(np.zeros((HEIGHT, WIDTH), int), 24, (0xFF, 0xFF00, 0xFF0000)), "24 bits a pixel with the bit fields"),
        (bitmap(np.zeros((HEIGHT, WIDTH), int), 8, compression=4), "a JPEG in it"),
        (bitmap(np.zeros((HEIGHT, WIDTH), int), 8, compression=13), "compression 13"),
        (bitmap(np.zeros((HEIGHT, WIDTH), int), 2, compression=0), "2 bits a pixel"),
        (bitmap(np.zeros((HEIGHT, WIDTH), int), 8, compression=0, header=44), "header of 44 bytes"),
    ],
)
def test_a_kind_that_is_not_read_is_named(file: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImage, match=f"BMP .*{name}"):
        decode(file)


def test_a_bitmap_that_lies_or_ends_early_is_refused() -> None:
    values = np.zeros((HEIGHT, WIDTH), int)
    file = bitmap(values, 16, (0xF00, 0xF0, 0xF))
    for cut in (20, 60, len(file) - 1):
        with pytest.raises(UndecodableImage):
            decode(file[:cut])
    with pytest.raises(ImageTooLarge):
        decode(file[:18] + struct.pack("<ii", 1 << 20, 1 << 20) + file[26:])
    with pytest.raises(UndecodableImage):
        decode(file[:18] + struct.pack("<ii", 0, 3) + file[26:])
