"""How a transformers vision architecture is read, as data; and the Tower that reads it so.

One Family an architecture. Its model's own forward runs (hooked.py). Knows modules and configurations; knows no ids and
no files.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from encoders.adapters.hf import hooked
from encoders.adapters.hf.config import pair, registers
from encoders.contract.spec import Resolutions
from encoders.contract.values import Grid, ImageSize, Outputs
from encoders.runtime.tower import Features, Tower, largest_size, to_patches


@dataclass(frozen=True)
class Geometry:
    """Sizes of images, grids and vectors, as a configuration tells them. Fields are as EncoderSpec's.

    native: the size whose positions need no interpolation.
    strides: pixels that a token of each layer covers; empty where every layer has the grid of the final tokens, or
        gives a feature map, whose grid is seen.
    """

    native: ImageSize
    patch_size: ImageSize
    hidden_size: int
    resolutions: Resolutions
    prefix_tokens: int = 0
    grid_offset: int = 0
    layer_sizes: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    def grid(self, height: int, width: int, layer: int | None) -> Grid:
        """The grid of the final tokens, or of a layer's."""
        if layer is None or not self.strides:
            return Grid(*((s + self.grid_offset) // p for s, p in zip((height, width), self.patch_size, strict=True)))
        stride = self.strides[layer]
        return Grid(-(-height // stride), -(-width // stride))


def patches(config: Any, *, prefix_tokens: int, resizes: bool = True) -> Geometry:
    """The geometry of a plain vision transformer: every layer has one token a patch.

    prefix_tokens: class and register tokens. resizes: whether its forward takes other sizes than its own.
    """
    native, patch = pair(config.image_size), pair(config.patch_size)
    return Geometry(
        native=native,
        patch_size=patch,
        hidden_size=int(config.hidden_size),
        resolutions=Resolutions(
            multiple=patch, minimum=patch, maximum=largest_size(patch), only=None if resizes else native
        ),
        prefix_tokens=prefix_tokens,
    )


def with_class_token(config: Any) -> Geometry:
    """The geometry of a vision transformer with one class token, and registers if its configuration has some."""
    return patches(config, prefix_tokens=1 + registers(config))


def without_prefix(config: Any) -> Geometry:
    """The geometry of a vision transformer whose tokens are all of patches."""
    return patches(config, prefix_tokens=0)


def pyramid(config: Any, *, minimum: int | None = None, resizes: bool = True) -> Geometry:
    """The geometry of a Swin: its stages halve the grid, rounded up, and double the width.

    minimum: the least side in pixels; one token of the last stage if None. resizes: as `patches`.
    """
    stem = pair(config.patch_size).height
    strides = tuple(stem * 2**stage for stage in range(len(config.depths)))
    native, patch = pair(config.image_size), pair(strides[-1])
    widths = tuple(int(config.embed_dim) * 2**stage for stage in range(len(config.depths)))
    return Geometry(
        native=native,
        patch_size=patch,
        hidden_size=widths[-1],
        resolutions=Resolutions(
            multiple=pair(1),
            minimum=pair(minimum or strides[-1]),
            maximum=largest_size(patch),
            only=None if resizes else native,
        ),
        grid_offset=strides[-1] - 1,
        layer_sizes=widths,
        strides=strides,
    )


def interpolating(model: Any, pixels: Tensor, native: bool) -> dict[str, Any]:
    """Arguments of a forward that interpolates its positions when it is told to."""
    return {"pixel_values": pixels, "interpolate_pos_encoding": not native}


def plain(model: Any, pixels: Tensor, native: bool) -> dict[str, Any]:
    """Arguments of a forward that makes its positions for whatever it is given."""
    return {"pixel_values": pixels}


@dataclass(frozen=True)
class Family:
    """How one architecture is read.

    architecture: transformers' class of the vision model. processor: its image processor's class, for a checkpoint
        that has no settings of its own.
    blocks: the blocks of a model, in order. What a block gives is tokens [B, prefix + rows * cols, C] or a feature map
        [B, C, rows, cols], by itself or as the first of a tuple.
    geometry: of a configuration.
    arguments: of the model's forward, from the model, the pixels and whether their size is native.
    pooler: whether the output's pooler_output is the pooled vector, where there is one.
    pooling: the pooling's name, of a model. Without pooler_output `class` is the first of the final tokens and `mean`
        is the mean of the patch tokens.
    pooled_size: width of the pooled vectors, of a model; None if it is hidden_size.
    final: the final tokens after the final norm, of a model and its output.
    bound: whether positions belong to one size. If not, native is the size that the checkpoint's processor makes.
    unused: a pattern of keys in checkpoints that belong to parts not loaded. optional: of keys that may be missing.
    family: as EncoderSpec.family.
    options: further arguments of the architecture's class.
    prepare: changes a configuration before the model is made. ready: changes a model before it is used.
    """

    architecture: str
    processor: str
    blocks: Callable[[Any], Iterable[nn.Module]] = attrgetter("layers")
    geometry: Callable[[Any], Geometry] = with_class_token
    arguments: Callable[[Any, Tensor, bool], dict[str, Any]] = interpolating
    pooler: bool = True
    pooling: Callable[[Any], str] = lambda model: "class"
    pooled_size: Callable[[Any], int | None] = lambda model: None
    final: Callable[[Any, Any], Any] = lambda model, output: output.last_hidden_state
    bound: bool = True
    unused: str = ""
    optional: str = ""
    family: str = "vit"
    options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] = lambda config: None
    ready: Callable[[Any], None] = lambda model: None


class FamilyTower(Tower):
    """A vision model read as its Family says. It runs its own forward, so a block's index is our layer.

    projection: of the pooled vectors into the joint space.
    """

    def __init__(
        self, model: nn.Module, family: Family, geometry: Geometry, projection: nn.Module | None = None
    ) -> None:
        super().__init__()
        family.ready(model)
        self.model: Any = model
        self.family = family
        self.geometry = geometry
        self.projection = projection
        self.depth = hooked.watch(family.blocks(model))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FamilyTower":
        """Moves and casts as any module, but for rotary frequencies, which stay float32.

        transformers keeps them so in every dtype; cast to bfloat16 they would turn far patches by the wrong angle.
        """
        rotary: list[Any] = [module for module in self.modules() if "inv_freq" in module._buffers]
        frequencies = [module.inv_freq for module in rotary]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch does not type it
        for module, kept in zip(rotary, frequencies, strict=True):
            module.inv_freq = kept.to(module.inv_freq.device)
        return self

    @property
    def pooling(self) -> str:
        """The pooling's name, as EncoderSpec.pooling."""
        return self.family.pooling(self.model)

    @property
    def class_block(self) -> nn.Module | None:
        """As Tower.class_block."""
        return list(self.family.blocks(self.model))[-1] if self.pooling == "class" else None

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward, for hidden tokens."""
        layer = outputs.layer if outputs.tokens else None
        output, caught = self.run(pixels, () if layer is None else (layer,), stops=not outputs.pooled)
        pooled = self.pool(output) if outputs.pooled else None
        grid = self.geometry.grid(pixels.shape[2], pixels.shape[3], layer)
        if outputs.tokens is None:
            return Features(grid, pooled=pooled)
        if layer is None:
            return Features(grid, self.geometry.prefix_tokens, self.final_tokens(output), pooled)
        given = _first(caught[layer])
        if given.ndim == 4:
            return Features(Grid(*given.shape[2:]), tokens=to_patches(given), pooled=pooled)
        prefix = 0 if self.geometry.layer_sizes else self.geometry.prefix_tokens
        return Features(grid, prefix, given, pooled)

    def run(self, pixels: Tensor, layers: Collection[int], *, stops: bool) -> tuple[Any, dict[int, Any]]:
        """The model's output, and what these layers give; no output if it `stops` behind the last of them."""
        native = tuple(pixels.shape[2:]) == self.geometry.native
        arguments = self.family.arguments(self.model, pixels, native)
        return hooked.run(lambda: self.model(**arguments), layers, stops=stops)

    def final_tokens(self, output: Any) -> Tensor:
        """The final tokens of the model's output, after its final norm if it has one."""
        final: Tensor = self.family.final(self.model, output)
        return to_patches(final) if final.ndim == 4 else final

    def pool(self, output: Any) -> Tensor:
        """The pooled vectors [B, C] of the model's output, in the joint space if the tower projects them there."""
        pooled = self._pooled(output)
        return pooled if self.projection is None else self.projection(pooled)

    def _pooled(self, output: Any) -> Tensor:
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is not None and self.family.pooler:
            return pooled.flatten(1)
        final = self.final_tokens(output)
        return final[:, 0] if self.pooling == "class" else final[:, self.geometry.prefix_tokens :].mean(dim=1)


def _first(given: Any) -> Tensor:
    first: Tensor = given[0] if isinstance(given, tuple) else given
    return first
