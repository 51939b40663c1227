"""The memory an encoder needs by size and batch, and the sizes and batches that fit. Asks a blueprint; no torch."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, lcm, sqrt

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
    spec = blueprint.spec
    rows = []
    for size in sizes:
        cost = blueprint.cost(size, outputs, device=device)
        fits = None if room is None else overhead.largest_batch(cost, room - overhead.context - spec.weights_bytes)
        rows += [
            Row(size, spec.dtype, predict(cost, batch, weights_bytes=spec.weights_bytes, overhead=overhead), fits)
            for batch in batches
        ]
    return rows


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
    sizes = [size for size in _sizes_like(like, blueprint.spec) if at_most is None or _is_within(size, at_most)]
    fit, open_ = 0, len(sizes)  # of how many it is known that they fit, and of how many that they may
    aim: float = like.height
    while fit < open_:
        index = min(max(bisect_right(sizes, aim, key=_height) - 1, fit), open_ - 1)
        cost = blueprint.cost(sizes[index], outputs, device=device)
        requested, reserved = cost.requested(batch), overhead.reserved(cost, batch)
        fit, open_ = (index + 1, open_) if reserved <= free else (fit, index)
        # What is requested grows about as pixels do, and what comes on top hardly.
        aim = sizes[index].height * sqrt(max(free - (reserved - requested), 0) / requested)
    return sizes[fit - 1] if fit else None


def _sizes_like(like: ImageSize, spec: EncoderSpec) -> list[ImageSize]:
    """The sizes of exactly the proportions of `like` that an encoder can run at, in whole patches, smallest first.

    One that runs at a single size has that one, whatever its proportions.
    """
    allowed = spec.resolutions
    if allowed.only is not None:
        return [allowed.only]
    common = gcd(*like)
    height, width = like.height // common, like.width // common
    steps = [lcm(multiple, patch) for multiple, patch in zip(allowed.multiple, spec.patch_size, strict=True)]
    step = lcm(*(step // gcd(step, side) for step, side in zip(steps, (height, width), strict=True)))
    scales = range(step, min(allowed.maximum.height // height, allowed.maximum.width // width) + 1, step)
    sizes = [ImageSize(height * scale, width * scale) for scale in scales]
    return [size for size in sizes if allowed.problem(size) is None]


def _is_within(size: ImageSize, bound: ImageSize) -> bool:
    return size.height <= bound.height and size.width <= bound.width


def _height(size: ImageSize) -> int:
    return size.height
