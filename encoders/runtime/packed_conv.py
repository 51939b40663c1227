"""Convolutions for CPUs: the channels of a pixel lie together, and weights as oneDNN multiplies them, where it is safe.

Laid out so, oneDNN turns no activations round, and what follows (layer norms and linear layers over channels) needs no
copy. For bfloat16 alone, as packed_linear.py.
"""

import torch
from torch import Tensor, nn

from encoders.runtime.hooks import has_hooks

_onednn = torch.ops.mkldnn


_SIZES = ((1, 7), (1, 14), (1, 28), (1, 56), (8, 14))
"""Images in a batch and their side in pixels, to ask with. Of 26 3 x 3 convolutions, those that had one order for these
had it for 108 others (torch 2.15, AVX-512)."""


def pack_convolutions(model: nn.Module) -> None:
    """Lays out every nn.Conv2d in it, in place, but for those with hooks.

    The model must be on the CPU, in a dtype that `is_packable`.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and not has_hooks(module):
            _pack(module)


def _pack(conv: nn.Conv2d) -> None:
    conv.to(memory_format=torch.channels_last)
    if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return
    overlaps = any(side > step for side, step in zip(conv.kernel_size, conv.stride, strict=True))
    weight: Tensor | None
    if not overlaps and conv.padding == (0, 0) and conv.dilation == (1, 1):
        conv.__class__ = PackedWindows
        weight = _onednn._reorder_linear_weight(conv.weight.permute(0, 2, 3, 1).flatten(1), None)
    elif (weight := _reordered(conv)) is not None:
        conv.__class__ = PackedConv
    else:
        return
    del conv.weight
    conv.register_buffer("weight", weight, persistent=False)


def _reordered(conv: nn.Conv2d) -> Tensor | None:
    """The weights in oneDNN's order for them. None if that depends on the size of the image.

    In every forward oneDNN brings weights into the order it wants. From a plain one it does so fast; from another of
    its own it took up to fifty times as long as the convolution itself.
    """
    orders, weight = set(), None
    for batch, side in _SIZES:
        size = [batch, conv.in_channels, side, side]
        weight = _onednn._reorder_convolution_weight(conv.weight, conv.padding, conv.stride, conv.dilation, 1, size)
        orders.add(bytes(_onednn._get_mkldnn_serialized_md(weight).tolist()))
    return weight if len(orders) == 1 else None


class PackedConv(nn.Conv2d):
    """What nn.Conv2d gives at inference, channels last, but for bfloat16's rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, rows, cols]."""
        geometry = self.padding, self.stride, self.dilation, self.groups
        out: Tensor = _onednn._convolution_pointwise(input, self.weight, self.bias, *geometry, "none", [], "")
        return out


class PackedWindows(nn.Conv2d):
    """As PackedConv where windows do not overlap: those of an image are the rows of one product."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, rows, cols]."""
        rows: Tensor = _onednn._linear_pointwise(self._windows(input), self.weight, self.bias, "none", [], "")
        return rows.permute(0, 3, 1, 2)

    def _windows(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, rows, cols, window's height x its width x C]."""
        (height, width), (down, across) = self.kernel_size, self.stride
        pixels = input.permute(0, 2, 3, 1)
        if height == width == 1:
            return pixels[:, ::down, ::across]
        return pixels.unfold(1, height, down).unfold(2, width, across).permute(0, 1, 2, 4, 5, 3).flatten(3)
