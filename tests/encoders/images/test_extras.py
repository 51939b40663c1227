"""HEIC and JPEG XL, which need a package of their own, are read like any format."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from encoders.contract.errors import ImageTooLarge, UndecodableImage, UnsupportedImage
from encoders.images.decode import decode, load_plugins
from encoders.images.jxl import announced_size
from tests.encoders.images.files import CASES, encoded, exif
from tests.support.paths import ROOT
from tests.support.photographs import photograph

PHOTO = photograph("coffee").resize((72, 48))
WITHOUT = """
import sys
sys.modules[sys.argv[1]] = None
from encoders.contract.errors import NotAnImage
from encoders.images.decode import decode
try:
    decode(open(sys.argv[2], "rb").read())
except NotAnImage as error:
    print(error)
"""


def difference(a: Image.Image, b: Image.Image) -> float:
    assert a.size == b.size
    return float(np.abs(np.asarray(a).astype(float) - np.asarray(b)).mean())


def options(image_format: str) -> dict[str, object]:
    return {"lossless": True} if image_format == "JXL" else {"quality": 95, "chroma": 444}


def test_both_are_installed_here() -> None:
    assert load_plugins() == ["HEIF", "JXL"]


@pytest.mark.parametrize("image_format", ["HEIF", "JXL"])
def test_colour_grey_and_transparency_are_read(image_format: str) -> None:
    clear = PHOTO.convert("RGBA")
    clear.putalpha(PHOTO.convert("L"))
    over_white = Image.alpha_composite(Image.new("RGBA", PHOTO.size, "white"), clear).convert("RGB")
    grey = PHOTO.convert("L")
    for image, right in ((PHOTO, PHOTO), (clear, over_white), (grey, grey.convert("RGB"))):
        found = decode(encoded(image, image_format, **options(image_format)))
        assert found.mode == "RGB"
        assert difference(found, right) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_photograph_is_turned_once(orientation: int) -> None:
    """A phone says it twice: as a property of the image and as EXIF."""
    turned = Image.Exif()
    turned[274] = orientation
    upright = decode(encoded(PHOTO, "PNG", exif=turned))
    assert difference(decode(encoded(PHOTO, "HEIF", exif=turned.tobytes(), **options("HEIF"))), upright) < 3


def test_broken_exif_in_heic_costs_nothing() -> None:
    heic = encoded(PHOTO, "HEIF", exif=exif(1), **options("HEIF"))
    assert heic.count(b"II*\0") == 1
    assert difference(decode(heic.replace(b"II*\0", b"XX*\0")), PHOTO) < 3


def test_a_heic_of_ten_bits_is_read() -> None:
    wide = (np.asarray(PHOTO).astype(np.uint16) * 257).tobytes()
    out = io.BytesIO()
    pillow_heif.encode("RGB;16", PHOTO.size, wide, out, quality=95)
    assert difference(decode(out.getvalue()), PHOTO) < 5


def test_the_heic_of_a_phone_is_its_picture() -> None:
    example = Image.open(ROOT / "docs" / "example.png").convert("RGB")
    assert difference(decode((CASES / "heic.heic").read_bytes()), example) < 3


def test_a_jpeg_packed_as_jpeg_xl_is_turned_by_its_own_exif(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[274] = 6
    jpeg = encoded(PHOTO, "JPEG", exif=turned, quality=95)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg)
    with Image.open(path) as image:
        packed = encoded(image, "JXL", lossless_jpeg=True)
    assert difference(decode(packed), decode(jpeg)) < 0.1


def test_wide_grey_and_float_in_jpeg_xl_are_scaled() -> None:
    grey = np.asarray(PHOTO.convert("L"))
    for wide in (grey.astype(np.uint16) * 257, (grey / 255).astype(np.float32)):
        found = decode(encoded(Image.fromarray(wide), "JXL", lossless=True))
        assert difference(found, Image.fromarray(grey).convert("RGB")) <= 1


ODD_JXL = {
    "animated": "1044d00202608040000003c004b188b15801dd4ff0018d0af9ad000080404003c004b188b15805dd4ff001892ae9a2801",
    "multiplied": "1c00028010810100044004b188b15801dc0ff0028508b008070d368",
    "black ink": "1c02800090810100044004b188b15801dc0ff0028508b008070d368",
    "spot colour": "1c008000000000000000000090810100044004b188b15801dc0ff0028508b008070d368",
    "grey of 16 bits": "1f023f801286e040810100048004b188b15802500ff34a022000031d3d26869",
}
"""Of one colour, 8 x 8 pixels, by libjxl: its decoder's wrapper gives the last frame, or other pixels."""
EVEN_JXL = {
    "turned": "12c1013080401003c004b188b15801dd4ff0018d0af9ad000",
    "of a size for screens": "1440c088809080401003c004b188b15801dd4ff0018d0af9ad000",
    "with depths": "1c004900810100044004b188b15801dc0ff0028508b008070d368",
}


@pytest.mark.parametrize("name", ODD_JXL)
def test_a_jpeg_xl_that_its_decoder_reads_wrongly_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedImage, match=name):
        decode(bytes.fromhex("ff0a4" + ODD_JXL[name]))


@pytest.mark.parametrize("name", EVEN_JXL)
def test_a_jpeg_xl_with_more_in_its_header_is_its_picture(name: str) -> None:
    found = decode(bytes.fromhex("ff0a4" + EVEN_JXL[name]))
    assert (found.size, found.getextrema()) == ((8, 8), ((90, 90),) * 3)


@pytest.mark.parametrize("size", [(8, 8), (256, 256), (257, 100), (640, 480), (1000, 3), (1, 1200), (1920, 1080)])
def test_the_size_of_a_jpeg_xl_is_known_from_its_header(size: tuple[int, int]) -> None:
    for more in ({}, {"use_container": True}):
        file = encoded(Image.new("L", size), "JXL", effort=1, **more)
        assert announced_size(file) == size
        with pytest.raises(ImageTooLarge):
            decode(file, max_pixels=size[0] * size[1] - 1)


def test_a_heic_over_the_limit_is_refused() -> None:
    with pytest.raises(ImageTooLarge):
        decode(encoded(PHOTO, "HEIF"), max_pixels=72 * 48 - 1)


@pytest.mark.parametrize("image_format", ["HEIF", "JXL"])
def test_a_truncated_file_is_undecodable(image_format: str) -> None:
    file = encoded(PHOTO, image_format)
    with pytest.raises(UndecodableImage):
        decode(file[: len(file) // 2])


@pytest.mark.parametrize(
    ("package", "image_format", "advice"),
    [("pillow_heif", "HEIF", "HEIC (HEIF)|visiontower[heif]"), ("pillow_jxl", "JXL", "JPEG XL|visiontower[jxl]")],
)
def test_without_its_package_a_format_is_named_and_so_is_the_extra(
    package: str, image_format: str, advice: str, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    path.write_bytes(encoded(PHOTO, image_format))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, package, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert all(word in done.stdout for word in advice.split("|"))
