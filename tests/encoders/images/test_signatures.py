"""What is not read is refused by its own name, from how it begins, and told what to do."""

import base64
import gzip
import io
import struct
import zipfile

import pytest
from PIL import Image

from encoders.contract.errors import NotAnImage, UnsupportedImage
from encoders.images.decode import decode
from tests.encoders.images.files import encoded

SMALL = Image.new("RGB", (8, 8), "red")


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.png", b"x")
    return out.getvalue()


def box(brand: bytes, *compatible: bytes) -> bytes:
    body = brand + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body + bytes(200)


FOREIGN = {
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "SVG at once": b"\xef\xbb\xbf  <svg width='1'/>",
    "SVG of nothing": b"<svg/>",
    "SVG with a prefix": b"<svg:svg xmlns:svg='http://www.w3.org/2000/svg'>",
    "PDF": b"%PDF-1.7\n",
    "Photoshop": b"8BPS\0\1" + bytes(40),
    "DICOM": bytes(128) + b"DICM" + bytes(40),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "PostScript with a preview": b"\xc5\xd0\xd3\xc6" + bytes(30),
    "JPEG 2000": encoded(SMALL, "JPEG2000"),
    "JPEG 2000 codestream": b"\xff\x4f\xff\x51" + bytes(40),
    "icon": encoded(SMALL, "ICO"),
    "CR2": b"II*\0\x10\0\0\0CR\2\0" + bytes(200),
    "CR3": box(b"crx ", b"isom"),
    "RAF": b"FUJIFILMCCD-RAW 0201" + bytes(40),
    "ORF": b"IIRO\x08\0\0\0" + bytes(40),
    "RW2": b"IIU\0\x18\0\0\0" + bytes(40),
    "OpenEXR": b"v/1\x01\2\0\0\0",
    "Radiance": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n",
    "DDS": encoded(SMALL, "DDS"),
    "KTX": b"\xabKTX 20\xbb\r\n\x1a\n" + bytes(40),
    "GIMP": b"gimp xcf v011\0" + bytes(40),
    "EMF": struct.pack("<II", 1, 88) + bytes(32) + b" EMF" + bytes(40),
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(40),
    "QOI": b"qoif" + bytes(20),
    "PCX": encoded(SMALL, "PCX"),
    "SGI": encoded(SMALL, "SGI"),
    "PFM float map in colour": b"PF\n1 1\n-1.0\n" + bytes(12),
    "PAM": b"P7\nWIDTH 1\n",
    "MP4": box(b"isom", b"mp42"),
    "MP4 of a phone": box(b"qt  "),
    "Matroska or WebM": b"\x1a\x45\xdf\xa3" + bytes(40),
    "AVI": b"RIFF\0\0\1\0AVI LIST",
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "JSON": b'{"images": ["aGk="]}',
    "XML": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "URL": b"https://example.org/a.jpg\n",
    "data: URI": b"data:image/png;base64,iVBORw0KGgo=",
    "base64": base64.encodebytes(encoded(SMALL, "PNG")),
    "base64 of a JPEG": base64.b64encode(encoded(SMALL, "JPEG")),
    "text": b"just text in a file named .jpg",
    "ZIP": archive(),
    "gzip": gzip.compress(encoded(SMALL, "PNG")),
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "NumPy": b"\x93NUMPY\1\0",
    "unknown": bytes(range(128, 200)),
}


@pytest.mark.parametrize("thing", list(FOREIGN))
def test_what_is_not_read_is_named_and_told_what_to_do(thing: str) -> None:
    with pytest.raises(NotAnImage) as caught:
        decode(FOREIGN[thing])
    message = str(caught.value)
    assert message.startswith("This is ")
    word = thing.split(" of ")[0].split(" with ")[0].removesuffix(" at once").removesuffix(" codestream")
    assert word in message
    assert len(message.split(". ")) == 3  # what it is, what to do, what is read
    assert caught.value.facts["formats"]


@pytest.mark.parametrize("name", ["DNG", "NEF"])
def test_camera_raws_that_are_tiffs_are_named(name: str) -> None:
    """Their first page is a thumbnail, which nobody asked for."""
    tags = {256: 4, 257: 4, 258: 8, 262: 2, 277: 3, 273: 8, 278: 4, 279: 48, 254: 1}
    if name == "DNG":
        tags |= {254: 0, 50706: 0x00000401}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    file = b"II*\0" + struct.pack("<I", 56) + bytes(48) + struct.pack("<H", len(tags)) + entries + bytes(4)
    with pytest.raises(UnsupportedImage, match="camera raw"):
        decode(file)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_what_is_read_is_not_taken_for_anything_else(image_format: str) -> None:
    assert decode(encoded(SMALL, image_format)).size == (8, 8)
