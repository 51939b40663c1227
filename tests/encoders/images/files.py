"""Image files in every format that is read, made small, and pieces to make odd ones of."""

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageCms

from encoders.images.decode import load_plugins
from tests.support.photographs import photograph

CASES = Path(__file__).parent / "cases"
"""Files after bug reports of other projects; all show the demo encoders' example picture."""


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    """The image in a format of Pillow's, extras included."""
    load_plugins()
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def chunk(kind: bytes, body: bytes, *, checksum: int | None = None) -> bytes:
    """A PNG chunk, its checksum right if not given."""
    right = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", right)


def chunks(png: bytes) -> Iterator[bytes]:
    """A PNG's chunks, whole."""
    at = 8
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        yield png[at : at + 12 + length]
        at += 12 + length


def with_chunks(png: bytes, *more: bytes, before: bytes = b"IDAT") -> bytes:
    """The PNG with chunks before its first one of a kind."""
    found = list(chunks(png))
    place = next(index for index, each in enumerate(found) if each[4:8] == before)
    return png[:8] + b"".join([*found[:place], *more, *found[place:]])


def png_of(header: Sequence[int], rows: Sequence[bytes], *more: bytes) -> bytes:
    """header: width, height, bits, kind of colour; rows: packed samples; more: chunks before the pixels."""
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    body = struct.pack(">IIBBBBB", *header, 0, 0, 0)
    pieces = chunk(b"IHDR", body), *more, chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def exif(orientation: int, *others: bytes, order: str = "<", kind: int = 3) -> bytes:
    """An EXIF block without its name: the orientation after other entries of 12 bytes."""
    code = {1: "Bxxx", 3: "Hxx", 4: "I"}[kind]
    entry = struct.pack(f"{order}HHI{code}", 274, kind, 1, orientation)
    entries = [*others, entry]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


def jpeg_with(segment: bytes, jpeg: bytes, *, marker: int = 0xE1) -> bytes:
    """The JPEG with a segment after its start."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def with_scans(jpeg: bytes, scans: int) -> bytes:
    """A progressive JPEG with so many scans more, of one component's coefficients, in which nothing changes."""
    tables = b"\xff\xc4" + struct.pack(">H", 2 + 17 + 1) + bytes([0x10, 1, *[0] * 15, 0xE0])
    scan = b"\xff\xda" + struct.pack(">H", 8) + bytes([1, 1, 0, 1, 63, 0x21]) + b"\x00"
    return jpeg[:-2] + tables + scans * scan + jpeg[-2:]


def seeds() -> dict[str, bytes]:
    """A small file of every format that is read, most with EXIF, a colour profile and text."""
    photo = photograph("chelsea").resize((24, 20))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()[:600]
    turned = Image.Exif()
    turned[274], turned[270] = 6, "a picture"
    block = turned.tobytes()
    clear = photo.convert("RGBA")
    clear.putalpha(photo.convert("L"))
    about = {"exif": block, "icc_profile": profile}
    png = encoded(photo, "PNG", **about)
    text = chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(2000))), chunk(b"tEXt", b"Title\0a picture")
    found = {
        "JPEG": encoded(photo, "JPEG", comment=b"a picture", **about),
        "JPEG progressive": encoded(photo, "JPEG", progressive=True),
        "JPEG CMYK": encoded(photo.convert("CMYK"), "JPEG"),
        "PNG": with_chunks(png, *text),
        "PNG palette": encoded(clear.quantize(16), "PNG"),
        "PNG key": png_of((8, 2, 4, 0), [bytes(range(4))] * 2, chunk(b"tRNS", b"\0\3")),
        "PNG 16": png_of((4, 2, 16, 2), [bytes(range(24))] * 2, chunk(b"tRNS", b"\0\1\2\3\4\5")),
        "APNG": encoded(photo, "PNG", save_all=True, append_images=[photo.rotate(90)]),
        "WEBP": encoded(photo, "WEBP", **about),
        "WEBP lossless": encoded(clear, "WEBP", lossless=True, xmp=b"<x/>", **about),
        "WEBP animation": encoded(photo, "WEBP", save_all=True, append_images=[photo.rotate(90)]),
        "GIF": encoded(photo, "GIF", save_all=True, append_images=[photo.rotate(90)], comment=b"a picture"),
        "BMP": encoded(photo, "BMP"),
        "BMP palette": encoded(photo.quantize(16), "BMP"),
        "BMP alpha": (CASES / "bmp_v4_alpha0.bmp").read_bytes()[:6000],
        "PPM": encoded(photo, "PPM"),
        "PPM 10": b"P6 4 2 1023 " + bytes(range(48)),
        "PPM plain": b"P3 # c\n2 1 9 0 1 2 3 4 9\n",
        "PFM": encoded(photo.convert("F"), "PPM"),
        "AVIF": encoded(photo, "AVIF", exif=block),
        "AVIF damaged": (CASES / "avif_av1_damaged.avif").read_bytes(),
        "HEIF": encoded(photo, "HEIF", exif=block),
        "JXL": encoded(clear, "JXL", exif=block),
        "JPEG, odd EXIF": (CASES / "unforeseen_0_AttributeError.jpg").read_bytes(),
    }
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        found[f"TIFF {compression}"] = encoded(photo, "TIFF", compression=compression, exif=turned)
    found["TIFF fax"] = encoded(photo.convert("1"), "TIFF", compression="group4")
    found["TIFF 16"] = encoded(Image.new("I;16", (9, 7), 700), "TIFF")
    found["TIFF float"] = encoded(Image.new("F", (9, 7), 0.5), "TIFF")
    return found
