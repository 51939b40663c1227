"""Metadata never costs a sound picture: the orientation is found, all else is neither read nor judged."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from encoders.contract.errors import UndecodableImage
from encoders.images.containers import orientation
from encoders.images.decode import decode
from tests.encoders.images.files import CASES, chunk, chunks, encoded, exif, jpeg_with, png_of, with_chunks
from tests.support.photographs import photograph

PHOTO = photograph("rocket").resize((40, 30))
UPRIGHT = PHOTO.transpose(Image.Transpose.ROTATE_270)
"""What orientation 6 asks for."""

ODD_ENTRIES = {
    "Make as RATIONAL": struct.pack("<HHII", 271, 5, 1, 8),
    "ImageWidth as RATIONAL outside of the block": struct.pack("<HHII", 256, 5, 1, 1 << 30),
    "ResolutionUnit as ASCII": struct.pack("<HHI4s", 296, 2, 2, b"2\0\0\0"),
    "XResolution 1/0": struct.pack("<HHII", 282, 5, 1, 0),
    "a type that does not exist": struct.pack("<HHII", 305, 999, 1, 0),
    "four thousand million values": struct.pack("<HHII", 306, 2, 0xFFFFFFFF, 0),
    "a sub-directory that is the directory itself": struct.pack("<HHII", 34665, 4, 1, 8),
    "GPS as text": struct.pack("<HHI4s", 34853, 2, 4, b"gps\0"),
    "the maker's notes cut off": struct.pack("<HHII", 37500, 7, 5000, 60),
}


def same(found: Image.Image, image: Image.Image, *, within: float = 0) -> bool:
    if found.size != image.size:
        return False
    return float(np.abs(np.asarray(found).astype(float) - np.asarray(image)).mean()) <= within


@pytest.mark.parametrize("odd", list(ODD_ENTRIES))
def test_the_orientation_is_found_beside_a_broken_tag(odd: str) -> None:
    block = exif(6, ODD_ENTRIES[odd])
    jpeg = encoded(PHOTO, "JPEG", quality=95)
    assert same(decode(jpeg_with(b"Exif\0\0" + block, jpeg)), UPRIGHT, within=4)
    assert same(decode(with_chunks(encoded(PHOTO, "PNG"), chunk(b"eXIf", block))), UPRIGHT)
    assert same(decode(encoded(PHOTO, "WEBP", lossless=True, exif=block)), UPRIGHT)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 3, 4])
def test_the_orientation_is_read_in_both_byte_orders_and_as_any_integer(order: str, kind: int) -> None:
    assert orientation(exif(8, order=order, kind=kind)) == 8


@pytest.mark.parametrize(
    "block", [b"", b"II", b"MM\0*", bytes(64), b"II*\0\xff\xff\xff\xff", exif(9), exif(0), exif(6)[:14], b"Exif\0\0"]
)
def test_an_exif_block_without_a_sound_orientation_turns_nothing(block: bytes) -> None:
    assert orientation(block) == 1
    jpeg = encoded(PHOTO, "JPEG", quality=95)
    assert same(decode(jpeg_with(b"Exif\0\0" + block, jpeg)), PHOTO, within=4)
    assert same(decode(with_chunks(encoded(PHOTO, "PNG"), chunk(b"eXIf", block))), PHOTO)
    assert same(decode(encoded(PHOTO, "WEBP", lossless=True, exif=block or b"x")), PHOTO)


@pytest.mark.parametrize("entries", [1, 2, 500, 65535])
def test_a_wrong_count_of_entries_does_not_hide_the_orientation(entries: int) -> None:
    block = bytearray(exif(6))
    struct.pack_into("<H", block, 8, entries)
    assert orientation(bytes(block)) == 6


@pytest.mark.parametrize("marker", [*range(0xE1, 0xF0), 0xFE])
def test_a_jpegs_other_segments_are_not_looked_into(marker: int) -> None:
    """APP14 apart, which names the colours if it is Adobe's."""
    jpeg = encoded(PHOTO, "JPEG", quality=95)
    for body in (
        b"",
        b"Exif\0",
        b"ICC_PROFILE\0\1",
        b"MPF\0II*\0\xff\xff",
        b"Photoshop 3.0\0\0\0",
        b"\xff" * 300,
        b"Ado",
    ):
        assert same(decode(jpeg_with(body, jpeg, marker=marker)), PHOTO, within=4)


def test_rubbish_between_a_jpegs_segments_is_passed_over() -> None:
    jpeg = encoded(PHOTO, "JPEG", quality=95)
    assert same(decode(jpeg[:20] + b"\0\1\2" + jpeg[20:]), PHOTO, within=4)
    assert same(decode(jpeg[:2] + b"\xff\xff" + jpeg[2:]), PHOTO, within=4)


def test_a_photograph_with_more_pictures_in_it_is_its_first() -> None:
    """MPO, as phones write it."""
    mpo = encoded(PHOTO, "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))], quality=95)
    assert same(decode(mpo), PHOTO, within=4)


BOMB = zlib.compress(bytes(50_000_000))
ODD_CHUNKS = {
    "much text": chunk(b"zTXt", b"workflow\0\0" + BOMB),
    "a checksum that does not fit": chunk(b"tEXt", b"Title\0picture", checksum=1),
    "a profile by an unknown method": chunk(b"iCCP", b"icc\0\5" + bytes(9)),
    "a profile that is none": chunk(b"iCCP", b"icc\0\0rubbish"),
    "gamma of one byte": chunk(b"gAMA", b"\0"),
    "size of three bytes": chunk(b"pHYs", b"\0\0\0"),
    "text without an end": chunk(b"iTXt", b"Title\0\1"),
    "a rendering intent of no bytes": chunk(b"sRGB", b""),
    "animation of no bytes": chunk(b"acTL", b""),
    "a frame of no bytes": chunk(b"fcTL", b""),
    "EXIF that is none": chunk(b"eXIf", b"nothing"),
    "EXIF in words, no hexadecimal": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n  20\nzznothex"),
    "EXIF in words, a bomb": chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
    "a private one": chunk(b"prVt", b"\xff" * 99),
}


@pytest.mark.parametrize("odd", list(ODD_CHUNKS))
def test_a_pngs_ancillary_chunks_are_neither_inflated_nor_judged(odd: str) -> None:
    png = encoded(PHOTO, "PNG")
    for before in (b"IDAT", b"IEND"):
        assert same(decode(with_chunks(png, ODD_CHUNKS[odd], before=before)), PHOTO)


def test_an_ancillary_chunk_that_is_cut_off_behind_the_pixels_is_passed_over() -> None:
    png = encoded(PHOTO, "PNG")
    assert same(decode(png[:-12] + struct.pack(">I4s", 5000, b"tEXt") + b"Title\0cut"), PHOTO)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_orientation_that_was_written_out_in_hexadecimal_is_found(kind: bytes) -> None:
    """As ImageMagick writes EXIF into PNG."""
    block = b"Exif\0\0" + exif(6)
    text = b"\nexif\n%8d\n%b\n" % (len(block), block.hex().encode())
    compressed = zlib.compress(text)
    body = {b"tEXt": b"\0" + text, b"zTXt": b"\0\0" + compressed, b"iTXt": b"\0\1\0\0\0" + compressed}[kind]
    png = with_chunks(encoded(PHOTO, "PNG"), chunk(kind, b"Raw profile type exif" + body))
    assert same(decode(png), UPRIGHT)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_png_with_a_damaged_critical_chunk_is_broken(kind: bytes) -> None:
    pieces = [
        each[:-4] + bytes([each[-4] ^ 1]) + each[-3:] if each[4:8] == kind else each
        for each in chunks(encoded(PHOTO.quantize(16), "PNG"))
    ]
    with pytest.raises(UndecodableImage, match="broken PNG"):
        decode(b"\x89PNG\r\n\x1a\n" + b"".join(pieces))


def test_webp_with_a_profile_and_comments_cut_off_is_its_picture() -> None:
    webp = encoded(PHOTO, "WEBP", lossless=True, icc_profile=b"no profile", exif=exif(6), xmp=b"<x/>")
    assert same(decode(webp), UPRIGHT)
    assert same(decode(webp[: webp.index(b"XMP ") + 6]), UPRIGHT)


@pytest.mark.parametrize(
    "extension", [b"!\xfe\0", b"!\xfe\5hello\0", b"!\xff\x0bNETSCAPE2.0\0", b"!\xff\1x\0", b"!\1\0", b"!\x77\2ab\1c\0"]
)
def test_a_gifs_comments_and_unknown_extensions_are_passed_over(extension: bytes) -> None:
    clear = Image.new("RGBA", (6, 5), (200, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 3, 5))
    gif = encoded(clear, "GIF")
    start = 13 + (3 << (gif[10] & 7) + 1)
    found = decode(gif[:start] + extension * 3 + gif[start:])
    assert same(found, decode(gif))
    assert (found.getpixel((0, 0)), found.getpixel((5, 4))) == ((255, 255, 255), (200, 0, 0))


@pytest.mark.parametrize("clear", [None, 1])
def test_what_a_gifs_first_frame_leaves_free_is_clear(clear: int | None) -> None:
    """Pillow gives it the first colour of the palette."""
    frame = Image.new("P", (3, 2), 1)
    frame.putpalette([9, 9, 9, 200, 0, 0])
    gif = bytearray(encoded(frame, "GIF", **({} if clear is None else {"transparency": clear})))
    at = gif.index(b",", 13)
    gif[6:10], gif[at + 1 : at + 5] = struct.pack("<HH", 6, 5), struct.pack("<HH", 2, 1)
    right = Image.new("RGB", (6, 5), "white")
    right.paste((200, 0, 0) if clear is None else (255, 255, 255), (2, 1, 5, 3))
    assert same(decode(bytes(gif)), right)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["AVIF", "WEBP", "TIFF", "JPEG"])
def test_a_picture_is_turned_once(image_format: str, orientation: int) -> None:
    """AVIF says it twice, as a property of the image and as EXIF."""
    turned = Image.Exif()
    turned[274] = orientation
    upright = decode(encoded(PHOTO, "PNG", exif=turned))
    options = {"lossless": True} if image_format == "WEBP" else {} if image_format == "TIFF" else {"quality": 95}
    assert same(decode(encoded(PHOTO, image_format, exif=turned, **options)), upright, within=6)


def test_broken_exif_in_avif_costs_nothing() -> None:
    turned = Image.Exif()
    turned[274], turned[270] = 6, "a picture"
    avif = encoded(PHOTO, "AVIF", exif=turned, quality=95)
    assert avif.count(b"MM\0*") == 1
    assert same(decode(avif.replace(b"MM\0*", b"XX\0*")), UPRIGHT, within=6)


@pytest.mark.parametrize("case", sorted(path.name for path in CASES.glob("exif_o6_*")))
def test_photographs_with_harmless_flaws_are_upright(case: str) -> None:
    upright = Image.open(CASES.parent.parent.parent.parent / "docs" / "example.png").convert("RGB")
    assert same(decode((CASES / case).read_bytes()), upright, within=6)


def test_a_photograph_whose_exif_makes_pillow_fail_is_turned() -> None:
    assert decode((CASES / "unforeseen_0_AttributeError.jpg").read_bytes()).size == (32, 40)


def test_a_png_whose_data_cannot_fill_it_is_undecodable() -> None:
    """Pillow would make 32 million black pixels of these few bytes."""
    with pytest.raises(UndecodableImage, match="its size is wrong"):
        decode(png_of((4, 8_000_000, 8, 0), [b"abcd"]))
    white = png_of((4000, 2000, 1, 0), [b"\xff" * 500] * 2000)
    assert decode(white).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_data_cannot_fill_it_is_undecodable(progressive: bool) -> None:
    """libjpeg would paint what is missing grey. The largest pictures of one colour are not taken for such."""
    jpeg = encoded(PHOTO, "JPEG", progressive=progressive)
    at = jpeg.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    with pytest.raises(UndecodableImage, match="its size is wrong"):
        decode(jpeg[:at] + struct.pack(">HH", 4000, 4000) + jpeg[at + 4 :])
    flat = encoded(Image.new("L", (4000, 4000), 90), "JPEG", progressive=progressive, optimize=True)
    assert decode(flat).size == (4000, 4000)


def test_an_unknown_critical_chunk_and_a_broken_palette_are_refused_as_libpng_does() -> None:
    png = encoded(PHOTO.quantize(16), "PNG")
    with pytest.raises(UndecodableImage, match="critical chunk b'ABCD' is unknown"):
        decode(with_chunks(png, chunk(b"ABCD", b"what it means decides")))
    for palette in (b"", b"\1\2", bytes(3 * 257)):
        with pytest.raises(UndecodableImage, match="no palette, or a broken one"):
            decode(png_of((2, 2, 8, 3), [bytes(2)] * 2, chunk(b"PLTE", palette)))


def test_few_texts_of_a_png_are_searched_for_its_orientation() -> None:
    """Each may inflate to 256 KiB: tens of thousands would take a minute."""
    words = b"exif\n  %d\n%b" % (len(exif(6)), exif(6).hex().encode())
    empty = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(300_000)))
    found = chunk(b"tEXt", b"Raw profile type exif\0\n" + words)
    png = encoded(PHOTO, "PNG")
    assert decode(with_chunks(png, *[empty] * 3, found)).size == PHOTO.size[::-1]
    assert decode(with_chunks(png, *[empty] * 4, found)).size == PHOTO.size


def test_millions_of_entries_in_an_exif_block_are_not_looked_at() -> None:
    block = exif(6, *[struct.pack("<HHII", 5, 5, 1_000_000, 8)] * 5000)
    assert orientation(block) == 1
    assert orientation(exif(6, *[struct.pack("<HHII", 5, 5, 1_000_000, 8)] * 50)) == 6
