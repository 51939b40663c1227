"""Image bytes -> RGB image. Knows formats and limits; of an encoder no more than the size that it reads.

Everything that can fail because of the bytes (header, size, pixels, mode) happens here, before the image can share a
batch with another one. docs/images.md says what is read and how.
"""

import importlib
import io
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image, ImageFile, UnidentifiedImageError

from encoders.contract.errors import EmptyImage, ImageError, ImageTooLarge, NotAnImage, UndecodableImage
from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize
from encoders.images import containers
from encoders.images.bmp import bmp
from encoders.images.containers import Picture
from encoders.images.jxl import jxl
from encoders.images.netpbm import netpbm
from encoders.images.preprocess import enough
from encoders.images.price import UNKNOWN_PIXELS, part_of, size_of
from encoders.images.samples import rgb
from encoders.images.signatures import foreign, format_of
from encoders.images.tiff import tiff

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Formats that are always read. A closed list: Pillow also opens formats that start other programs (EPS)."""

MAX_PIXELS = 64 * 1024 * 1024
"""Default limit: 192 MiB of RGB; takes photographs up to 64 megapixels."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""


_MOST_REASON = 200
"""Characters of a decoder's message that are shown."""


@dataclass(frozen=True)
class Plugin:
    """A format that Pillow reads once another package is installed."""

    package: str
    register: str
    name: str
    extra: str

    def load(self) -> None:
        """Raises NotAnImage if it is not installed, or cannot be imported."""
        try:
            module = importlib.import_module(self.package)
        except ImportError as error:
            advice = f"Install visiontower[{self.extra}] on the server, or convert it to JPEG or PNG"
            raise NotAnImage(self.name, advice, FORMATS) from error
        if self.register and "HEIF" not in Image.OPEN:
            getattr(module, self.register)()


PLUGINS = {
    "HEIF": Plugin("pillow_heif", "register_heif_opener", "HEIC (HEIF)", "heif"),
    "JXL": Plugin("pillow_jxl", "", "JPEG XL", "jxl"),
}
"""By Pillow's name of the format."""


def decode(image_bytes: bytes, *, max_pixels: int = MAX_PIXELS, at_least: int | None = None) -> Image.Image:
    """The first frame as an RGB image, upright as a viewer shows it.

    at_least: JPEGs may be decoded at half, a quarter or an eighth of their size as long as both sides keep so many
        pixels; it saves most of the work on a photograph of many megapixels. None decodes every pixel.

    EXIF orientation is applied and no other metadata is read; transparency is laid over white; samples are scaled to
    8 bits by the range that the file declares; CMYK and palettes are converted; colour profiles are not applied. The
    number of pixels is read from the header and checked before anything is decoded.

    Raises EmptyImage, NotAnImage, UnsupportedImage, ImageTooLarge, UndecodableImage; nothing else, whatever a decoder
    raises.
    """
    if not image_bytes:
        raise EmptyImage
    name = "image"
    try:
        said = size_of(image_bytes)
        if image_bytes.startswith(b"\xff\xd8\xff"):
            picture = containers.jpeg(image_bytes)
        elif image_bytes.startswith(b"\x89PNG\r\n\x1a\n"):
            picture = containers.png(image_bytes)
        else:
            picture = _other(image_bytes, max_pixels)
        name = picture.format
        image: Image.Image = Image.open(io.BytesIO(picture.file), formats=(name,))
        if image.width * image.height > max_pixels:
            raise ImageTooLarge(pixels=image.width * image.height, limit=max_pixels)
        if image.width * image.height > (said.height * said.width if said else UNKNOWN_PIXELS):
            raise UndecodableImage(name, "it is larger than its header says")  # and than it was priced
        if picture.is_hollow:
            raise UndecodableImage(name, "it is truncated, or its size is wrong")
        if at_least is not None and name == "JPEG":
            _shrink(image, at_least)
        if isinstance(image, ImageFile.ImageFile) and name == "JPEG":
            image.decodermaxblock = len(picture.file)  # in parts, fill bytes would be read anew with each part
        image.load()
        if name == "PNG" and _ends_in_nothing(image) and containers.lacks_rows(picture.file):
            raise UndecodableImage(name, "it is truncated, or its size is wrong")
        turned = picture.orientation if picture.orientation is not None else _decoders_orientation(image)
        if image.mode != "RGB" or picture.transparent is not None or "transparency" in image.info:
            image = rgb(image, picture)
        return image if turned == 1 else image.transpose(_UPRIGHT[turned])
    except (ImageError, KeyboardInterrupt, SystemExit):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # over Pillow's own limit
        raise ImageTooLarge(pixels=_pixels_in(error), limit=max_pixels) from error
    except BaseException as error:  # a decoder raises anything, one in Rust even panics
        raise UndecodableImage(name, _reason(error)) from error


def decode_for(
    preprocessing: Preprocessing,
    image_bytes: bytes,
    size: ImageSize,
    *,
    exact: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """An RGB image with pixels enough for a model that is run at `size`, or with all it has if exact.

    Raises as decode.
    """
    return decode(image_bytes, max_pixels=max_pixels, at_least=None if exact else enough(preprocessing, size))


def _shrink(image: Image.Image, at_least: int) -> None:
    """Have a JPEG decoded at the smallest part of its size that keeps `at_least` pixels a side."""
    part = part_of(image.width, image.height, at_least)
    if part > 1:
        image.draft(None, (image.width // part, image.height // part))


def _ends_in_nothing(image: Image.Image) -> bool:
    """Whether a PNG may end in rows that Pillow had no data for, and left black; an interlaced one may anywhere."""
    last = image.crop((0, image.height - 1, image.width, image.height))
    return bool(image.info.get("interlace")) or last.getbbox(alpha_only=False) is None


def load_plugins() -> list[str]:
    """Let Pillow know of the formats whose packages are installed; their names."""
    found = []
    for name, plugin in PLUGINS.items():
        with suppress(NotAnImage):
            plugin.load()
            found.append(name)
    return found


def _other(image_bytes: bytes, max_pixels: int) -> Picture:
    """Of a format that is neither JPEG nor PNG. Raises NotAnImage, or ImageTooLarge."""
    name = format_of(image_bytes)
    if name == "WEBP":
        return containers.webp(image_bytes)
    if name == "GIF":
        return containers.gif(image_bytes)
    if name == "BMP":
        return bmp(image_bytes, max_pixels=max_pixels)
    if name == "PPM":
        return netpbm(image_bytes, max_pixels=max_pixels)
    if name == "TIFF":
        return tiff(image_bytes, max_pixels=max_pixels)
    if name in PLUGINS:
        PLUGINS[name].load()
    if name == "JXL":  # decoded as soon as it is opened
        return jxl(image_bytes, max_pixels=max_pixels)
    if name in ("AVIF", "HEIF"):
        return containers.iso(image_bytes, name)
    if name is None:
        thing = foreign(image_bytes)
        raise NotAnImage(thing.name, thing.advice, FORMATS)
    return Picture(name, image_bytes)


def _decoders_orientation(image: Image.Image) -> int:
    """Of AVIF, which Pillow turns into EXIF; and of a JPEG packed as JPEG XL. All else is upright by now."""
    is_left = image.format == "AVIF" or getattr(image, "jpeg", False)
    return containers.orientation(image.info.get("exif", b"")) if is_left else 1


def _reason(error: BaseException) -> str:
    """In a sentence; Pillow's own of an unidentified image names an address in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "its header is broken"
    if isinstance(error, MemoryError):
        return "there is no memory for it"
    sentence, _, _ = " ".join(str(error).split()).partition(". ")
    return sentence[:_MOST_REASON].rstrip(".") or f"its decoder ends with {type(error).__name__}"


def _pixels_in(error: BaseException) -> int:
    """The size out of Pillow's 'Image size (400000000 pixels) exceeds limit ...'."""
    digits = "".join(c for c in str(error).split("pixels")[0] if c.isdigit())
    return int(digits or 0)
