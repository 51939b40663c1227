"""Convolutions for CPUs: the channels of a pixel lie together, and windows that do not overlap are rows of one product.

Laid out so, oneDNN neither turns activations round nor takes twice as long for a depthwise convolution, and what follows
(layer norms and linear layers over channels) needs no copy. Weights of overlapping windows stay plain: the order that
oneDNN wants for them changes with the size of the image, and to put them from one of its orders into another took it
ten times as long as the convolution.
"""

import torch
from torch import Tensor, nn

from encoders.runtime.packed_linear import PackedLinear


def pack_convolutions(model: nn.Module) -> None:
    """Lays out every nn.Conv2d in it, in place. The model must be in bfloat16 on a CPU that `is_packable` there."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Conv2d:
                continue
            if _is_product(child):
                setattr(parent, name, PackedWindows(child))
            else:
                child.to(memory_format=torch.channels_last)


def _is_product(conv: nn.Conv2d) -> bool:
    """Whether no pixel is read twice and none is made up."""
    overlaps = any(side > step for side, step in zip(conv.kernel_size, conv.stride, strict=True))
    return conv.groups == 1 and not overlaps and conv.padding == (0, 0) and conv.dilation == (1, 1)


class PackedWindows(nn.Module):
    """What nn.Conv2d gives at inference where windows do not overlap, channels last, but for bfloat16's rounding."""

    def __init__(self, conv: nn.Conv2d) -> None:
        """conv: bfloat16 on the CPU. Its weights are copied."""
        super().__init__()
        self._window, self._step = conv.kernel_size, conv.stride
        self.product = PackedLinear(conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)

    @property
    def weight(self) -> Tensor:
        """For its dtype alone, which transformers' patch embeddings ask for."""
        return self.product.weight

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, rows, cols]."""
        rows: Tensor = self.product(self._windows(x))
        return rows.permute(0, 3, 1, 2)

    def _windows(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, rows, cols, window's height x its width x C]."""
        (height, width), (down, across) = self._window, self._step
        pixels = x.permute(0, 2, 3, 1)
        if height == width == 1:
            return pixels[:, ::down, ::across]
        return pixels.unfold(1, height, down).unfold(2, width, across).permute(0, 1, 2, 4, 5, 3).flatten(3)
