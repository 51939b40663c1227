"""Linear products of a vision tower in 8 bits on CPUs: steps of activations, uint8, times int8 weights.

Ranges of activations are seen in forwards of pictures in float32 (`observe`). Weights have a scale for each of their
outputs. Channels of very different ranges, which trained transformers have, are evened out where that is free: in the
layer norm before a product, or in the values that attention mixes (SmoothQuant, Xiao et al. 2023, section 4; shifts as
in Outlier Suppression+, Wei et al. 2023, section 3). Convolutions, attention and the text half stay what they are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.contract.errors import Int8Refused
from encoders.runtime.block import Block, gelu_, gelu_tanh_, nothing, silu_
from encoders.runtime.folding import fold
from encoders.runtime.hooks import has_hooks

_onednn = torch.ops.onednn
_STEPS = 255
_LARGEST = 127
_MARGIN = 2.0
"""Ranges are so much wider than seen: other pictures reach further. What is cut off costs more than coarser steps: of
demo:vit, by drawn pictures, the least cosine on photographs is 0.973 at 1, 0.9993 at 1.5 and 0.9998 at 2."""
_TINY = 1e-6
_LEAST_ROWS = 8
"""Of a product with fewer rows an image, such as a projection of the pooled vector, there is nothing to gain."""
_FUSED = {gelu_: ("gelu", "none"), gelu_tanh_: ("gelu", "tanh"), silu_: ("swish", "")}
"""oneDNN's name and algorithm of an activation."""


@dataclass
class Seen:
    """The least and greatest value of each channel [in] of what went into a product, and rows an image."""

    low: Tensor
    high: Tensor
    rows: int

    @property
    def center(self) -> Tensor:
        """The middle of each channel's range."""
        return (self.low + self.high) / 2

    @property
    def reach(self) -> Tensor:
        """How far from there each channel's steps go, above 0."""
        return (_MARGIN * (self.high - self.low) / 2).clamp_min(_TINY)


@dataclass(frozen=True)
class Steps:
    """A value is scale * (step - zero), and a step one of 0 to 255."""

    scale: float = 1.0
    zero: int = 128

    @classmethod
    def over(cls, seen: Seen) -> "Steps":
        """The same for all channels, with a step at 0."""
        least, greatest = (_MARGIN * _number(value) for value in (seen.low.min(), seen.high.max()))
        least, greatest = min(least, 0.0), max(greatest, 0.0)
        scale = max(greatest - least, _TINY) / _STEPS
        return cls(scale, round(-least / scale))

    def of(self, x: Tensor) -> Tensor:
        """The values as steps, uint8."""
        scaled = x if self.scale == 1.0 else x * (1 / self.scale)
        return _rounded(scaled + self.zero)


class Int8Norm(nn.Module):
    """A layer norm that gives steps, uint8: their scale and zero lie in its weights."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: nn.LayerNorm, *, center: Tensor, scale: Tensor) -> None:
        """center, scale: of each channel; a step is (value - center) / scale + 128."""
        super().__init__()
        self._shape, self._eps = norm.normalized_shape, norm.eps
        bias = 0.0 if norm.bias is None else norm.bias
        self.register_buffer("weight", norm.weight / scale)
        self.register_buffer("bias", (bias - center) / scale + Steps.zero)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> uint8 [..., C]."""
        return _rounded(F.layer_norm(x, self._shape, self.weight, self.bias, self._eps))


class Int8Linear(nn.Module):
    """What nn.Linear gives at inference, nearly."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        given: Steps,
        *,
        dtype: torch.dtype,
        activation: tuple[str, str] = ("none", ""),
        gives: Steps | None = None,
    ) -> None:
        """weight, bias: float32 [out, in] and [out]. given: of the input. dtype: of the output.

        activation: oneDNN's name and algorithm. gives: of the output, if it is to be steps.
        """
        super().__init__()
        scales = (weight.abs().amax(1) / _LARGEST).clamp_min(_TINY / _LARGEST)
        whole = (weight / scales[:, None]).round().to(torch.int8)
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", whole.t() if whole.is_meta else _onednn.qlinear_prepack(whole, None))
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int32, device=scales.device))
        self.register_buffer("bias", bias)
        self._given, self._activation = given, activation
        self._gives = (gives.scale, gives.zero, torch.uint8) if gives else (1.0, 0, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in], or its steps -> [..., out]."""
        steps = x if x.dtype == torch.uint8 else self._given.of(x)
        name, algorithm = self._activation
        out: Tensor = _onednn.qlinear_pointwise(
            steps,
            self._given.scale,
            self._given.zero,
            self.weight,
            self.scales,
            self.zeros,
            self.bias,
            *self._gives,
            name,
            [],
            algorithm,
        )
        return out


@dataclass(frozen=True)
class Observed:
    """products: what went into each nn.Linear. linear, convolved: multiply-adds of linear layers and convolutions."""

    products: dict[nn.Module, Seen]
    linear: int
    convolved: int


def observe(tower: nn.Module, forwards: Iterable[Callable[[], object]], *, images: int) -> Observed:
    """Folds the tower, runs the forwards and sees what its linear layers are given.

    tower: in float32. images: of all forwards together.
    """
    fold(tower)
    products: dict[nn.Module, Seen] = {}
    work = {nn.Linear: 0, nn.Conv2d: 0}

    def see(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = args[0].flatten(0, -2)
        low, high = rows.amin(0), rows.amax(0)
        known = products.get(layer)
        if known is not None:
            low, high = torch.minimum(low, known.low), torch.maximum(high, known.high)
        products[layer] = Seen(low, high, len(rows) // images + (known.rows if known else 0))

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        work[type(layer)] += out.numel() * weight[0].numel()

    layers = [layer for layer in tower.modules() if type(layer) in work]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    hooks += [layer.register_forward_pre_hook(see) for layer in layers if type(layer) is nn.Linear]
    try:
        for forward in forwards:
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return Observed(products, work[nn.Linear], work[nn.Conv2d])


def quantized(tower: nn.Module, observed: Observed, *, encoder_id: str, dtype: torch.dtype) -> Callable[[], None]:
    """What puts the products in 8 bits in the tower's layers' places, once the others have been cast.

    tower: in float32. dtype: what the rest computes in. Raises Int8Refused if most of its work is convolutions.
    """
    if observed.linear <= observed.convolved:
        raise Int8Refused(
            f"{encoder_id} cannot be run in int8: most of its work is convolutions, which stay as they are. "
            "Use the dtype auto.",
            model=encoder_id,
        )
    products = observed.products.items()
    seen = {layer: each for layer, each in products if each.rows >= _LEAST_ROWS and not has_hooks(layer)}
    changes: list[tuple[nn.Module, str, object]] = []
    for block in (module for module in tower.modules() if isinstance(module, Block)):
        layers = (block.queries, block.keys_values, block.out, block.mlp_in, block.mlp_out)
        if seen.keys() >= {*layers} and all(_is_plain(norm) for norm in (block.norm_1, block.norm_2)):
            changes += ((block, name, part) for name, part in _block(block, seen, dtype).items())
            seen = {layer: each for layer, each in seen.items() if layer not in layers}
    for module in tower.modules():
        for name, layer in module.named_children():
            if isinstance(layer, nn.Linear) and layer in seen:
                given = Steps.over(seen[layer])
                changes.append((module, name, Int8Linear(layer.weight, layer.bias, given, dtype=dtype)))

    def put() -> None:
        for module, name, part in changes:
            setattr(module, name, part)

    return put


def _block(block: Block, seen: dict[nn.Module, Seen], dtype: torch.dtype) -> dict[str, object]:
    """The attributes of the block in 8 bits."""
    queries, keys_values, out, mlp_in, mlp_out = (
        _Product.of(layer) for layer in (block.queries, block.keys_values, block.out, block.mlp_in, block.mlp_out)
    )
    norm_1, (queries, keys_values) = _behind(block.norm_1, seen[block.queries], queries, keys_values)
    norm_2, (mlp_in,) = _behind(block.norm_2, seen[block.mlp_in], mlp_in)
    mixed = seen[block.out]
    scale = _evened(mixed, out)
    keys_values, out = keys_values.with_values_as_steps(mixed.center, scale), out.reading(mixed.center, scale)
    hidden = Steps.over(seen[block.mlp_out])
    parts: dict[str, object] = {
        "norm_1": norm_1,
        "queries": queries.layer(dtype),
        "keys_values": keys_values.layer(dtype),
        "out": out.times(block.scale_1).layer(dtype),
        "scale_1": nn.Identity(),
        "norm_2": norm_2,
        "mlp_in": mlp_in.layer(dtype),
        "mlp_out": mlp_out.times(block.scale_2).layer(dtype, hidden),
        "scale_2": nn.Identity(),
    }
    if block.activate in _FUSED:
        parts["mlp_in"] = mlp_in.layer(dtype, activation=_FUSED[block.activate], gives=hidden)
        parts["activate"] = nothing
    return parts


@dataclass(frozen=True)
class _Product:
    """weight x + bias, float32 [out, in] and [out]."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: nn.Module) -> "_Product":
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        return cls(weight, bias if isinstance(bias, Tensor) else weight.new_zeros(len(weight)))

    def reading(self, center: Tensor, scale: Tensor) -> "_Product":
        """The same of (x - center) / scale."""
        return _Product(self.weight * scale, self.bias + self.weight @ center)

    def with_values_as_steps(self, center: Tensor, scale: Tensor) -> "_Product":
        """Keys as they are, and values as (value - center) / scale: so is then whatever attention makes of them."""
        ones, zeros = torch.ones_like(scale), torch.zeros_like(center)
        divisor, less = torch.cat([ones, scale]), torch.cat([zeros, center])
        return _Product(self.weight / divisor[:, None], (self.bias - less) / divisor)

    def times(self, scale: nn.Module) -> "_Product":
        """With a layer scale behind it; of any other module the block has in that place there are no weights."""
        gammas = list(scale.parameters())
        return _Product(self.weight * gammas[0][:, None], self.bias * gammas[0]) if gammas else self

    def layer(self, dtype: torch.dtype, given: Steps = Steps(), **options: Any) -> Int8Linear:  # frozen
        return Int8Linear(self.weight, self.bias, given, dtype=dtype, **options)


def _behind(norm: nn.Module, seen: Seen, *products: _Product) -> tuple[Int8Norm, list[_Product]]:
    """The norm and the products that read it, with steps between them."""
    assert isinstance(norm, nn.LayerNorm)
    scale = _evened(seen, *products)
    return Int8Norm(norm, center=seen.center, scale=scale), [each.reading(seen.center, scale) for each in products]


def _evened(seen: Seen, *products: _Product) -> Tensor:
    """The size of a step of each channel [in]: a channel's range is shared between activations and weights."""
    columns = torch.cat([each.weight for each in products]).abs().amax(0).clamp_min(_TINY)
    share = (seen.reach / columns).sqrt()
    return share * ((seen.reach / share).max() / _LARGEST)


def _is_plain(norm: nn.Module) -> bool:
    return isinstance(norm, nn.LayerNorm) and norm.weight is not None


def _number(value: Tensor) -> float:
    """On meta, where nothing has a value, 0."""
    return 0.0 if value.is_meta else float(value)


def _rounded(x: Tensor) -> Tensor:
    """To the nearest step; written over."""
    return x.round_().clamp_(0, _STEPS).to(torch.uint8)
