"""Linear layers for CPUs whose weights lie as oneDNN multiplies them, instead of being turned round in every product.

For bfloat16 alone, where the turning shows, most of all with one image. The weights as they were are let go of, so it
costs no memory.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from encoders.runtime.hooks import has_hooks

_onednn = torch.ops.mkldnn


def is_packable(dtype: torch.dtype) -> bool:
    """Whether this machine has the kernels, and they pay."""
    if dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return bool(_onednn._is_mkldnn_bf16_supported())


class PackedLinear(nn.Linear):
    """What nn.Linear gives at inference, but for bfloat16's rounding; with `gelu` behind it, if one is named.

    An nn.Linear by class alone, since libraries ask: open_clip multiplies with SigLIP's projection of texts if not.
    """

    _packed: Tensor | None
    _plain: Tensor | None = None

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: Literal["none", "tanh"] | None = None) -> None:
        """weight: bfloat16 [out, in] on the CPU. Copied, in an order that only oneDNN knows. gelu: as nn.GELU's."""
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape  # as nn.Linear: a library may ask
        self.register_buffer("_packed", _onednn._reorder_linear_weight(weight.contiguous(), None), persistent=False)
        self.bias = bias  # type: ignore[assignment]  # by class it always is there
        self._then = ("none", "") if gelu is None else ("gelu", gelu)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[out, in], for a library that multiplies by itself. From then on it lies as it did."""
        if (packed := self._packed) is not None:
            self._plain, self._packed = packed.to_dense(), None
        assert self._plain is not None
        return self._plain

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        activation, algorithm = self._then
        weight = packed if (packed := self._packed) is not None else self.weight
        out: Tensor = _onednn._linear_pointwise(x, weight, self.bias, activation, [], algorithm)
        return out


def pack_linears(model: nn.Module) -> None:
    """Puts a PackedLinear in the place of every nn.Linear in the model that has no hooks."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and not has_hooks(child):
                setattr(module, name, PackedLinear(child.weight, child.bias))
