"""The cost of a forward by batch size: bytes of the device, and work. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Bytes by batch size: the greatest of straight lines, as every tensor is a fixed size plus so much an item.

    lines: (fixed, an item), for two items and more. alone: at one item, where kernels may take another way.
    """

    alone: int
    lines: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if not self.lines or min(self(1), self(2)) < 0:
            raise ValueError(f"a forward cannot take {self.alone} bytes for one item and {self.lines} for more")

    def __call__(self, batch: int) -> int:
        """Bytes at this batch size, 1 or more."""
        return self.alone if batch == 1 else max(fixed + item * batch for fixed, item in self.lines)

    def times(self, factor: int) -> "Curve":
        """So many times the bytes."""
        return Curve(self.alone * factor, tuple((fixed * factor, item * factor) for fixed, item in self.lines))

    def largest(self, limit: int) -> int:
        """The largest batch of at most `limit` bytes; 0 if not even one item fits."""
        fits = min((limit - fixed) // item if item else (fixed <= limit) * _ANY for fixed, item in self.lines)
        return fits if fits > 1 else int(self.alone <= limit)

    @classmethod
    def through(cls, one: Sequence[int], two: Sequence[int], four: Sequence[int]) -> "Curve":
        """From the bytes alive, moment by moment, in forwards of one, two and four items.

        Two and four items go the same way through the code, so each moment is a line of its own. Where they do not, the
        line through the two peaks is all that is known.
        """
        peaks = (max(two, default=0), max(four, default=0))
        moments = list(zip(two, four, strict=True)) if len(two) == len(four) else [peaks]
        steps = ((at_two, -((at_two - at_four) // 2)) for at_two, at_four in moments)  # rounded up
        lines = {(at_two - 2 * step, step) for at_two, step in steps}
        return cls(alone=max(one, default=0), lines=_envelope(lines))


_ANY = 2**31
"""Stands for any batch: more items than a queue ever holds. Used where the bytes do not grow with the batch."""


def _envelope(lines: set[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The lines that are the greatest at some batch of two or more, flattest first; of none, nothing at all."""
    kept: list[tuple[int, int]] = []
    batch = 2
    while lines:
        best = max(lines, key=lambda line: (line[0] + line[1] * batch, line[1]))
        kept.append(best)
        lines = {line for line in lines if line[1] > best[1]}
        # The first batch at which a steeper line is above the best one.
        batch = min(((best[0] - fixed) // (item - best[1]) + 1 for fixed, item in lines), default=0)
    return tuple(kept) or ((0, 0),)


@dataclass(frozen=True)
class Cost:
    """What a forward of images of one size and outputs, or of texts, takes; weights apart.

    requested: bytes of all tensors at the highest point, inputs and outputs included.
    during_products: the same, counted only while a matrix product runs: a BLAS library's workspace comes on top.
    input_bytes, output_bytes: an item's, as the tower reads and gives them. flops: an item's, 2 x multiply-adds.
    tokens: patch tokens an image, or the context length of a text.
    """

    requested: Curve
    during_products: Curve
    input_bytes: int
    output_bytes: int
    flops: int
    tokens: int
