"""Linear layers for CPUs whose weights lie as oneDNN multiplies them, instead of being turned round in every product.

For bfloat16 alone, where the turning shows, most of all with one image. The weights as they were are let go of, so it
costs no memory.
"""

import torch
from torch import Tensor, nn

_onednn = torch.ops.mkldnn


def is_packable(dtype: torch.dtype) -> bool:
    """Whether this machine has the kernels, and they pay."""
    if dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(_onednn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Module):
    """What nn.Linear gives at inference, but for bfloat16's rounding."""

    weight: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """weight: bfloat16 [out, in] on the CPU. Copied, in an order that only oneDNN knows."""
        super().__init__()
        self.register_buffer("weight", _onednn._reorder_linear_weight(weight.contiguous(), None), persistent=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        out: Tensor = _onednn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def pack(sequential: nn.Sequential) -> None:
    """Puts a PackedLinear in the place of every nn.Linear in it."""
    for name, child in sequential.named_children():
        if type(child) is nn.Linear:
            setattr(sequential, name, PackedLinear(child.weight, child.bias))
