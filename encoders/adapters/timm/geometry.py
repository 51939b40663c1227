"""The geometry of a timm trunk: the shapes it gives, and the sizes it runs at.

timm declares neither which sizes a trunk runs at, nor how its grid rounds, nor how its final features lie. So it is
asked: forwards on device meta give shapes and cost milliseconds, whatever the size of the model.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from math import isqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from encoders.contract.errors import EncoderIdError
from encoders.contract.spec import Resolutions
from encoders.contract.values import Grid, ImageSize
from encoders.runtime.shapes import hollow
from encoders.runtime.tower import largest_size


class Layout(Enum):
    """How final features lie."""

    TOKENS = "[B, prefix + rows * cols, C]"
    MAP = "[B, C, rows, cols]"
    MAP_CHANNELS_LAST = "[B, rows, cols, C]"
    FLAT_MAP = "[B, C, rows * cols]"
    PREFIX = "[B, prefix, C]: class tokens alone; the patches are the last layer's"


@dataclass(frozen=True)
class Geometry:
    """The shapes a trunk gives.

    patch, offset: the final grid's side is (side + offset) // patch, as EncoderSpec.grid has it.
    trims: whether the trunk leaves the pixels beyond the last whole patch of its own size unread.
    hidden_size: of final tokens. pooled_size: of forward_head; None where timm pools nothing.
    layers: timm's index of each layer that is offered. layer_sizes: their widths; empty where every layer has the grid,
        the width and the prefix tokens of the final tokens.
    layer_options: the options of forward_intermediates for one layer, its index apart.
    """

    patch: ImageSize
    offset: int
    trims: bool
    layout: Layout
    prefix_tokens: int
    hidden_size: int
    pooled_size: int | None
    layers: tuple[int, ...]
    layer_sizes: tuple[int, ...]
    layer_options: dict[str, Any]
    resolutions: Resolutions

    def grid(self, height: int, width: int) -> Grid:
        """The final grid of an image of this size."""
        return Grid(*((side + self.offset) // patch for side, patch in zip((height, width), self.patch, strict=True)))


def measure(trunk: Any, native: ImageSize) -> Geometry:
    """The geometry of a trunk made for `native`; the trunk stays as it was.

    Raises EncoderIdError if timm gives no features of it, or such as lie in no Layout.
    """
    with _shapes_only(trunk) as shadow:
        seen_from = _whole_patches(shadow, native)
        try:
            options, seen = _first_look(shadow, seen_from)
        except Exception as error:  # every trunk refuses in its own way
            raise EncoderIdError(
                f"timm's {type(trunk).__name__} gives no tokens of an image of {native}: {error}"
            ) from error
        stride, lo, hi = _stride(shadow, native, seen)
        search = _Search(lambda size: _look(shadow, size, options), seen, stride, lo, hi)
        fixed = type(trunk).__module__.endswith(_UNBOUNDED) or stride.height != stride.width
        sizes = None if fixed else search.sizes()
    unit, minimum, offset = sizes or (1, 1, _preferred(lo, hi, stride.height))
    layers = _layers(shadow, len(seen.layers))
    final = (seen.width, seen.grid, seen.prefix)
    return Geometry(
        patch=stride,
        offset=offset,
        trims=seen_from != native,
        layout=seen.layout,
        prefix_tokens=seen.prefix,
        hidden_size=seen.width,
        pooled_size=seen.pooled,
        layers=layers,
        layer_sizes=() if all(layer == final for layer in seen.layers) else tuple(seen.layers[k][0] for k in layers),
        layer_options=options,
        resolutions=Resolutions(
            multiple=ImageSize(unit, unit),
            minimum=ImageSize(minimum, minimum),
            maximum=largest_size(stride),
            only=None if sizes else native,
        ),
    )


_UNBOUNDED = "mvitv2"
"""timm's module whose tables of relative positions are indexed beyond their end at larger sizes; meta has no bounds."""


def _whole_patches(trunk: Any, size: ImageSize) -> ImageSize:
    """The part of `size` that is cut into patches, where a trunk of any size insists that nothing is left over."""
    step = getattr(getattr(trunk, "patch_embed", None), "patch_size", None)
    if not getattr(trunk, "dynamic_img_size", False) or not isinstance(step, tuple):
        return size
    return ImageSize(*(side // patch * patch for side, patch in zip(size, step, strict=True)))


@contextmanager
def _shapes_only(trunk: Any) -> Iterator[Any]:
    """The trunk with weights that hold no bytes; forwards inside give shapes."""
    shadow = hollow(trunk)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if torch.get_default_device().type != "meta":  # a second time it would only cost
            stack.enter_context(torch.device("meta"))
        stack.enter_context(_KnownShapes())
        yield shadow.eval()


class _KnownShapes(TorchFunctionMode):
    """Functions whose shapes are known without a run.

    On device meta a normalisation or an LSTM is composed of smaller functions in Python: half of a forward's time, and
    seconds for an LSTM.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KEEP_SHAPE:
            return args[0] if args else kwargs["input"]
        if func is torch.lstm:
            x, (hidden, cell), *_, bidirectional, _ = args
            return x.new_empty(*x.shape[:-1], hidden.shape[-1] * (1 + bidirectional)), hidden, cell
        return func(*args, **(kwargs or {}))


_KEEP_SHAPE = frozenset({
    F.batch_norm, F.layer_norm, F.group_norm, F.rms_norm, F.gelu, F.silu, F.relu, F.softmax, F.hardswish,
})  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """The shapes of one forward. layers: width, grid and prefix tokens of each of timm's intermediates."""

    layout: Layout
    grid: Grid
    prefix: int
    width: int
    pooled: int | None
    layers: tuple[tuple[int, Grid, int], ...]


def _first_look(trunk: Any, size: ImageSize) -> tuple[dict[str, Any], _Seen]:
    """The options of forward_intermediates that fit the trunk, and what they give.

    NCHW is asked for first, since it shows the grid. Gemma 4 finds the grid by values, and meta has none.
    """
    options: dict[str, Any] = {"norm": False, "output_fmt": "NCHW"}
    has_prefix = getattr(trunk, "num_prefix_tokens", 0)
    if has_prefix and "return_prefix_tokens" in inspect.signature(trunk.forward_intermediates).parameters:
        options["return_prefix_tokens"] = True  # without any, several of timm's trunks fail at it
    try:
        return options, _look(trunk, size, options)
    except RuntimeError as error:
        if "item()" not in str(error):
            raise
        options["output_fmt"] = "NLC"
        return options, _look(trunk, size, options)


def _look(trunk: Any, size: ImageSize, options: dict[str, Any]) -> _Seen:
    """The shapes of all that the trunk gives for an image of this size."""
    pixels = torch.empty(1, 3, *size)
    final, found = trunk.forward_intermediates(pixels, stop_early=False, **options)
    layers = []
    for k, layer in enumerate(found):
        patches, prefix = layer if isinstance(layer, tuple) else (layer, None)
        if patches.ndim == 4:
            width, grid = patches.shape[1], Grid(*patches.shape[2:])
        else:
            reduction = trunk.feature_info[k]["reduction"]
            width, grid = patches.shape[2], Grid(size.height // reduction, size.width // reduction)
        layers.append((width, grid, 0 if prefix is None else prefix.shape[1]))
    layout, grid, prefix_tokens, width = _lies(last(final), trunk, layers[-1])
    return _Seen(layout, grid, prefix_tokens, width, _pooled_size(trunk, final), tuple(layers))


def last(final: Any) -> Tensor:
    """The final features; the last and coarsest of a trunk that gives several."""
    features: Tensor = final[-1] if isinstance(final, list | tuple) else final
    return features


def _lies(final: Tensor, trunk: Any, layer: tuple[int, Grid, int]) -> tuple[Layout, Grid, int, int]:
    """How the final features lie: their layout, grid, prefix tokens and width. layer: the last one's."""
    if final.ndim == 4:
        if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
            return Layout.MAP_CHANNELS_LAST, Grid(*final.shape[1:3]), 0, final.shape[3]
        return Layout.MAP, Grid(*final.shape[2:]), 0, final.shape[1]
    width, grid, _ = layer
    places = grid.rows * grid.cols
    if final.ndim == 3:
        _, count, last_size = final.shape
        if places <= count <= places + _MOST_PREFIX_TOKENS:
            return Layout.TOKENS, grid, count - places, last_size
        if (count, last_size) == (width, places):
            return Layout.FLAT_MAP, grid, 0, width
        if count <= _MOST_PREFIX_TOKENS and last_size == width:
            return Layout.PREFIX, grid, count, width
        merged = isqrt(places // count)  # side of the squares of places that are merged into one token
        smaller = Grid(grid.rows // merged, grid.cols // merged)
        if smaller.rows * smaller.cols == count:
            return Layout.TOKENS, smaller, 0, last_size
    raise ValueError(f"final features of {list(final.shape)} are no map and no tokens of a {grid.rows}x{grid.cols} map")


_MOST_PREFIX_TOKENS = 16


def _pooled_size(trunk: Any, final: Any) -> int | None:
    try:
        pooled = trunk.forward_head(final)
    except NotImplementedError:  # timm's word for an encoder without a head
        return None
    return int(pooled.shape[1]) if pooled.ndim == 2 else None


def _layers(trunk: Any, count: int) -> tuple[int, ...]:
    """The indices of timm's layers, without a stem that it counts among them."""
    named = [stage["module"].partition(".")[0] for stage in trunk.feature_info]
    stems = ("act1", "bn1", "stem", "conv_stem", "relu")
    return tuple(k for k in range(count) if len(named) != count or named[k] not in stems)


def _stride(trunk: Any, native: ImageSize, seen: _Seen) -> tuple[ImageSize, int, int]:
    """Pixels a place of the final grid, and the range [lo, hi) of offsets that give the grid of the native size."""
    reductions = [int(stage["reduction"]) for stage in trunk.feature_info]
    merged = max(1, seen.layers[-1][1].rows // seen.grid.rows)
    for side in (max(reductions) * merged, reductions[-1] * merged, native.height // seen.grid.rows):
        lo, hi = -2 * side, 2 * side
        for pixels, places in zip(native, seen.grid, strict=True):
            lo, hi = _narrowed(lo, hi, pixels, places, side)
        if lo < hi and lo < side:
            return ImageSize(side, side), lo, hi
    uneven = ImageSize(*(pixels // places for pixels, places in zip(native, seen.grid, strict=True)))
    return uneven, 0, 1


def _narrowed(lo: int, hi: int, pixels: int, places: int, stride: int) -> tuple[int, int]:
    """The offsets of [lo, hi) for which (pixels + offset) // stride is `places`."""
    return max(lo, places * stride - pixels), min(hi, (places + 1) * stride - pixels)


def _preferred(lo: int, hi: int, stride: int) -> int:
    """Of offsets that all give the same grids: rounding down, rounding up, or the one nearest to these."""
    if lo <= 0 < hi:
        return 0
    return min(hi - 1, stride - 1) if lo > 0 else hi - 1


class _Search:
    """The sizes a trunk runs at: all multiples of one number of pixels, from a minimum up, or its own alone.

    Convolutions and pools give floor((side + offset) / stride) for one offset, since floors of floors compose. Each
    forward narrows it twice, by its rows and by its columns; sides close to a multiple of the stride tell most.
    """

    def __init__(self, look: Callable[[ImageSize], _Seen], seen: _Seen, stride: ImageSize, lo: int, hi: int) -> None:
        self._look = look
        self._seen = seen
        self._stride = stride.height
        self._range = lo, hi

    def sizes(self) -> tuple[int, int, int] | None:
        """The multiple, the least side, and the offset; None for a trunk that runs at its own size alone.

        Where a multiple will not do, none of its divisors will. Most trunks take any side, most others multiples of the
        stride or of a divisor of it; windows and pools behind the last stage may ask for more.
        """
        fine = list(_chain(1, self._stride))
        if found := self._works(1):
            return self._from(1, found)
        if surely := self._works(self._stride):
            for unit in fine[1:-1]:
                if found := self._works(unit):
                    return self._from(unit, found)
            return self._from(self._stride, surely)
        for unit in list(_chain(self._stride, self._stride * min(self._seen.grid)))[1:]:
            if found := self._works(unit):
                return self._from(unit, found)
        return None

    def _works(self, unit: int) -> tuple[int, int] | None:
        """The range of offsets, if the trunk runs at odd and even multiples of `unit` and rounds by one rule."""
        stride, above = self._stride, min(self._seen.grid) + 1
        if unit < stride:
            size = ImageSize(above * stride + unit, (above + 2) * stride - unit)  # an odd and an even grid
        else:
            times = max(1, above * stride // unit)
            size = ImageSize(times * unit, (times + 1) * unit)
        found = self._narrow(size, self._range)
        step = min(unit, stride)
        while found and (found[1] - 1) // step != found[0] // step:  # a side that tells the two ends apart
            lo, hi = found
            cuts = range((lo // step + 1) * step, hi, step)
            share = 8 if len(cuts) > stride // step // 2 else 3  # most offsets are close to 0 or to the stride
            first, second = cuts[len(cuts) // share], cuts[len(cuts) * (share - 1) // share]
            found = self._narrow(ImageSize((above + 1) * stride - first, (above + 2) * stride - second), found)
        return found

    def _narrow(self, size: ImageSize, offsets: tuple[int, int]) -> tuple[int, int] | None:
        """The offsets that also agree with a forward at `size`; None if there are none or it does not run."""
        try:
            seen = self._look(size)
        except Exception:  # every trunk refuses in its own way, some by an index out of range
            return None
        if (seen.layout, seen.prefix, seen.width, seen.pooled) != (
            self._seen.layout, self._seen.prefix, self._seen.width, self._seen.pooled,
        ):  # fmt: skip
            return None
        lo, hi = offsets
        for pixels, places in zip(size, seen.grid, strict=True):
            lo, hi = _narrowed(lo, hi, pixels, places, self._stride)
        alike = all(layer[1] == self._seen.grid for layer in self._seen.layers)
        if lo >= hi or (alike and any(layer[1] != seen.grid for layer in seen.layers)):
            return None
        return lo, hi

    def _from(self, unit: int, offsets: tuple[int, int]) -> tuple[int, int, int]:
        """With the least side that runs: one place of the grid, or as few as it takes."""
        stride = self._stride
        side = least = -(-stride // unit) * unit
        most = max(least, stride * min(self._seen.grid) // unit * unit)
        while side < most and not self._narrow(ImageSize(side, side), offsets):
            side += least
        return unit, min(side, most), _preferred(*offsets, stride)


def _chain(start: int, end: int) -> Iterator[int]:
    """Numbers from `start` to `end`, each a multiple of the one before by a prime, the greatest primes first."""
    yield start
    prime = end // start
    while start < end:
        if end // start % prime or any(prime % less == 0 for less in range(2, prime)):
            prime -= 1
        else:
            start *= prime
            yield start
