"""Vectors of texts that were embedded before, bounded in bytes; the one not asked for longest goes first. Pure.

A vector depends on the weights, the text and its templates alone: so that is its key, and it is never out of date.
"""

from collections.abc import Sequence
from typing import NamedTuple

from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Floats
from service.engine.lru import Lru
from service.engine.origin import Origin, origin_of

_ENTRY_BYTES = 400
"""Of an entry, beside its vector and the characters of its text: about."""
_CHAR_BYTES = 4


class KnownText(NamedTuple):
    """vector: float32 [embed_dim]. tokens: of the text in the template where it has the most, before any cut."""

    vector: Floats
    tokens: int


def text_origin(spec: EncoderSpec, templates: Sequence[str]) -> Origin:
    """What texts go through to become vectors: the encoder and templates, in this precision and place."""
    about = (spec.id, spec.revision, spec.architecture, spec.dtype, spec.device, spec.runtime)
    return origin_of((*about, *templates))


class TextCache:
    """By origin and text. limit: bytes; 0 keeps nothing."""

    def __init__(self, limit: int) -> None:
        self._known: Lru[tuple[Origin, str], KnownText] = Lru(limit)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, about."""
        return self._known.nbytes

    def get(self, origin: Origin, text: str) -> KnownText | None:
        """None if it is not known."""
        return self._known.get((origin, text))

    def put(self, origin: Origin, text: str, known: KnownText) -> None:
        """Keep it, if it is not larger than everything may be."""
        size = _ENTRY_BYTES + _CHAR_BYTES * len(text) + int(known.vector.nbytes)
        self._known.put((origin, text), known, size)
