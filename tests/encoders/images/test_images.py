"""Bytes to an upright RGB image, or a clear error. Real photographs in every form people send."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from encoders.contract.errors import EmptyImage, ImageTooLarge, NotAnImage, UndecodableImage
from encoders.images.decode import decode
from tests.support.photographs import photograph


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def difference(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, dtype=np.float32) - np.asarray(b, dtype=np.float32)).mean())


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG"])
def test_common_formats_decode(image_format: str) -> None:
    photo = photograph("chelsea")
    options = {"lossless": True} if image_format == "WEBP" else {}
    found = decode(encoded(photo, image_format, **options))
    assert found.mode == "RGB"
    assert found.size == photo.size
    assert difference(found, photo) < (8 if image_format in ("GIF", "JPEG") else 0.001)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photograph_is_upright(orientation: int) -> None:
    """EXIF tag 274 says how the camera was held; each case undoes it as the standard's figure says."""
    undo: dict[int, Callable[[Image.Image], Image.Image]] = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_270),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    }
    photo = photograph("rocket")
    exif = Image.Exif()
    exif[274] = orientation
    found = decode(encoded(photo, "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(undo[orientation](photo)))


def test_cmyk_looks_like_the_photograph() -> None:
    photo = photograph("coffee")
    found = decode(encoded(photo.convert("CMYK"), "JPEG", quality=95))
    assert found.mode == "RGB"
    assert difference(found, photo) < 3


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = np.asarray(photograph("astronaut").convert("L"))
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    for image_format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(np.asarray(decode(encoded(wide, image_format)))[..., 0], grey)


def test_sixteen_bit_colour_decodes() -> None:
    """A 16-bit RGB PNG, which Pillow reads but cannot write: built by hand."""
    colours = np.asarray(photograph("astronaut").resize((16, 16))).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in colours)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(np.asarray(decode(png)), (colours // 257).astype(np.uint8))


def test_transparency_is_laid_over_white() -> None:
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    for candidate in (image, image.convert("LA"), image.quantize(8)):
        found = np.asarray(decode(encoded(candidate, "PNG")))
        assert (found[:, 4:] == 255).all()
        assert (found[:, :4] != 255).any()


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(image_format: str) -> None:
    frames = [Image.new("RGB", (12, 10), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if image_format == "WEBP" else {}
    found = decode(encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options))
    assert found.getpixel((5, 5)) == (255, 0, 0)


def test_one_pixel_is_an_image() -> None:
    assert decode(encoded(Image.new("RGB", (1, 1), "red"), "PNG")).size == (1, 1)


def test_no_bytes_are_empty() -> None:
    with pytest.raises(EmptyImage):
        decode(b"")


@pytest.mark.parametrize(
    "content", [b"just text in a file named .jpg", b"\0" * 64, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF"]
)
def test_what_is_no_image_names_the_formats(content: bytes) -> None:
    with pytest.raises(NotAnImage, match="JPEG, PNG"):
        decode(content)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_truncated_file_is_undecodable(image_format: str) -> None:
    whole = encoded(photograph("coffee"), image_format)
    with pytest.raises((UndecodableImage, NotAnImage)):
        decode(whole[: len(whole) // 2])


def png_bomb(width: int, height: int) -> bytes:
    """A grey PNG that announces its size and compresses a little of it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1_000_000)))


def test_a_bomb_is_refused_by_its_header() -> None:
    """20,000 x 20,000 pixels in a few bytes: nothing may be decoded."""
    with pytest.raises(ImageTooLarge, match=r"400,000,000 pixels.*67,108,864") as caught:
        decode(png_bomb(20_000, 20_000))
    assert caught.value.facts == {"actual": 400_000_000, "limit": 64 * 1024 * 1024}


def test_the_limit_is_the_callers() -> None:
    photo = encoded(photograph("rocket"), "PNG")
    assert decode(photo, max_pixels=427 * 640).size == (640, 427)
    with pytest.raises(ImageTooLarge):
        decode(photo, max_pixels=427 * 640 - 1)
