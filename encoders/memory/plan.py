"""The memory an encoder needs by size and batch, and the sizes and batches that fit. Asks a blueprint; no torch.

`rows` and `Search` are the arithmetic alone, for whoever asks the blueprint in its own time.
"""

from bisect import bisect_right
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import gcd, lcm, sqrt
from typing import TypeAlias

from encoders.contract.cost import Cost
from encoders.contract.encoder import Blueprint
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import ImageSize, Outputs
from encoders.memory.prediction import Overhead, Prediction, predict


@dataclass(frozen=True)
class Row:
    """One line of a plan. max_batch: the largest that fits the room at this size; None where no room is given."""

    size: ImageSize
    dtype: str
    prediction: Prediction
    max_batch: int | None


def plan(
    blueprint: Blueprint,
    sizes: Sequence[ImageSize],
    batches: Sequence[int],
    outputs: Outputs,
    *,
    device: str,
    overhead: Overhead,
    room: int | None,
) -> list[Row]:
    """A row for every size and batch, in that order. Traces each size once: tenths of a second.

    device: cpu or cuda. room: bytes of the card for this encoder: weights, context and forward together.
    Raises EncoderFailed.
    """
    found = []
    for size in sizes:
        cost = blueprint.cost(size, outputs, device=device)
        found += rows(blueprint.spec, size, cost, batches, overhead=overhead, room=room)
    return found


def rows(
    spec: EncoderSpec, size: ImageSize, cost: Cost, batches: Sequence[int], *, overhead: Overhead, room: int | None
) -> list[Row]:
    """A row for every batch of images of this size. cost: of a forward of such images. room: as of `plan`."""
    fits = None if room is None else overhead.largest_batch(cost, room - overhead.context - spec.weights_bytes)
    return [
        Row(size, spec.dtype, predict(cost, batch, weights_bytes=spec.weights_bytes, overhead=overhead), fits)
        for batch in batches
    ]


def largest_size(
    blueprint: Blueprint,
    outputs: Outputs,
    *,
    batch: int,
    device: str,
    overhead: Overhead,
    free: int,
    like: ImageSize,
    at_most: ImageSize | None = None,
) -> ImageSize | None:
    """The largest size of the proportions of `like` that can be run and at which `batch` images fit; None if none does.

    free: bytes for the forward alone, weights and context taken off. at_most: neither side is larger.
    A trace is tenths of a second, and mostly three are made. Raises EncoderFailed.
    """
    search = search_largest(blueprint.spec, batch=batch, overhead=overhead, free=free, like=like, at_most=at_most)
    try:
        size = next(search)
        while True:
            size = search.send(blueprint.cost(size, outputs, device=device))
    except StopIteration as end:
        largest: ImageSize | None = end.value
        return largest


Search: TypeAlias = Generator[ImageSize, Cost, ImageSize | None]
"""Yields sizes, wants the cost of each, and returns what it was looking for."""


def search_largest(
    spec: EncoderSpec,
    *,
    batch: int,
    overhead: Overhead,
    free: int,
    like: ImageSize,
    at_most: ImageSize | None = None,
) -> Search:
    """As `largest_size`, which says what is what; whoever drives the search brings the costs."""
    sizes = _SizesLike.of(like, spec, at_most)
    fit, open_ = 0, len(sizes.scales)  # of how many it is known that they fit, and of how many that they may
    aim: float = like.height
    while fit < open_:
        index = min(max(bisect_right(sizes.scales, aim, key=sizes.height_at) - 1, fit), open_ - 1)
        cost = yield sizes[index]
        requested, reserved = cost.requested(batch), overhead.reserved(cost, batch)
        fit, open_ = (index + 1, open_) if reserved <= free else (fit, index)
        # What is requested grows about as pixels do, and what comes on top hardly.
        aim = sizes[index].height * sqrt(max(free - (reserved - requested), 0) / max(requested, 1))
    return sizes[fit - 1] if fit else None


@dataclass(frozen=True)
class _SizesLike:
    """The sizes of exactly some proportions that an encoder can run at, in whole patches, smallest first.

    scales: each is how often the size holds `unit`, the smallest of the proportions.
    """

    unit: ImageSize
    scales: range

    @classmethod
    def of(cls, like: ImageSize, spec: EncoderSpec, at_most: ImageSize | None) -> "_SizesLike":
        """An encoder that runs at a single size has that one, whatever its proportions."""
        allowed = spec.resolutions
        if allowed.only is not None:
            fits = at_most is None or (allowed.only.height <= at_most.height and allowed.only.width <= at_most.width)
            return cls(allowed.only, range(1, 2 if fits else 1))
        common = gcd(*like)
        unit = ImageSize(like.height // common, like.width // common)
        steps = [lcm(multiple, patch) for multiple, patch in zip(allowed.multiple, spec.patch_size, strict=True)]
        step = lcm(*(step // gcd(step, side) for step, side in zip(steps, unit, strict=True)))
        least = max(-(-low // side) for low, side in zip(allowed.minimum, unit, strict=True))
        bounds = [allowed.maximum] if at_most is None else [allowed.maximum, at_most]
        most = min(side // part for bound in bounds for side, part in zip(bound, unit, strict=True))
        return cls(unit, range(-(-least // step) * step, most + 1, step))

    def height_at(self, scale: int) -> int:
        return self.unit.height * scale

    def __getitem__(self, index: int) -> ImageSize:
        scale = self.scales[index]
        return ImageSize(self.unit.height * scale, self.unit.width * scale)
