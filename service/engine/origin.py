"""What numbers come from, as one fingerprint: a part of the key under which they are kept."""

import hashlib
from collections.abc import Iterable
from typing import TypeAlias

Origin: TypeAlias = bytes
"""32 bytes. Equal only if everything that it was made of is equal."""


def origin_of(about: Iterable[str]) -> Origin:
    """Of these words, in order."""
    return hashlib.sha256("".join(f"{len(each)}:{each}" for each in about).encode("utf-8", "surrogatepass")).digest()
