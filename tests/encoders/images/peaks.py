"""What decoding and resizing take, beside their price, format by format, in a process of its own: Linux tells the peak.

python -m tests.encoders.images.peaks    # a line a file: name, bytes priced, bytes taken
"""

import ctypes
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize
from encoders.images.decode import decode_for
from encoders.images.preprocess import preprocess
from encoders.images.price import price
from encoders.images.resample import resize
from tests.encoders.images.files import chunk, encoded, exif, png_of

SIDE = 2048
SIZE = ImageSize(224, 224)
MAX_PIXELS = 2 * SIDE**2
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def files() -> Iterator[tuple[str, bytes]]:
    """Pictures of 4 megapixels that give decoders much to do."""
    values = np.random.default_rng(0).integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8)
    photo = Image.fromarray(values).resize((SIDE, SIDE))
    clear = photo.convert("RGBA")
    clear.putalpha(photo.convert("L"))
    turned = b"Exif\0\0" + exif(6)
    yield "JPEG", encoded(photo, "JPEG", exif=turned)
    yield "JPEG grey", encoded(photo.convert("L"), "JPEG", exif=turned)
    yield "JPEG CMYK", encoded(photo.convert("CMYK"), "JPEG")
    yield "JPEG progressive", encoded(photo, "JPEG", progressive=True, subsampling=0)
    yield "JPEG progressive, odd", encoded(photo.crop((0, 0, SIDE - 1, SIDE - 1)), "JPEG", progressive=True)
    yield "PNG", encoded(photo, "PNG", compress_level=1)
    yield "PNG alpha", encoded(clear, "PNG", compress_level=1)
    yield "PNG grey and alpha", encoded(clear.convert("LA"), "PNG", compress_level=1)
    yield "PNG palette", encoded(clear.quantize(64), "PNG", compress_level=1)
    rows = [bytes(2 * SIDE)] * SIDE
    yield "PNG 16 grey", png_of((SIDE, SIDE, 16, 0), rows)
    yield "PNG 16 key", png_of((SIDE, SIDE, 16, 2), [bytes(6 * SIDE)] * SIDE, chunk(b"tRNS", bytes(6)))
    yield "PNG 16 alpha", png_of((SIDE, SIDE, 16, 6), [bytes(8 * SIDE)] * SIDE)
    yield "PNG key", png_of((SIDE, SIDE, 8, 2), [bytes(3 * SIDE)] * SIDE, chunk(b"tRNS", bytes(6)))
    yield "WEBP", encoded(photo, "WEBP", quality=50, method=0)
    yield "WEBP lossless", encoded(clear, "WEBP", lossless=True, quality=0, method=0)
    yield "GIF", encoded(photo.quantize(method=Image.Quantize.FASTOCTREE), "GIF")  # the default takes seconds
    yield "GIF clear", encoded(clear.quantize(64), "GIF", transparency=3)
    yield "BMP", encoded(photo, "BMP")
    yield "PPM", encoded(photo, "PPM")
    yield "PPM 16", b"P6 %d %d 65535\n" % (SIDE, SIDE) + bytes(6 * SIDE**2)
    yield "PPM plain", b"P2 %d %d 9\n" % (SIDE, SIDE) + b"1 " * SIDE**2
    yield "PBM plain", b"P1 %d %d\n" % (SIDE, SIDE) + b"1" * SIDE**2
    yield "AVIF", encoded(photo, "AVIF", speed=10)
    yield "AVIF alpha", encoded(clear, "AVIF", speed=10, subsampling="4:4:4")
    yield "HEIF", encoded(photo, "HEIF", enc_params={"preset": "ultrafast"})
    yield "JXL", encoded(photo, "JXL", effort=1)
    yield "JXL lossless", encoded(clear, "JXL", lossless=True, effort=1)
    yield "TIFF", encoded(photo, "TIFF", compression="tiff_lzw")
    yield "TIFF alpha", encoded(clear, "TIFF", compression="tiff_adobe_deflate")
    yield "TIFF float", encoded(Image.new("F", (SIDE, SIDE), 0.5), "TIFF", compression="tiff_adobe_deflate")
    yield "TIFF 16", encoded(Image.new("I;16", (SIDE, SIDE), 700), "TIFF", compression="tiff_adobe_deflate")
    yield "TIFF JPEG", encoded(photo, "TIFF", compression="jpeg")


def taken(file: bytes, preprocessing: Preprocessing) -> int:
    """Bytes that the process has grown by at its largest."""
    gc.collect()
    Image.core.clear_cache()  # type: ignore[attr-defined]
    ctypes.CDLL(None).malloc_trim(0)  # or what the last one left is taken again
    _CLEAR.write_text("5")  # the peak begins anew
    before = _kib("VmRSS")
    preprocess(decode_for(preprocessing, file, SIZE, max_pixels=MAX_PIXELS), preprocessing, SIZE, resize=resize)
    return 1024 * (_kib("VmHWM") - before)


def _kib(name: str) -> int:
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))


def main() -> None:
    """Print what each takes."""
    plain = Preprocessing((0, 0, 0), (1, 1, 1))
    padded = Preprocessing((0, 0, 0), (1, 1, 1), resize="pad")
    taken(encoded(Image.new("RGB", (300, 300)), "PNG"), plain)  # what is loaded once
    for name, file in files():
        cost = price(file, plain, SIZE, max_pixels=MAX_PIXELS)
        print(name, cost.nbytes, taken(file, plain), sep="\t")
    wide = encoded(Image.new("RGB", (SIDE, SIDE // 3)), "PNG", compress_level=1)
    print("padded", price(wide, padded, SIZE, max_pixels=MAX_PIXELS).nbytes, taken(wide, padded), sep="\t")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="PIL")
    main()
