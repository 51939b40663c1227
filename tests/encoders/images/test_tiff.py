"""TIFF: every layout of samples is read as tifffile means it, or refused by name. Never other pixels."""

import io
import struct
from itertools import product
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from encoders.contract.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from encoders.images.decode import decode
from tests.encoders.images.files import CASES, encoded
from tests.support.photographs import photograph

HEIGHT, WIDTH = 37, 45
COLOURS = {"minisblack": 1, "miniswhite": 1, "rgb": 3, "separated": 4}
SHADES = np.add.outer(np.arange(HEIGHT) / HEIGHT, np.arange(WIDTH) / WIDTH)[..., None] / 2 * [1, 0.7, 0.4, 0.9, 0.6]


def layouts() -> list[tuple[str, str, str, int, str]]:
    """Byte order, kind and bits, photometric interpretation, samples, planes."""
    kinds = ("u8", "u16", "u32", "i8", "i16", "f16", "f32", "f64")
    return [
        (order, kind, photometric, samples, planes)
        for order, kind, photometric, samples, planes in product(
            "<>", kinds, COLOURS, range(1, 6), ("contig", "separate")
        )
        if samples in range(COLOURS[photometric], COLOURS[photometric] + (2 if photometric != "rgb" else 3))
        and (samples > 1 or planes == "contig")
    ]


READ = {
    ("u8", "minisblack", 1), ("u8", "minisblack", 2), ("u8", "miniswhite", 1), ("u8", "miniswhite", 2),
    ("u8", "rgb", 3), ("u8", "rgb", 4), ("u8", "rgb", 5), ("u8", "separated", 4), ("u16", "minisblack", 1),
    ("u16", "miniswhite", 1), ("u16", "rgb", 3), ("u16", "rgb", 4), ("u16", "separated", 4), ("f32", "minisblack", 1),
    ("f32", "miniswhite", 1),
}  # fmt: skip
"""With their samples side by side; in planes of their own only 8-bit RGB."""


def written(values: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, values, metadata=None, **options)
    return out.getvalue()


def samples_of(kind: str, order: str, count: int) -> np.ndarray:
    shades, bits = SHADES[..., :count], int(kind[1:])
    greatest = {"u": 2**bits - 1, "i": 2 ** (bits - 1) - 1, "f": 1}[kind[0]]
    scaled = shades * greatest
    values: np.ndarray = (scaled if kind[0] == "f" else scaled.round()).astype(f"{order}{kind[0]}{bits // 8}")
    return values


def seen(photometric: str, count: int) -> np.ndarray:
    """What must be seen: 0 to 255, RGB, laid over white."""
    shades, colours = SHADES[..., :count], COLOURS[photometric]
    colour = shades[..., :colours]
    if photometric == "miniswhite":
        colour = 1 - colour
    if photometric == "separated":
        colour = (1 - colour[..., :3]) * (1 - colour[..., 3:])
    if count > colours:
        alpha = shades[..., colours : colours + 1]
        colour = colour * alpha + 1 - alpha
    return np.broadcast_to(colour, (HEIGHT, WIDTH, 3)) * 255


@pytest.mark.parametrize(("order", "kind", "photometric", "samples", "planes"), layouts())
def test_a_layout_is_read_as_it_is_meant_or_refused(
    order: str, kind: str, photometric: str, samples: int, planes: str
) -> None:
    values = samples_of(kind, order, samples)
    values = values[..., 0] if samples == 1 else np.moveaxis(values, -1, 0) if planes == "separate" else values
    extra = ["unassalpha"] + ["unspecified"] * 4
    layout: dict[str, Any] = {"photometric": photometric, "planarconfig": planes, "byteorder": order}
    if samples > COLOURS[photometric]:
        layout["extrasamples"] = extra[: samples - COLOURS[photometric]]
    is_read = (kind, photometric, samples) in READ and (planes == "contig" or (kind, samples) == ("u8", 3))
    for storage in product((None, "deflate"), (None, (32, 16)), (False, True), (False, True)):
        compression, tile, predictor, big = storage
        if predictor and (compression is None or kind[0] == "f"):  # tifffile alone writes none
            continue
        file = written(
            np.ascontiguousarray(values), compression=compression, tile=tile, predictor=predictor, bigtiff=big, **layout
        )
        if not is_read or (kind[0] == "f" and order == ">" and compression):
            with pytest.raises(UnsupportedImage, match="TIFF with"):
                decode(file)
            continue
        difference = np.abs(np.asarray(decode(file)) - seen(photometric, samples)).max()
        assert difference <= (3 if photometric == "separated" or "extrasamples" in layout else 1), storage


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 12])
def test_packed_samples_are_unpacked(bits: int, photometric: int, order: str) -> None:
    """The first sample in the highest bits, whatever the byte order; each row begins with a byte."""
    width, height, greatest = 21, 5, 2**bits - 1
    values = np.random.default_rng(0).integers(0, greatest + 1, (height, width))
    rows = np.packbits(((values[..., None] >> np.arange(bits)[::-1]) & 1).reshape(height, -1).astype(np.uint8), axis=1)
    found = np.asarray(decode(tiff(width, height, bits, photometric, rows.tobytes(), order=order)))[..., 0]
    right = np.rint(values * 255 / greatest + 1e-9)
    np.testing.assert_array_equal(found, right if photometric else 255 - right)


def tiff(
    width: int, height: int, bits: int, photometric: int, data: bytes, *more: tuple[int, int], order: str = "<"
) -> bytes:
    """An uncompressed TIFF of one sample and one strip, by hand; more: tags and their values."""
    tags = dict([
        (256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height),
        (279, len(data)), *more,
    ])  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data) + len(data) % 2)
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return head + data + bytes(len(data) % 2) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


PHOTO = photograph("chelsea").resize((40, 32))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LAB"])
def test_every_colour_space_is_read_through_every_compression(mode: str, compression: str) -> None:
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image: Any = ImageCms.applyTransform(PHOTO, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    else:
        image = PHOTO.quantize(64) if mode == "P" else PHOTO.convert(mode)
    right = PHOTO if mode == "LAB" else image.convert("RGB")
    difference = np.abs(
        np.asarray(decode(encoded(image, "TIFF", compression=compression))).astype(int) - np.asarray(right)
    )
    assert difference.max() <= (4 if mode == "LAB" else 0)


def test_a_palette_of_bytes_is_not_black() -> None:
    """Some writers forget that a TIFF's palette is of 16 bits."""
    palette = PHOTO.quantize(64)
    file = encoded(palette, "TIFF")
    page = tifffile.TiffFile(io.BytesIO(file)).pages.first
    colours = page.tags["ColorMap"]
    wide = np.array(colours.value, np.uint16)
    narrow = file.replace(wide.tobytes(), (wide >> 8).tobytes())
    assert narrow != file
    np.testing.assert_array_equal(np.asarray(decode(narrow)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_a_fax_is_black_on_white(compression: str) -> None:
    page = PHOTO.convert("1")
    np.testing.assert_array_equal(
        np.asarray(decode(encoded(page, "TIFF", compression=compression))), np.asarray(page.convert("RGB"))
    )


@pytest.mark.parametrize("case", ["tiff_f32_nan.tif", "tiff_packed12.tif", "tiff_u16_miniswhite.tif"])
def test_one_picture_is_the_same_in_every_width(case: str) -> None:
    """The demo encoders' example in grey, 64 pixels a side."""
    example = (
        Image.open(CASES.parents[3] / "docs" / "example.png").convert("L").resize((64, 64), Image.Resampling.BICUBIC)
    )
    found = np.asarray(decode((CASES / case).read_bytes()))[..., 0].astype(int)
    assert np.abs(found - np.asarray(example)).mean() < 2.5


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("tiff_u16_planar.tif", "16-bit integer RGB samples in separate planes"),
        ("tiff_f32_0_65535.tif", "outside of 0 to 1"),
    ],
)
def test_what_is_not_read_is_said(case: str, name: str) -> None:
    with pytest.raises(UnsupportedImage, match=name):
        decode((CASES / case).read_bytes())


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ([(254, 1)], "thumbnail"),
        ([(50706, 0x401)], "camera raw"),
        ([(262, 32803)], "camera raw"),
        ([(262, 34892)], "camera raw"),
        ([(262, 32845)], "LogLuv"),
        ([(259, 34712)], "compression 34712"),
        ([(259, 50001)], "compression 50001"),  # WebP, which Pillow's own libtiff does not have
        ([(339, 2)], "signed 8-bit"),
        ([(339, 6)], "complex"),
        ([(258, 10)], "10-bit"),
    ],
)
def test_camera_raws_and_rare_kinds_are_refused_by_name(tags: list[tuple[int, int]], name: str) -> None:
    """A DNG or NEF is a TIFF whose first page is a thumbnail."""
    with pytest.raises(UnsupportedImage, match=name):
        decode(tiff(4, 4, 8, 1, bytes(range(16)), *tags))


def test_a_first_page_with_a_larger_picture_inside_it_is_a_thumbnail() -> None:
    outer = tiff(4, 4, 8, 1, bytes(16), (330, 0))
    inner_at = len(outer)
    inner = tiff(400, 300, 8, 1, b"")[8:]
    with pytest.raises(UnsupportedImage, match="thumbnail"):
        decode(tiff(4, 4, 8, 1, bytes(16), (330, inner_at)) + inner)
    smaller = tiff(2, 2, 8, 1, b"")[8:]
    assert decode(tiff(4, 4, 8, 1, bytes(16), (330, inner_at)) + smaller).size == (4, 4)


def test_of_several_pages_the_first_is_read() -> None:
    pages = written(np.stack([np.full((8, 9), 10, np.uint8), np.full((8, 9), 90, np.uint8)]), photometric="minisblack")
    assert decode(pages).getpixel((0, 0)) == (10, 10, 10)


def test_tags_about_anything_but_pixels_are_not_looked_at() -> None:
    odd = [(270, 1 << 30), (282, 0), (34665, 8), (34675, 1 << 31), (700, 5), (33550, 7), (41000, 9)]
    assert decode(tiff(4, 4, 8, 1, bytes([7] * 16), *odd)).getpixel((3, 3)) == (7, 7, 7)


@pytest.mark.parametrize("more", [[(273, 1 << 30)], [(279, 300)], [(279, 3)], [(256, 0)], [(257, 400)]])
def test_a_directory_that_lies_is_undecodable(more: list[tuple[int, int]]) -> None:
    with pytest.raises(UndecodableImage):
        decode(tiff(4, 4, 8, 1, bytes(16), *more))


def test_a_directory_that_announces_too_much_is_too_large() -> None:
    with pytest.raises(ImageTooLarge):
        decode(tiff(1 << 20, 1 << 20, 8, 1, bytes(16)))


@pytest.mark.parametrize(("photometric", "samples"), [(1, 1), (0, 1), (1, 2), (2, 3), (2, 4), (5, 4)])
def test_a_fill_order_turns_the_bits_of_every_layout(photometric: int, samples: int) -> None:
    """Pillow knows it in some layouts; in others it gave wrong pixels, or took the header for broken."""
    data, reversed_bits = bytes(range(64)), bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    plain = tiff(4, 4, 8, photometric, data, (277, samples))
    turned = tiff(4, 4, 8, photometric, data.translate(reversed_bits), (277, samples), (266, 2))
    np.testing.assert_array_equal(np.asarray(decode(turned)), np.asarray(decode(plain)))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (tiff(4, 4, 8, 1, bytes(16)).replace(struct.pack("<H", 262), struct.pack("<H", 263)), "what its samples mean"),
        (tiff(4, 4, 8, 0, bytes(32), (277, 2), (338, 1)), "alpha is multiplied"),
    ],
)
def test_samples_of_which_nobody_says_what_is_black_are_refused(file: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImage, match=name):
        decode(file)


@pytest.mark.parametrize(
    ("photometric", "samples", "more"), [(1, 2, []), (2, 4, []), (2, 5, []), (1, 1, [(338, 2)]), (2, 3, [(338, 1)])]
)
def test_extra_samples_are_counted_by_the_samples(photometric: int, samples: int, more: list[tuple[int, int]]) -> None:
    """Some writers do not name them, others name one that is not there. Without a name they mean nothing."""
    values = np.arange(16 * samples, dtype=np.uint8)
    found = np.asarray(decode(tiff(4, 4, 8, photometric, values.tobytes(), (277, samples), *more)))
    colours = values.reshape(4, 4, samples)[..., : 3 if photometric == 2 else 1]
    np.testing.assert_array_equal(found, np.broadcast_to(colours, (4, 4, 3)))


def test_a_picture_in_thousands_of_pieces_of_a_pixel_or_two_is_refused() -> None:
    """Each strip or tile takes Pillow a third of a millisecond."""
    for width, is_read in ((20, True), (1, False)):
        strips = written(np.zeros((5000, width), np.uint8), photometric="minisblack", rowsperstrip=1)
        if is_read:
            assert decode(strips).size == (width, 5000)
        else:
            with pytest.raises(UnsupportedImage, match="a TIFF of 5,000 pixels in 5,000 strips or tiles"):
                decode(strips)
