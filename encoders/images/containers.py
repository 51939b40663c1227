"""Image files without their metadata, and the one thing in it that is wanted: the orientation.

Text, profiles, EXIF and thumbnails never decide whether a picture can be read, so a decoder never meets them.
"""

import re
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass

from encoders.contract.errors import UndecodableImage, UnsupportedImage

_MOST_EXIF = 256 * 1024
"""Bytes that a compressed EXIF block in a PNG may inflate to."""

_MOST_PROFILES = 4
"""Text chunks of a PNG that are searched for EXIF: each is inflated."""
_MOST_ENTRIES = 4096
"""Of an EXIF block. They are sorted, and the orientation is one of the first."""

_MOST_PARTS = 1 << 16
"""Chunks, segments or boxes that are looked at, or a file of nothing else would take minutes."""

_MOST_TABLES = 64 * 1024
"""Bytes of a JPEG's tables before its first scan, which Pillow reads one by one. All that there can be take 3 KB."""

_MOST_EXTENSION = 16 * 1024 * 1024
"""Bytes of one comment in a GIF."""

_MOST_INFLATED = 1032
"""Bytes that one byte of deflate can stand for."""
_MOST_CODED = 512
"""Pixels that one byte of a JPEG can stand for: 8 blocks, of a bit each. Arithmetic coding has no such end."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By PNG's kind of colour."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A file as the decoder gets it, and what its samples mean where the decoder does not know."""

    format: str
    """Pillow's name."""
    file: bytes
    orientation: int | None = 1
    """1 to 8 as in EXIF; None if the decoder says it."""
    bits: int = 8
    """Of a sample; over 8: the whole range of so many bits is black to white."""
    white_is_zero: bool = False
    is_hollow: bool = False
    """The data cannot fill a picture of the size that the header announces; Pillow would leave the rest black."""
    transparent: tuple[int, ...] | None = None
    """The colour that is transparent, as the file's own sample values."""
    filled: tuple[int, int, int, int] | None = None
    """The box that the frame fills, if it is not the whole picture. The rest is transparent."""


def orientation(exif: bytes) -> int:
    """Tag 274 of an EXIF block, 1 to 8; 1 if there is none. Whatever else is broken there is not looked at."""
    exif = exif[6:] if exif.startswith(b"Exif\0") else exif
    order = ">" if exif[:2] == b"MM" else "<"
    if exif[:2] not in (b"II", b"MM") or len(exif) < 10:
        return 1
    (at,) = struct.unpack_from(f"{order}I", exif, 4)
    if not 8 <= at <= len(exif) - 2:
        at = 8
    (entries,) = struct.unpack_from(f"{order}H", exif, at)
    for entry in range(at + 2, min(at + 2 + 12 * min(entries, _MOST_ENTRIES), len(exif) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
        if tag == 274:
            code = {1: "B", 7: "B", 3: "H", 8: "H", 4: "I", 9: "I"}.get(kind, "H")
            (value,) = struct.unpack_from(order + code, exif, entry + 8)
            return int(value) if 1 <= value <= 8 else 1
    return 1


def png(file: bytes) -> Picture:
    """Only the critical chunks and tRNS, which is of the pixels.

    Raises UndecodableImage if a checksum does not fit, UnsupportedImage for Apple's kind.
    """
    kept: list[memoryview] = []
    whole = memoryview(file)
    start, at, turned, key, depth, colour, filled, needed, profiles = 0, 8, None, None, 8, 2, 0, 0, 0
    has_palette = False
    for _ in range(_MOST_PARTS):
        if at + 12 > len(file):
            break
        length, kind = struct.unpack_from(">I4s", file, at)
        end = at + 12 + length
        is_critical = not kind[0] & 0x20
        if (kind == b"IHDR") != (at == 8) and kind != b"CgBI":  # price.py reads the first chunk, Pillow the last IHDR
            raise UndecodableImage("PNG", "its header is not its first chunk, or not its only one")
        if (is_critical or kind == b"tRNS") and end <= len(file):
            is_sound = zlib.crc32(whole[at + 4 : end - 4]).to_bytes(4, "big") == file[end - 4 : end]
            if is_critical and not is_sound:
                raise UndecodableImage("PNG", f"broken PNG: the checksum of its chunk {kind!r} does not fit")
            if kind == b"IHDR":
                if length != 13:
                    raise UndecodableImage("PNG", "its header is broken")
                width, height, depth, colour, method, _, interlace = struct.unpack_from(">IIBBBBB", file, at + 8)
                if method or interlace > 1:
                    raise UndecodableImage("PNG", "its header is broken")
                needed = height * (width * depth * _CHANNELS.get(colour, 1) // 8)
            elif kind == b"CgBI":
                raise UnsupportedImage("a PNG in Apple's own form for iPhones (CgBI)", "Save it as a standard PNG")
            elif kind == b"PLTE":
                has_palette = 0 < length <= 768 and not length % 3
            elif kind == b"IDAT":
                filled += length
            elif kind == b"tRNS" and is_sound and length == {0: 2, 2: 6}.get(colour):
                key = tuple(each % (1 << depth) for each in struct.unpack_from(f">{length // 2}H", file, at + 8))
            elif is_critical and kind != b"IEND":
                raise UndecodableImage("PNG", f"its critical chunk {kind!r} is unknown")
            is_critical = is_critical or (is_sound and colour == 3)  # a palette's transparency is read by Pillow
        if not is_critical:
            kept.append(whole[start:at])
            start = end
            is_profile = file.startswith(b"Raw profile type ", at + 8)
            profiles += is_profile
            if turned is None and (kind == b"eXIf" or (is_profile and profiles <= _MOST_PROFILES)):
                turned = _png_orientation(kind, file[at + 8 : end - 4])
        at = end
        if kind == b"IEND":
            break
    else:
        raise UndecodableImage("PNG", f"it has over {_MOST_PARTS:,} chunks")
    if colour == 3 and not has_palette:
        raise UndecodableImage("PNG", "it has no palette, or a broken one")
    if kept:
        file = b"".join([*kept, whole[start:]])
    return Picture("PNG", file, turned or 1, depth, is_hollow=filled * _MOST_INFLATED < needed, transparent=key)


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of PNG's interlaced passes: the first column and row, and the steps from there."""


def lacks_rows(png: bytes) -> bool:
    """Whether the deflated pixels of a sound PNG end before its last row. Inflates them, in small pieces."""
    width, height, depth, colour, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", png, 16)
    bits = depth * _CHANNELS[colour]
    passes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in _ADAM7]
    sizes = [(across, down) for across, down in passes if across > 0] if is_interlaced else [(width, height)]
    missing: int = sum(max(0, down) * (1 + -(-across * bits // 8)) for across, down in sizes)
    inflater, at = zlib.decompressobj(), 8
    with suppress(zlib.error):  # a broken checksum at the end
        while missing > 0 and at + 12 <= len(png):
            length, kind = struct.unpack_from(">I4s", png, at)
            if kind == b"IDAT":
                given: bytes | memoryview = memoryview(png)[at + 8 : at + 8 + length]
                while missing > 0 and len(given):
                    missing -= len(inflater.decompress(given, _MOST_EXIF))
                    given = inflater.unconsumed_tail
            at += 12 + length
        missing -= len(inflater.flush())
    return missing > 0


def _png_orientation(kind: bytes, body: bytes) -> int | None:
    if kind == b"eXIf":
        return orientation(body)
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or not body.startswith(b"Raw profile type "):
        return None
    keyword, _, text = body.partition(b"\0")
    if keyword not in (b"Raw profile type exif", b"Raw profile type APP1"):
        return None
    if kind == b"iTXt":
        is_compressed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        is_compressed, text = kind == b"zTXt", text[1:] if kind == b"zTXt" else text
    with suppress(zlib.error):
        text = zlib.decompressobj().decompress(text, _MOST_EXIF) if is_compressed else text
    hexadecimal = re.match(rb"\s*\w+\s+\d+\s+((?:[0-9a-fA-F]{2}\s*)+)", text[:_MOST_EXIF])
    return orientation(bytes.fromhex(hexadecimal[1].decode())) if hexadecimal else None


def jpeg(file: bytes) -> Picture:
    """Without APP1 to APP15 and comments before the first scan; Adobe's APP14 stays, it names the colour space.

    Raises UnsupportedImage for processes that are not decoded.
    """
    kept: list[memoryview] = []
    whole = memoryview(file)
    start, at, turned, colours, is_adobes, tables, needed = 0, 2, None, 3, False, 0, 0
    for _ in range(_MOST_PARTS):
        if at + 5 > len(file):
            break
        if file[at] != 0xFF:  # rubbish between segments
            kept.append(whole[start:at])
            start = at = file.find(b"\xff", at)
            if at < 0:
                start = len(file)
                break
            continue
        marker = file[at + 1]
        if marker == 0xFF or marker == 0 or marker == 1 or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (0xDA, 0xD9):
            break
        end = at + 2 + max(2, int.from_bytes(file[at + 2 : at + 4], "big"))
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            _check_process(marker, file[at + 4])
            colours = file[at + 9] if at + 9 < len(file) else 3
            height, width = int.from_bytes(file[at + 5 : at + 7], "big"), int.from_bytes(file[at + 7 : at + 9], "big")
            needed = height * width if marker <= 0xC2 else 0
        tables += end - at if marker in (0xC4, 0xDB) else 0
        if tables > _MOST_TABLES:
            raise UndecodableImage("JPEG", f"it has over {_MOST_TABLES:,} bytes of tables")
        is_adobes = is_adobes or (marker == 0xEE and file.startswith(b"Adobe", at + 4))
        if (0xE1 <= marker <= 0xEF and marker != 0xEE) or marker == 0xFE:
            kept.append(whole[start:at])
            start = end
            if marker == 0xE1 and turned is None and file.startswith(b"Exif\0", at + 4):
                turned = orientation(file[at + 4 : end])
        at = end
    else:
        raise UndecodableImage("JPEG", "its header has no end")
    if colours == 4 and not is_adobes:
        raise UnsupportedImage("a CMYK JPEG that does not say whether 0 is ink or none", "Save it as an RGB JPEG")
    is_hollow = (len(file) - at) * _MOST_CODED < needed
    if kept:
        file = b"".join([*kept, whole[start:]])
    return Picture("JPEG", file, turned or 1, is_hollow=is_hollow)


def _check_process(marker: int, bits: int) -> None:
    if marker == 0xF7:
        raise UnsupportedImage("a JPEG-LS image", "Convert it to JPEG or PNG")
    if marker in (0xC3, 0xC7, 0xCB, 0xCF):
        raise UnsupportedImage("a lossless JPEG", "Save it as a baseline JPEG or as PNG")
    if bits != 8:
        raise UnsupportedImage(f"a {bits}-bit JPEG", "Save it as an 8-bit JPEG or as PNG")
    if marker in (0xC5, 0xC6, 0xCD, 0xCE):
        raise UnsupportedImage("a hierarchical JPEG", "Save it as a baseline JPEG or as PNG")


def gif(file: bytes) -> Picture:
    """Without comments and other extensions before the first frame, but for its own: transparency."""
    if len(file) < 13:
        return Picture("GIF", file)
    at = 13 + (3 << (file[10] & 7) + 1 if file[10] & 0x80 else 0)
    kept = [file[:at]]
    for _ in range(_MOST_PARTS):
        if file[at : at + 1] != b"!":
            break
        begin, at = at, at + 2
        while at < len(file) and file[at] and at - begin < _MOST_EXTENSION:
            at += 1 + file[at]
        at += 1
        if file[begin + 1 : begin + 2] == b"\xf9":
            kept.append(file[begin:at])
    else:
        raise UndecodableImage("GIF", f"it has over {_MOST_PARTS:,} extensions")
    filled = None
    if file[at : at + 1] == b"," and len(file) >= at + 9:
        width, height = struct.unpack_from("<2H", file, 6)
        left, top, across, down = struct.unpack_from("<4H", file, at + 1)
        filled = (left, top, left + across, top + down) if across < width or down < height else None
    return Picture("GIF", b"".join([*kept, memoryview(file)[at:]]), filled=filled)


def webp(file: bytes) -> Picture:
    """Without ICC profile, EXIF and XMP."""
    if file[12:16] != b"VP8X":
        return Picture("WEBP", file)
    kept, at, turned = [b""], 12, None
    for _ in range(_MOST_PARTS):
        if at + 8 > len(file):
            break
        kind = file[at : at + 4]
        (length,) = struct.unpack_from("<I", file, at + 4)
        end = at + 8 + length + length % 2
        if kind == b"VP8X":
            without = file[at + 8] & ~0x2C  # the flags of the three
            kept.append(file[at : at + 8] + bytes([without]) + file[at + 9 : end])
        elif kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            kept.append(file[at:end])
        elif kind == b"EXIF" and turned is None:
            turned = orientation(file[at + 8 : at + 8 + length])
        at = end
    body = b"WEBP" + b"".join(kept)
    return Picture("WEBP", b"RIFF" + struct.pack("<I", len(body)) + body, turned or 1)


_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def iso(file: bytes, image_format: str) -> Picture:
    """AVIF or HEIF with its EXIF hidden: their standard turns the image by a property of its own."""
    at = 0
    for _ in range(_MOST_PARTS):
        if at + 16 > len(file):
            break
        (length,) = struct.unpack_from(">I", file, at)
        if file[at + 4 : at + 8] == b"meta":
            end = at + length if length else len(file)
            file = file[:at] + _EXIF_ITEM.sub(rb"\1none", file[at:end]) + file[end:]
            break
        if length == 1:
            (length,) = struct.unpack_from(">Q", file, at + 8)
        if length < 8:
            break
        at += length
    return Picture(image_format, file, None)
