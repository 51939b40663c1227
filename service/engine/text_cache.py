"""Vectors of texts that were embedded before, bounded in bytes; the one not asked for longest goes first. Pure.

A vector depends on the weights, the text and its templates alone: so that is its key, and it is never out of date.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Floats

_ENTRY_BYTES = 400
"""Of an entry, beside its vector and the characters of its text: about."""
_CHAR_BYTES = 4

Origin: TypeAlias = bytes
"""What texts go through to become vectors: weights and templates."""


class KnownText(NamedTuple):
    """vector: float32 [embed_dim]. tokens: of the text in the template where it has the most, before any cut."""

    vector: Floats
    tokens: int


def origin_of(spec: EncoderSpec, templates: Sequence[str]) -> Origin:
    """The same for the same weights and templates, in the same precision and place."""
    about = (spec.id, spec.revision, spec.dtype, spec.device, spec.runtime, *templates)
    return hashlib.blake2b("".join(f"{len(each)}:{each}" for each in about).encode("utf-8", "surrogatepass")).digest()


class TextCache:
    """By origin and text. limit: bytes; 0 keeps nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: OrderedDict[tuple[Origin, str], KnownText] = OrderedDict()
        self.nbytes = 0
        """Bytes that it holds, about."""

    def get(self, origin: Origin, text: str) -> KnownText | None:
        """None if it is not known."""
        known = self._known.get((origin, text))
        if known is not None:
            self._known.move_to_end((origin, text))
        return known

    def put(self, origin: Origin, text: str, known: KnownText) -> None:
        """Keep it, if it is not larger than everything may be."""
        size = _size(text, known)
        if size > self._limit or (origin, text) in self._known:
            return
        self._known[origin, text] = known
        self.nbytes += size
        while self.nbytes > self._limit:
            (_, oldest), gone = self._known.popitem(last=False)
            self.nbytes -= _size(oldest, gone)


def _size(text: str, known: KnownText) -> int:
    return _ENTRY_BYTES + _CHAR_BYTES * len(text) + int(known.vector.nbytes)
