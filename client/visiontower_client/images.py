"""What a user has in hand -> the bytes of an image file.

A file's bytes go as they are. Pixels (NumPy, Pillow) become PNG without compression: compressing 224x224 pixels takes
4 to 6 ms and saves a fifth to a third, copying them 0.3 ms.
"""

import io
import os
import re
import struct
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visiontower_client.errors import BadImage
from visiontower_client.values import Text

_FILE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|ppm|avif|hei[cf]|jxl)\s*$", re.IGNORECASE)
_ADDRESS = re.compile(r"\s*(https?://|data:image/|file://)", re.IGNORECASE)
_QUALITY = 95
"""Of the JPEG that a shrunk photograph becomes."""
_ORIENTATION = 0x0112
"""The tag of EXIF and TIFF."""
_AS_IT_IS = frozenset({"transparency", "Raw profile type exif"})
"""What a file may hold that is not kept when it is shrunk."""


def is_one(value: object) -> bool:
    """Whether it is one input, rather than several."""
    if isinstance(value, np.ndarray):
        return value.ndim < 4
    return isinstance(value, str | bytes | bytearray | memoryview | os.PathLike) or _is_pillow(value) or _is_file(value)


def require_words(text: str) -> str:
    """A text. Raises ValueError for half a surrogate pair, and for a file or an address that is no Text."""
    text.encode()
    if not isinstance(text, Text) and len(text) < 4096:
        shown = text if len(text) <= 100 else f"{text[:100]}..."
        if _FILE.search(text):
            raise ValueError(
                f"{shown!r} is a str, so it is a text, but it looks like a file: pass pathlib.Path({shown!r}) for the "
                f"image, or visiontower_client.Text({shown!r}) for the words."
            )
        if _ADDRESS.match(text):
            raise ValueError(
                f"{shown!r} is a str, so it is a text, but it looks like an address: pass the image's bytes, or "
                "visiontower_client.Text(...) for the words."
            )
    return text


def bytes_of(value: Any, *, shrink_to: tuple[int, int] | None = None) -> bytes:
    """One image as the bytes of a file. shrink_to: (height, width) that the encoder sees; larger ones are shrunk.

    Raises BadImage for a file or a Pillow image that cannot be read, TypeError or ValueError for what is no image.
    """
    is_pillow = _is_pillow(value)
    source = value if is_pillow else _content(value)
    smaller = None if shrink_to is None else _shrunk(source, shrink_to)
    if smaller is not None:
        return smaller
    return _pillow_file(value) if is_pillow else source


def png(pixels: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    """uint8 [height, width, 3] as PNG, stored. Raises ValueError for other shapes and dtypes."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(
            f"An array of pixels is uint8 [height, width, 3], red first; this one is {pixels.dtype} "
            f"{list(pixels.shape)}. An array of vectors or of normalised pixels cannot be sent."
        )
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # a row begins with its filter: none
    rows[:, 1:] = pixels.reshape(height, 3 * width)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.data, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in chunks
    )


def require_pillow() -> None:
    """Raises ImportError, which says what to install, if photographs cannot be shrunk here."""
    try:
        import PIL.Image  # noqa: F401  # asked for, not used
    except ImportError as error:
        raise ImportError("shrink=True needs Pillow: pip install 'visiontower-client[shrink]'.") from error


def _content(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.ndarray):
        return png(value)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, os.PathLike):
        return _read(Path(value))
    if _is_file(value):
        return _read_file(value)
    raise TypeError(
        f"{type(value).__name__} is no image: pass a pathlib.Path, bytes, a file opened for reading bytes, a Pillow "
        "image or a NumPy array of uint8 [height, width, 3]. A str is a text."
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_file(file: Any) -> bytes:
    """Raises TypeError for a file that gives no bytes: of text, or an asynchronous one."""
    try:
        content = file.read()
    except io.UnsupportedOperation:  # opened for writing: the caller's fault, and not the image's
        raise
    except OSError as error:
        raise _unreadable(getattr(file, "name", "the file"), error) from error
    if not isinstance(content, bytes):
        raise TypeError(f"{type(file).__name__}.read() gives {type(content).__name__}, and no bytes.")
    return content


def _unreadable(name: object, error: OSError) -> BadImage:
    reason = error.strerror or str(error)
    facts: Mapping[str, Any] = {"path": str(name)}
    return BadImage(f"{name} cannot be read: {reason}.", slug="image-unreadable", facts=facts)


def _is_file(value: object) -> bool:
    """Whatever can be read, as tempfile's files and those of web frameworks, which derive from no class of io."""
    return callable(getattr(value, "read", None)) and not isinstance(value, io.TextIOBase)


def _is_pillow(value: object) -> bool:
    """Whoever holds a Pillow image has imported Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _pillow_file(image: Any) -> bytes:
    try:
        image.load()  # Pillow opens a file without reading it to its end
    except Exception as error:  # it raises anything on a broken file
        raise BadImage(f"The Pillow image cannot be read: {error}.", slug="undecodable-image") from error
    turned = _turned(image)
    buffer = io.BytesIO()
    if image.mode == "I" and image.format in ("PNG", "PPM"):
        image = image.convert("I;16")  # which they are in the file
    if image.mode in ("I;16B", "I;16L", "I", "F"):  # a conversion to RGB would clip them
        image.save(buffer, "TIFF", **turned)
        return buffer.getvalue()
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = image.convert("RGB")
    image.save(buffer, "PNG", compress_level=0, **turned)
    return buffer.getvalue()


def _turned(image: Any) -> dict[str, Any]:
    """The orientation in EXIF, for Image.save: the server turns by it, and so gives the vector of the file.

    Pillow's getexif would find one in XMP too, which the server ignores.
    """
    import PIL.Image

    if hasattr(image, "tag_v2"):  # a TIFF
        orientation = image.tag_v2.get(_ORIENTATION, 1)
    else:
        exif = PIL.Image.Exif()
        exif.load(image.info.get("exif") or b"")
        orientation = exif.get(_ORIENTATION, 1)
    if orientation not in range(2, 9):
        return {}
    alone = PIL.Image.Exif()
    alone[_ORIENTATION] = orientation
    return {"exif": alone}


def _shrunk(source: Any, needed: tuple[int, int]) -> bytes | None:
    """A photograph that just covers `needed`, as JPEG; None for what is small already or is better sent as it is.

    Only opaque RGB and grey: the server has rules for everything else.
    """
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
        if image.mode not in ("RGB", "L") or not _AS_IT_IS.isdisjoint(image.info):
            return None
        turned = _turned(image)
        is_swapped = bool(turned) and turned["exif"][_ORIENTATION] >= 5
        height, width = reversed(needed) if is_swapped else needed
        scale = max(width / image.width, height / image.height)
        if scale >= 1:
            return None
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        if isinstance(source, bytes):
            image.draft(None, (2 * size[0], 2 * size[1]))  # a JPEG is decoded smaller, which is several times faster
        buffer = io.BytesIO()
        small = image.resize(size, PIL.Image.Resampling.BICUBIC, reducing_gap=3.0)
        small.save(buffer, "JPEG", quality=_QUALITY, subsampling=0, **turned)
    except Exception:  # Pillow raises anything on a broken file, which is the server's to judge
        return None
    return buffer.getvalue()
