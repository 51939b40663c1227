"""Sizes as people write them: memory (`24GiB`, `512 MiB`, `1.5G`, a number of bytes), images (`336`, `224x448`).

And how many there are of something (`10M`, `1e9`, `250,000`).
"""

import re
from decimal import Decimal

from encoders.contract.values import ImageSize

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?b)?|b)?", re.IGNORECASE)
_IMAGE_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?", re.ASCII)
_COUNT = re.compile(r"(\d[\d,_]*(?:\.\d+)?(?:e\d{1,2})?)\s*([kmb]?)", re.IGNORECASE | re.ASCII)
_THOUSANDS = {"": 1, "k": 1000, "m": 10**6, "b": 10**9}
_MOST = 10**15
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def parse_bytes(text: str | int) -> int:
    """Bytes. KiB to TiB count in 1024s, as do K to T alone; KB to TB in 1000s; without a unit it is bytes.

    Raises ValueError, which says what is expected.
    """
    found = _SIZE.fullmatch(str(text).strip())
    if found is None:
        raise ValueError(f"'{text}' is not an amount of memory: expected for example 24GiB, 1.5GB, 512MiB or bytes")
    number, letter, rest = found.groups()
    base = 1000 if (rest or "").lower() == "b" else 1024
    power = 1 + "kmgt".index(letter.lower()) if letter else 0
    return round(Decimal(number) * Decimal(base) ** power)


def show_bytes(count: int) -> str:
    """`1.5 GiB`: to a tenth of the largest unit of which there is one; parse_bytes reads it. For 0 and more."""
    power = 0
    while power < len(_UNITS) - 1 and round(count / 1024**power, 1) >= 1024:
        power += 1
    return f"{count / 1024**power:.1f}".removesuffix(".0") + f" {_UNITS[power]}"


def parse_image_size(text: str | int) -> ImageSize:
    """`N` or `HxW` in pixels. Raises ValueError, which says what is expected."""
    found = _IMAGE_SIZE.fullmatch(str(text).strip().lower())
    if found is None:
        raise ValueError("expected N or HxW in pixels, for example 336 or 224x448")
    height, width = found.groups()
    return ImageSize(int(height), int(width or height))


def parse_count(text: str) -> int:
    """How many: k, M and B are a thousand, a million and a billion. Raises ValueError, which says what is expected."""
    found = _COUNT.fullmatch(text.strip())
    count = Decimal(re.sub("[,_]", "", found[1])) * _THOUSANDS[found[2].lower()] if found else Decimal(0)
    if not 1 <= count <= _MOST or count != int(count):
        raise ValueError(f"'{text}' is not a whole number from 1 to 10^15: expected for example 250000, 10M or 1e9")
    return int(count)
