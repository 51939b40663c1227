"""What bytes are, by how they begin. Reads no more than a file's beginning."""

import re
from contextlib import suppress
from dataclasses import dataclass

_CONVERT = "Convert it to JPEG or PNG"
_DEVELOP = "Develop it to JPEG or TIFF"
_RENDER = "Render it to PNG"


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something that is not read. name: as after "This is"; advice: the sentence that says what to do."""

    name: str
    advice: str


NO_IMAGE = Foreign("an unknown kind of file", "Check that the bytes are those of an image file")

_READ = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"RIFF.{4}WEBP", "WEBP"),
    (rb"GIF8[79]a", "GIF"),
    (rb"BM.{12}[\x0c-\xff]\0\0\0", "BMP"),
    (rb"II\*\0(?!.{4}CR)|MM\0\*|II\+\0|MM\0\+", "TIFF"),
    (rb"P[1-6][\s#]|Pf\s", "PPM"),
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
)

_NOT_READ = (
    (rb"II\*\0.{4}CR", "a Canon CR2 camera raw", _DEVELOP),
    (rb".{4}ftypcrx ", "a Canon CR3 camera raw", _DEVELOP),
    (rb"HEAPCCDR|II.{4}HEAPCCDR", "a Canon CRW camera raw", _DEVELOP),
    (rb"FUJIFILMCCD-RAW", "a Fujifilm RAF camera raw", _DEVELOP),
    (rb"IIR[OS]|MMOR", "an Olympus ORF camera raw", _DEVELOP),
    (rb"IIU\0", "a Panasonic RW2 camera raw", _DEVELOP),
    (rb"\0MRM", "a Minolta MRW camera raw", _DEVELOP),
    (rb"FOVb", "a Sigma X3F camera raw", _DEVELOP),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000", _CONVERT),
    (rb"II\xbc", "JPEG XR", _CONVERT),
    (rb"PF\s", "a PFM float map in colour", _CONVERT),
    (rb"P7\s", "a PAM image", _CONVERT),
    (rb"8BPS", "a Photoshop document (PSD)", "Export it as PNG"),
    (rb"gimp xcf", "a GIMP image (XCF)", "Export it as PNG"),
    (rb"\x93NUMPY", "a NumPy array", "Save the image as PNG"),
    (rb".{128}DICM", "a DICOM file", "Export the image as PNG, with the window you want"),
    (rb"SIMPLE  =", "a FITS file", "Export the image as PNG, with the range you want"),
    (rb"\x89HDF\r\n\x1a\n", "an HDF5 file", "Export the image as PNG, with the range you want"),
    (rb"\x5c\x01\0\0|\x6e\x2b\x31\0|n\+1\0", "a NIfTI volume", "Export a slice as PNG, with the range you want"),
    (rb"v/1\x01", "OpenEXR", "Tone-map it to PNG"),
    (rb"#\?RADIANCE|#\?RGBE", "a Radiance HDR image", "Tone-map it to PNG"),
    (rb"DDS ", "a DDS texture", _CONVERT),
    (rb"\xabKTX 1[01]\xbb|\xabKTX 20\xbb", "a KTX texture", _CONVERT),
    (rb"qoif", "QOI", _CONVERT),
    (rb"BPG\xfb", "BPG", _CONVERT),
    (rb"FLIF", "FLIF", _CONVERT),
    (rb"farbfeld", "farbfeld", _CONVERT),
    (rb"\0\0[\x01\x02]\0[^\0]\0", "a Windows icon or cursor (ICO, CUR)", _CONVERT),
    (rb"icns", "an Apple icon (ICNS)", _CONVERT),
    (rb"\x8aMNG\r\n\x1a\n|\x8bJNG\r\n\x1a\n", "MNG or JNG", _CONVERT),
    (rb"\x0a[\0\x02-\x05]\x01[\x01\x02\x04\x08]", "PCX", _CONVERT),
    (rb"\x01\xda[\0\x01][\x01\x02]", "a Silicon Graphics image (SGI)", _CONVERT),
    (rb"\x59\xa6\x6a\x95", "a Sun raster", _CONVERT),
    (rb"AT&TFORM", "a DjVu document", _RENDER),
    (rb"FORM.{4}(?:ILBM|PBM )", "an Amiga IFF image", _CONVERT),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\x09\0\0\x03", "a Windows metafile (WMF)", _RENDER),
    (rb"\x01\0\0\0.{36} EMF", "a Windows metafile (EMF)", _RENDER),
    (rb"%PDF-", "a PDF document", "Render a page to PNG"),
    (rb"(?:\xc5\xd0\xd3\xc6|\s*%!PS)", "PostScript (EPS)", _RENDER),
    (rb"\x1a\x45\xdf\xa3", "a Matroska or WebM video", "Send frames of it as JPEG or PNG"),
    (rb"RIFF.{4}AVI ", "an AVI video", "Send frames of it as JPEG or PNG"),
    (rb"\0\0\x01\xba|\0\0\x01\xb3", "an MPEG video", "Send frames of it as JPEG or PNG"),
    (rb"FLV\x01", "a Flash video", "Send frames of it as JPEG or PNG"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media video", "Send frames of it as JPEG or PNG"),
    (rb".{4}(?:moov|mdat|wide|skip|pnot)", "a QuickTime video", "Send frames of it as JPEG or PNG"),
    (rb".{4}ftyp", "a video or another file in the MP4 family", "Send frames of it as JPEG or PNG"),
    (rb"PK\x03\x04|PK\x05\x06", "a ZIP archive", "Send the images in it, one by one"),
    (rb"\x1f\x8b", "gzip", "Send the image itself, not compressed"),
    (rb"\x28\xb5\x2f\xfd|BZh[1-9]|\xfd7zXZ\0", "a compressed file", "Send the image itself, not compressed"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07", "an archive", "Send the images in it, one by one"),
    (rb".{257}ustar", "a tar archive", "Send the images in it, one by one"),
    (rb"version https://git-lfs", "a Git LFS pointer", "Fetch the file itself: git lfs pull"),
    (rb"data:image/", "a data: URI", "Send the bytes that it encodes, or put it into the JSON field images"),
)

_TEXTS = (
    # Of text, without the space before it
    (rb"(?i:<(?:\w+:)?svg[\s/>])", "SVG", _RENDER),
    (rb"(?i:<\?xml|<!--|<!doctype svg)(?s:.*?)(?i:<(?:\w+:)?svg[\s/>])", "SVG", _RENDER),
    (
        rb"(?i:<!doctype html|<html|<head|<body|<script)",
        "an HTML page",
        "Check the URL or the file: often an error page",
    ),
    (rb"<\?xml|<[A-Za-z]+[:\s/>]", "XML", "Send the bytes of an image file"),
    (rb"https?://\S+\s*$", "a URL", "Put it into the JSON field images"),
    (
        rb"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk[0-3]|SUkqA|TU0AK)[A-Za-z0-9+/=_\s-]*$",
        "an image in base64",
        "Decode it, or put it into the JSON field images",
    ),
    (
        rb"[\[{][\s\"\[\]{}\d-]",
        "JSON",
        "Send it with Content-Type: application/json, or send the bytes of an image file",
    ),
)

_BOX = re.compile(rb".{4}ftyp", re.DOTALL)
_READ_COMPILED = tuple((re.compile(pattern, re.DOTALL), name) for pattern, name in _READ)
_PEEK = 4096


def format_of(image_bytes: bytes) -> str | None:
    """Pillow's name of the format, of those that are read with all extras; None if it is none of them."""
    head = image_bytes[:32]
    if _BOX.match(head):
        return _iso_format(image_bytes)
    for pattern, name in _READ_COMPILED:
        if pattern.match(head):
            return name
    return None


def _iso_format(image_bytes: bytes) -> str | None:
    size = min(int.from_bytes(image_bytes[:4], "big"), 256)
    brands = {image_bytes[8:12]} | {image_bytes[at : at + 4] for at in range(16, size - 3, 4)}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    still = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
    if brands & still or image_bytes[8:12] in (b"mif1", b"msf1"):
        return "HEIF"
    return None


def foreign(image_bytes: bytes) -> Foreign:
    """What the bytes are, if they are nothing that is read."""
    head = image_bytes[:_PEEK]
    for pattern, name, advice in _NOT_READ:
        if re.match(pattern, head, re.DOTALL):
            return Foreign(name, advice)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, name, advice in _TEXTS:
        if re.match(pattern, text):
            return Foreign(name, advice)
    with suppress(UnicodeDecodeError):
        characters = re.sub(rb"[\x80-\xff]{1,3}$", b"", text).decode()  # the last may be cut off
        if characters and all(each.isprintable() or each.isspace() for each in characters):
            return Foreign("text", "Send the bytes of an image file")
    return NO_IMAGE
