"""A checkpoint as its own library runs it: the measure that an Encoder is held against. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from encoders.contract.values import Floats


@dataclass(frozen=True)
class ReferenceRow:
    """What the library makes of one image.

    pixels: normalised, [3, H, W]; None where the library lays pixels out in another way.
    tokens: [N, C], the patch tokens last, row-major. pooled: [E]. Either is None where the library does not give it.
    """

    pixels: Floats | None
    tokens: Floats | None
    pooled: Floats | None


class Reference(Protocol):
    """The library's own transform, forward and text half, in float32 on the CPU."""

    @property
    def library(self) -> str:
        """Its name and version."""

    def encode(self, image: Image.Image) -> ReferenceRow:
        """An RGB image, upright, through the library's own transform and forward."""

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Texts -> [N, E] through the library's own tokenizer. Only called where the encoder has a text half."""
