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

Source: TypeAlias = bytes
"""What texts go through to become vectors: weights and templates."""


class KnownText(NamedTuple):
    """vector: float32 [embed_dim]. tokens: of the text in the template where it has the most, before any cut."""

    vector: Floats
    tokens: int


def source_of(spec: EncoderSpec, templates: Sequence[str]) -> Source:
    """The same for the same weights and templates, in the same precision and place."""
    about = (spec.id, spec.revision, spec.dtype, spec.device, spec.runtime, *templates)
    return hashlib.blake2b("".join(f"{len(each)}:{each}" for each in about).encode("utf-8", "surrogatepass")).digest()


class TextCache:
    """By source and text. limit: bytes; 0 keeps nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: OrderedDict[tuple[Source, str], KnownText] = OrderedDict()
        self.nbytes = 0
        """Bytes that it holds, about."""
        self.hits = self.misses = 0

    def get(self, source: Source, text: str) -> KnownText | None:
        """None if it is not known."""
        known = self._known.get((source, text))
        if known is None:
            self.misses += 1
            return None
        self.hits += 1
        self._known.move_to_end((source, text))
        return known

    def put(self, source: Source, text: str, known: KnownText) -> None:
        """Keep it, if it is not larger than everything may be."""
        size = _size(text, known)
        if size > self._limit or (source, text) in self._known:
            return
        self._known[source, text] = known
        self.nbytes += size
        while self.nbytes > self._limit:
            (_, oldest), gone = self._known.popitem(last=False)
            self.nbytes -= _size(oldest, gone)


def _size(text: str, known: KnownText) -> int:
    return _ENTRY_BYTES + _CHAR_BYTES * len(text) + int(known.vector.nbytes)
