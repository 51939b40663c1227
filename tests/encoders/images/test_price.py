"""What a decode will take is told from the header: what is plain, and never less than it takes."""

import io
import struct
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from encoders.contract.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize
from encoders.images.decode import MAX_PIXELS, decode
from encoders.images.price import Price, price, size_of
from tests.encoders.images.files import chunk, encoded, jpeg_with, png_of, seeds, with_scans
from tests.support.paths import ROOT
from tests.support.photographs import photograph

ANY = Preprocessing((0, 0, 0), (1, 1, 1))
SIZE = ImageSize(224, 224)


def priced(file: bytes, *, exact: bool = False, max_pixels: int = MAX_PIXELS) -> Price:
    return price(file, ANY, SIZE, exact=exact, max_pixels=max_pixels)


def announced(width: int, height: int, kind: str) -> bytes:
    """A file that says to be of this size, and little else."""
    if kind == "JPEG":
        frame = (
            b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0])
        )
        return b"\xff\xd8\xff\xe0\0\4\0\0" + frame + b"\xff\xda\0\x0c\3\1\0\2\0\3\0\0\x3f\0" + bytes(20)
    if kind == "PNG":
        return png_of((width, height, 8, 2), [])
    assert kind == "WEBP"
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas + bytes(32)


PLAIN = {
    "JPEG", "JPEG progressive", "JPEG CMYK", "JPEG, odd EXIF", "PNG", "PNG palette", "PNG key", "APNG", "WEBP",
    "WEBP lossless",
}  # fmt: skip


def test_plain_are_the_common_formats_and_nothing_else() -> None:
    assert {name for name, file in seeds().items() if priced(file).is_plain} == PLAIN


def test_what_is_no_image_is_plain_for_it_is_refused_at_once() -> None:
    assert priced(b"").is_plain
    assert priced(b"%PDF-1.7" + bytes(1000)).is_plain


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_large_picture_is_not_plain_for_the_others_would_wait_for_it(kind: str) -> None:
    assert priced(announced(1000, 1000, kind)).is_plain
    assert not priced(announced(8000, 8000, kind)).is_plain


def test_a_jpeg_of_many_scans_is_not_plain_and_costs_more() -> None:
    jpeg = encoded(photograph("chelsea"), "JPEG", progressive=True)
    few, many = priced(with_scans(jpeg, 4)), priced(with_scans(jpeg, 20_000))
    assert few.is_plain
    assert not many.is_plain
    assert many.work > 100 * few.work
    assert many.cpu_s <= few.cpu_s + 1  # the sender's scans give it no more time
    assert decode(with_scans(jpeg, 4)).size == photograph("chelsea").size


def test_scans_of_single_colours_are_counted_too() -> None:
    """A baseline JPEG whose scans hold one colour each is decoded like a progressive one."""
    jpeg = encoded(photograph("chelsea"), "JPEG")
    at = jpeg.index(b"\xff\xda")
    single = jpeg[:at] + 50 * (b"\xff\xda\0\x08\1\1\0\0\x3f\0" + bytes(40)) + jpeg[-2:]
    assert priced(jpeg).is_plain
    assert not priced(single).is_plain


def test_the_coefficients_of_a_progressive_jpeg_are_priced_whatever_part_of_it_is_decoded() -> None:
    photo = Image.new("RGB", (2048, 2048))
    baseline, progressive = (encoded(photo, "JPEG", progressive=each, subsampling=0) for each in (False, True))
    more = priced(progressive).decode_bytes - priced(baseline).decode_bytes
    assert more >= 2 * 3 * 2048**2 - 500_000
    assert priced(baseline).decode_bytes < priced(baseline, exact=True).decode_bytes // 4


def test_a_jpeg_that_hides_its_size_behind_segments_is_not_plain() -> None:
    jpeg = encoded(photograph("chelsea"), "JPEG")
    for _ in range(600):
        jpeg = jpeg_with(b"x", jpeg, marker=0xFE)
    assert not priced(jpeg).is_plain


@pytest.mark.parametrize("name", sorted(seeds()))
def test_the_size_is_that_of_the_decoded_picture(name: str) -> None:
    """By its pixels: the price of a wrong size would not be that of the right one."""
    file = seeds()[name]
    if name in ("AVIF damaged", "BMP alpha", "PFM"):
        return
    pixels = decode(file).width * decode(file).height
    ask = decode if name in ("AVIF", "HEIF") else priced
    with pytest.raises(ImageTooLarge) as too_large:
        ask(file, max_pixels=pixels - 1)
    assert too_large.value.facts["actual"] == pixels
    priced(file, max_pixels=pixels)


@pytest.mark.parametrize("name", sorted(seeds()))
def test_the_size_said_is_that_of_the_picture_before_it_is_turned(name: str) -> None:
    """A file that is cut, or no image, is no error: it may say a size, or none."""
    file = seeds()[name]
    if name not in ("AVIF damaged", "BMP alpha", "PFM", "HEIF"):
        picture = decode(file)
        assert size_of(file) in {ImageSize(*picture.size), ImageSize(*picture.size[::-1])}
    for length in range(min(len(file), 400)):
        size_of(file[:length])
    assert size_of(b"") is size_of(b"no image") is size_of(file[:2]) is None


@pytest.mark.parametrize("first", [b"IHDR", b"tEXt"])
def test_a_png_whose_header_is_not_its_first_and_only_one_is_undecodable(first: bytes) -> None:
    """Pillow takes the last one, and only the first was priced."""
    small = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    png = png_of((2000, 2000, 8, 2), [bytes(6000)] * 2000)
    with pytest.raises(UndecodableImage, match="not its first chunk, or not its only one"):
        decode(png[:8] + chunk(first, small) + png[8:])


def test_an_iphones_png_is_named_whatever_stands_where_a_size_would() -> None:
    png = png_of((4, 4, 8, 2), [bytes(12)] * 4)
    iphones = png[:8] + chunk(b"CgBI", b"\x50\0\x20\x02") + png[8:]
    assert not priced(iphones).is_plain
    with pytest.raises(UnsupportedImage, match="iPhones"):
        decode(iphones)


def odd_sizes() -> dict[str, bytes]:
    """Files in which a decoder finds a larger picture than the one whose size was read."""
    gif = encoded(Image.new("L", (2000, 1000)), "GIF")
    tiff = encoded(Image.new("L", (2000, 1000)), "TIFF")
    (at,) = struct.unpack_from("<I", tiff, 4)
    entries = {tiff[entry : entry + 2]: entry for entry in range(at + 2, len(tiff) - 11, 12)}
    width, kind = entries[struct.pack("<H", 256)], struct.pack("<H", 9)  # signed: it is not looked for
    jpeg = encoded(Image.new("L", (2000, 1000)), "JPEG")
    for _ in range(600):
        jpeg = jpeg_with(b"x", jpeg, marker=0xFE)
    return {
        "a GIF whose frame is larger than its screen": gif[:6] + struct.pack("<HH", 16, 16) + gif[10:],
        "a TIFF whose width is of an odd type": tiff[: width + 2] + kind + tiff[width + 4 :],
        "a PGM with no space between its sides": b"P5 0000020001000 254\n" + bytes(2_000_000),
        "a JPEG whose size lies behind many segments": jpeg,
    }


@pytest.mark.parametrize("odd", sorted(odd_sizes()))
def test_a_picture_that_is_larger_than_it_was_priced_is_not_decoded(odd: str) -> None:
    with pytest.raises(UndecodableImage, match="larger than its header says"):
        decode(odd_sizes()[odd])


def test_a_size_that_cannot_be_found_has_a_price_too() -> None:
    for name, file in seeds().items():
        for length in (13, 20, 40):
            cost = price(file[:length], ANY, SIZE, max_pixels=MAX_PIXELS)
            assert cost.nbytes >= cost.decode_bytes > 0, name


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_a_file_that_is_long_for_its_pixels_is_not_plain(image_format: str) -> None:
    """A deflate of empty blocks, or fill bytes, take seconds and make no pixel."""
    file = encoded(photograph("chelsea"), image_format)
    pixels = photograph("chelsea").width * photograph("chelsea").height
    assert priced(file + bytes(4 * pixels)).is_plain
    assert not priced(file + bytes(4 * pixels + 1024**2)).is_plain


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_noise_is_plain_however_little_it_is_compressed(mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (1500, 1500, 4), np.uint8)
    noise = Image.fromarray(values).convert(mode)
    assert priced(encoded(noise, "PNG", compress_level=0)).is_plain
    assert priced(encoded(noise.convert("RGB"), "JPEG", quality=100, subsampling=0)).is_plain


def test_an_interlaced_png_is_twice_the_work_for_its_rows_are_counted() -> None:
    png = png_of((4, 4, 8, 2), [bytes(12)] * 4)
    assert priced(png[:28] + b"\1" + png[29:]).work == 2 * priced(png).work


def test_fill_bytes_in_a_jpeg_are_read_once() -> None:
    """However many there are. Handed over in parts of 64 KiB, they would be read anew with each part."""
    jpeg = encoded(photograph("chelsea"), "JPEG")
    at = jpeg.index(b"\xff\xda") + 14
    asked: list[int] = []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            asked.append(len(found))
            return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("encoders.images.decode.io.BytesIO", Counted)
        with suppress(UndecodableImage):
            decode(jpeg[:at] + b"\xff" * 1_000_000 + jpeg[at:])
    assert max(asked) > 1_000_000


@pytest.mark.parametrize("marker", [0xC4, 0xDB])
def test_a_jpeg_of_many_tables_is_undecodable(marker: int) -> None:
    """Pillow takes seconds for 30 MB of them, before it decodes anything."""
    jpeg = encoded(photograph("chelsea"), "JPEG")
    begin = jpeg.index(bytes([0xFF, marker]))
    table = jpeg[begin : begin + 2 + int.from_bytes(jpeg[begin + 2 : begin + 4], "big")]
    assert decode(jpeg[:2] + 100 * table + jpeg[2:]).size == photograph("chelsea").size
    with pytest.raises(UndecodableImage, match="over 65,536 bytes of tables"):
        decode(jpeg[:2] + 2500 * table + jpeg[2:])


def test_a_lossless_webp_is_plain_while_its_tables_are_few_whatever_it_codes() -> None:
    """Each of 65,536 groups of codes takes 2.5 bytes of the file, and over 5 KB of memory."""
    photo = photograph("chelsea").resize((640, 480))
    small = photo.resize((256, 256))
    for image in (small, small.convert("L"), Image.new("RGB", (1920, 1080), "white")):
        assert priced(encoded(image, "WEBP", lossless=True)).is_plain
    large = priced(encoded(photo, "WEBP", lossless=True))
    assert not large.is_plain
    assert large.nbytes < 64 * 2**20  # a server of little memory takes it too


def test_a_lossy_webp_is_plain_and_costs_what_it_did_whatever_its_metadata() -> None:
    photo = photograph("chelsea").resize((640, 480))
    bare = encoded(photo, "WEBP")
    told = encoded(photo, "WEBP", icc_profile=bytes(20_000), exif=bytes(20_000), xmp=bytes(20_000))
    assert priced(bare).is_plain
    assert priced(told).is_plain
    assert priced(told).nbytes - priced(bare).nbytes < 2 * 60_000


def test_alpha_of_a_lossy_webp_is_lossless() -> None:
    clear = photograph("chelsea").resize((640, 480)).convert("RGBA")
    clear.putalpha(200)
    assert priced(encoded(clear, "WEBP")).is_plain
    clear.putalpha(photograph("coffee").resize(clear.size).convert("L"))
    assert not priced(encoded(clear, "WEBP")).is_plain


def test_a_16_bit_png_and_a_chunk_before_its_header_are_not_plain() -> None:
    assert not priced(png_of((4, 4, 16, 2), [bytes(24)] * 4)).is_plain
    png = png_of((4, 4, 8, 2), [bytes(12)] * 4)
    assert not priced(png[:8] + chunk(b"CgBI", bytes(4)) + png[8:]).is_plain


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
def test_no_format_takes_more_than_its_price() -> None:
    """4 megapixels each, in a process of their own; the 16-bit PNG, float TIFF and progressive JPEG of issue 15 too."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.encoders.images.peaks"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) > 30
    over = {name: (int(nbytes), int(taken)) for name, nbytes, taken in lines if int(taken) > int(nbytes)}
    assert over == {}
    assert max(int(taken) for _, _, taken in lines) > 30_000_000
