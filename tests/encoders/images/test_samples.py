"""Samples are what the file says: their bits, their range, their transparency. What is not said is refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from encoders.contract.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from encoders.images.decode import decode
from tests.encoders.images.files import CASES, chunk, encoded, png_of

RAMP = np.arange(256).reshape(16, 16)


def greys(image: Image.Image) -> np.ndarray:
    """The samples of an image that must be grey."""
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].astype(int)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_pngs_colour_key_is_white_and_nothing_else_is(bits: int) -> None:
    """tRNS names a sample value, of as many bits as the file has; what stands in higher ones is not looked at."""
    width, greatest = 16, 2**bits - 1
    values = np.linspace(0, greatest, width).astype(int)
    key = int(values[5])
    if bits == 16:
        row = values.astype(">u2").tobytes()
    else:
        row = np.packbits(((values[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8)).tobytes()
    header = (width, 1, bits, 0)
    plain = greys(decode(png_of(header, [row])))
    np.testing.assert_array_equal(plain, np.rint(values * 255 / greatest)[None])
    for named in (key, key + 65535 - greatest):
        found = greys(decode(png_of(header, [row], chunk(b"tRNS", struct.pack(">H", named)))))
        np.testing.assert_array_equal(found[0], np.where(values == key, 255, plain[0]))


@pytest.mark.parametrize(("bits", "near"), [(8, (10, 20, 31)), (16, (2570, 5140, 7711))])
def test_a_colour_pngs_colour_key_is_compared_in_all_its_bits(bits: int, near: tuple[int, int, int]) -> None:
    key = (near[0], near[1], near[2] - 1)
    row = np.array([key, near, key]).astype(">u2" if bits == 16 else "u1").tobytes()
    found = np.asarray(decode(png_of((3, 1, bits, 2), [row], chunk(b"tRNS", struct.pack(">3H", *key)))))
    np.testing.assert_array_equal(found[0, [0, 2]], 255)
    np.testing.assert_array_equal(found[0, 1], np.array(near) >> bits - 8)


def test_a_colour_key_turns_with_its_picture() -> None:
    png = png_of(
        (2, 1, 8, 0),
        [b"\7\x64"],
        chunk(b"tRNS", b"\0\7"),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\3\0\0"),
    )
    np.testing.assert_array_equal(greys(decode(png)), [[100, 255]])


@pytest.mark.parametrize("case", ["png_4bit_trns.png", "png_grey16_trns.png"])
def test_transparency_by_colour_is_laid_over_white(case: str) -> None:
    found = greys(decode((CASES / case).read_bytes()))
    assert (found[:, :60] == 255).all()
    assert found[:, 60:].mean() < 110


def test_a_suggested_palette_of_a_colour_png_is_no_colour_key() -> None:
    png = png_of((1, 1, 8, 2), [b"\0\0\0"], chunk(b"PLTE", bytes(6)))
    assert decode(png).getpixel((0, 0)) == (0, 0, 0)


def test_a_palettes_transparency_is_laid_over_white() -> None:
    palette = bytes([255, 0, 0, 0, 0, 255])
    png = png_of((2, 1, 8, 3), [b"\0\1"], chunk(b"PLTE", palette), chunk(b"tRNS", b"\0\x80"))
    np.testing.assert_array_equal(np.asarray(decode(png))[0], [[255, 255, 255], [127, 127, 255]])


@pytest.mark.parametrize("greatest", [3, 1000, 1022, 40_000])
def test_one_bright_pixel_does_not_change_the_others(greatest: int) -> None:
    """16-bit samples are of 0 to 65535, however dark the picture is."""
    values = np.linspace(0, greatest, 256).astype(np.uint16).reshape(16, 16)
    for image_format in ("PNG", "TIFF"):
        dark = greys(decode(encoded(Image.fromarray(values), image_format)))
        bright = values.copy()
        bright[0, 0] = 65535
        again = greys(decode(encoded(Image.fromarray(bright), image_format)))
        np.testing.assert_array_equal(dark, np.rint(values / 257))
        np.testing.assert_array_equal(dark.ravel()[1:], again.ravel()[1:])


FLOATS = (RAMP / 255).astype(np.float32)


@pytest.mark.parametrize("image_format", ["TIFF", "PPM"])
def test_float_samples_are_0_to_1(image_format: str) -> None:
    np.testing.assert_array_equal(greys(decode(encoded(Image.fromarray(FLOATS), image_format))), RAMP)


@pytest.mark.parametrize("outlier", [np.nan, np.inf, -np.inf, 1.02, -0.1, 65504.0])
def test_an_outlier_among_floats_changes_no_other_pixel(outlier: float) -> None:
    odd = FLOATS.copy()
    odd[3, 3] = outlier
    found = greys(decode(encoded(Image.fromarray(odd), "TIFF")))
    np.testing.assert_array_equal(np.delete(found, 51), np.delete(RAMP, 51))
    assert found[3, 3] == (255 if outlier > 1 else 0)


@pytest.mark.parametrize("scaled", [FLOATS * 255, FLOATS * 65535, FLOATS - 0.5, FLOATS * np.nan, FLOATS * 1.5])
def test_floats_of_another_range_are_refused(scaled: np.ndarray) -> None:
    with pytest.raises(UnsupportedImage, match=r"outside of 0 to 1.*Scale them"):
        decode(encoded(Image.fromarray(scaled), "TIFF"))


def bitmap(pixels: bytes, *, size: int, masks: bool) -> bytes:
    """A 32-bit BMP of one row, blue, green, red and alpha a pixel; size: of its header."""
    header = struct.pack("<IiiHHIIiiII", size, len(pixels) // 4, 1, 1, 32, 3 if masks else 0, 0, 0, 0, 0, 0)
    header += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) if size > 40 else b""
    header = header.ljust(size, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + size + len(pixels), 0, 0, 14 + size) + header + pixels


@pytest.mark.parametrize(("size", "masks"), [(40, False), (56, True), (108, True), (124, True), (108, False)])
def test_alpha_that_is_0_everywhere_in_a_bitmap_is_none(size: int, masks: bool) -> None:
    """Screenshots and the Windows clipboard never set it."""
    found = decode(bitmap(bytes([1, 2, 3, 0, 4, 5, 6, 0]), size=size, masks=masks))
    np.testing.assert_array_equal(np.asarray(found)[0], [[3, 2, 1], [6, 5, 4]])


def test_alpha_in_a_bitmap_counts_if_any_is_set() -> None:
    found = decode(bitmap(bytes([1, 2, 3, 0, 4, 5, 6, 255]), size=108, masks=True))
    np.testing.assert_array_equal(np.asarray(found)[0], [[255, 255, 255], [6, 5, 4]])


@pytest.mark.parametrize("greatest", [1, 15, 100, 255, 256, 1023, 4095, 65535])
def test_a_portable_map_is_scaled_by_its_greatest_value(greatest: int) -> None:
    values = np.linspace(0, greatest, 12).astype(int)
    right = np.rint(values * 255 / greatest + 1e-9)
    raw = values.astype(">u2" if greatest > 255 else "u1").tobytes()
    head = b"# a comment\n4 3 # another\n%d\n" % greatest
    text = b" ".join(b"%d" % value for value in values)
    np.testing.assert_array_equal(greys(decode(b"P5\n" + head + raw)).ravel(), right)
    np.testing.assert_array_equal(greys(decode(b"P2\n" + head + text)).ravel(), right)
    colours = b"\n2 2\n%d\n" % greatest
    np.testing.assert_array_equal(np.asarray(decode(b"P6" + colours + raw)).ravel(), right)
    np.testing.assert_array_equal(np.asarray(decode(b"P3" + colours + text)).ravel(), right)


def test_in_a_portable_bitmap_1_is_black() -> None:
    for file in (b"P1\n4 1\n0110", b"P1 4 1 0 1 1 0 # end", b"P4\n4 1\n\x60"):
        np.testing.assert_array_equal(greys(decode(file))[0], [255, 0, 0, 255])


@pytest.mark.parametrize(
    "file",
    [b"P5 4 4 100 abc", b"P5 4 4 0 abc", b"P6 4 4", b"P2 2 2 9 1 2 3", b"P2 2 1 9 1 x", b"P1 2 1 0 7", b"P5 0 9 9 "],
)
def test_a_broken_portable_map_is_undecodable(file: bytes) -> None:
    with pytest.raises(UndecodableImage):
        decode(file)


def test_a_portable_map_that_announces_too_much_is_too_large() -> None:
    with pytest.raises(ImageTooLarge):
        decode(b"P5 100000 100000 100 abc")


def test_adobes_cmyk_is_not_negative() -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 60))
    assert np.abs(np.asarray(decode(encoded(image.convert("CMYK"), "JPEG"))).astype(int) - (200, 30, 60)).max() < 8


def test_jpegs_of_another_kind_are_named() -> None:
    with pytest.raises(UnsupportedImage, match="12-bit JPEG"):
        decode((CASES / "jpeg_12bit.jpg").read_bytes())
    jpeg = encoded(Image.new("RGB", (16, 16)), "JPEG")
    for marker, name in ((0xC3, "lossless JPEG"), (0xC5, "hierarchical JPEG")):
        with pytest.raises(UnsupportedImage, match=name):
            decode(jpeg.replace(b"\xff\xc0", bytes([0xFF, marker])))


def test_cmyk_that_does_not_say_which_way_its_ink_goes_is_refused() -> None:
    """Adobe's marker says it: there 0 is full ink. Without it readers differ."""
    jpeg = encoded(Image.new("CMYK", (16, 16), (200, 30, 60, 0)), "JPEG")
    assert jpeg.count(b"Adobe") == 1
    with pytest.raises(UnsupportedImage, match="CMYK JPEG"):
        decode(jpeg.replace(b"Adobe", b"Other"))


def test_a_file_of_nothing_but_metadata_is_given_up_on() -> None:
    png = encoded(Image.new("L", (4, 4)), "PNG")
    jpeg = encoded(Image.new("L", (4, 4)), "JPEG")
    for file in (png[:33] + chunk(b"teXt", b"") * 70_000 + png[33:], jpeg[:2] + b"\xff\x00" * 70_000 + jpeg[2:]):
        with pytest.raises(UndecodableImage):
            decode(file)


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("bits", "colour"), [(1, 0), (8, 0), (16, 0), (8, 2), (8, 3), (8, 6)])
def test_a_png_whose_whole_data_stream_lacks_rows_is_truncated(bits: int, colour: int, interlaced: int) -> None:
    """The stream ends as it should, at the end of a row: Pillow leaves the rest black, and says nothing."""
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[colour]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, bits, colour, 0, 0, interlaced))
    palette = [chunk(b"PLTE", bytes(range(30, 33)) * 256)] if colour == 3 else []
    steps = ((8, 8), (8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2)) if interlaced else ((1, 1),)
    counts = (2, 2, 2, 4, 4, 8, 8) if interlaced else (16,)
    rows = [
        b"\0" + b"\xff" * -(-(16 // across) * bits * channels // 8)
        for (across, _), count in zip(steps, counts, strict=True)
        for _ in range(count)
    ]

    def file(rows: list[bytes]) -> bytes:
        pieces = header, *palette, chunk(b"IDAT", zlib.compress(b"".join(rows))), chunk(b"IEND", b"")
        return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)

    assert np.asarray(decode(file(rows))).min() >= 30
    for kept in (len(rows) - 1, len(rows) // 2):
        with pytest.raises(UndecodableImage, match="truncated"):
            decode(file(rows[:kept]))


def test_a_png_whose_last_row_is_black_is_whole() -> None:
    assert decode(png_of((2, 2, 8, 0), [b"\7\7", b"\0\0"])).getpixel((0, 1)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("file", "error", "name"),
    [
        (png_of((1, 1, 8, 3), [b"\0"]), UndecodableImage, "no palette"),
        (png_of((1, 1, 8, 0), [b"\0"], chunk(b"CgBI", b"\x50\0\x20\2")), UnsupportedImage, "Apple"),
    ],
)
def test_a_png_that_cannot_be_read_says_why(file: bytes, error: type[Exception], name: str) -> None:
    with pytest.raises(error, match=name):
        decode(file)


@pytest.mark.parametrize(("compression", "interlace"), [(1, 0), (0, 2)])
def test_a_png_of_an_unknown_method_is_broken(compression: int, interlace: int) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, compression, 0, interlace))
    data = chunk(b"IDAT", zlib.compress(bytes(999)))
    with pytest.raises(UndecodableImage, match="header is broken"):
        decode(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))


@pytest.mark.parametrize("head", [b"P4#%b\n8 #%b\n1\n", b"P6 1 #%b\n1 #%b\n255\n", b"Pf 1 1#%b\n#%b\n-1\n"])
def test_comments_in_the_header_of_a_portable_map_are_short(head: bytes) -> None:
    """Pillow would read 60 MB of them byte by byte."""
    little, much = b"c" * 30_000, b"c" * 70_000
    assert decode(head % (little, little) + bytes(12)).mode == "RGB"
    for pair in ((little, much), (much, little)):
        with pytest.raises(UndecodableImage, match="its header is broken"):
            decode(head % pair + bytes(12))
