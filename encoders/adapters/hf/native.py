"""The sizes of models of native resolution, which have none of their own."""

from dataclasses import replace
from typing import Any

from encoders.adapters.hf.config import pair
from encoders.adapters.hf.family import Geometry
from encoders.contract.spec import Resolutions
from encoders.contract.values import ImageSize
from encoders.runtime.tower import largest_size

NATIVE_SIDE = 448
"""Pixels a side that such a model is run at unless asked otherwise, rounded down to whole merged patches.

Its processor leaves every image its own size, between a least and a most number of pixels (Qwen2-VL: up to 12.8
million, 16,384 projected tokens). An encoder batches images of one size. 448 is the side that the first Qwen-VL and
InternVL were trained at: 256 projected tokens of 28 pixels a side, within the bounds of every published processor.
"""


def native_resolution(config: Any, *, merge: int = 1, width: str = "hidden_size") -> Geometry:
    """The geometry of a vision tower that takes any size of whole merged patches.

    config: the tower's. merge: patches a side that become one projected token. width: the name of the tokens' width.
    """
    patch = pair(config.patch_size)
    step = ImageSize(patch.height * merge, patch.width * merge)
    return Geometry(
        native=ImageSize(*(max(NATIVE_SIDE // side, 1) * side for side in step)),
        patch_size=patch,
        hidden_size=int(getattr(config, width)),
        resolutions=Resolutions(multiple=step, minimum=step, maximum=largest_size(step)),
    )


def at_most(geometry: Geometry, size: ImageSize) -> Geometry:
    """The geometry with a native size of at most this one, in whole merged patches."""
    step = geometry.resolutions.multiple
    sides = zip(geometry.native, size, step, strict=True)
    native = ImageSize(*(max(min(side, limit) // each, 1) * each for side, limit, each in sides))
    return replace(geometry, native=native)
