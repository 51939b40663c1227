"""Which attention kernel a forward runs with, so that what is predicted is what is run.

Left to itself torch chooses by device, dtype, shape and flags, and nn.MultiheadAttention has a fast path whose
memory on CPUs grows with the square of the tokens. `pin` narrows the choice for real forwards; `attend` runs the
same kernel over tensors on meta, where torch has none to choose.
"""

from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_aten = torch.ops.aten


class Attention(StrEnum):
    """Kernels of scaled_dot_product_attention. All but `math` need memory linear in the tokens."""

    CPU_FLASH = "cpu_flash"
    FLASH = "flash"
    EFFICIENT = "efficient"
    MATH = "math"


def pin() -> None:
    """Forwards of this process use these kernels and no others from now on.

    nn.MultiheadAttention's fast path is left out, and cuDNN's attention: torch's first choice on compute capability 9.0
    and 10.0, it takes a workspace that nothing outside it can know, and flash attention does the same work without.
    Both are flags of the process: a change for the length of one forward would race with the next thread's.
    """
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def choose(device: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Attention:
    """The kernel that torch takes on `device` (cpu or cuda) after `pin`, for tensors of these shapes.

    The rules are those of ATen's sdp_utils_cpp.cpp and cuda/sdp_utils.cpp, for compute capability 8.0 and up; before,
    flash attention is missing and `efficient` takes its place.
    """
    same_heads = query.shape[-1] == key.shape[-1] == value.shape[-1]
    rows = all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    if query.ndim != 4 or not rows or not same_heads:
        return Attention.MATH
    if device == "cpu":
        return Attention.CPU_FLASH
    half = query.dtype in (torch.float16, torch.bfloat16)
    if half and mask is None and query.shape[-1] <= 256:
        return Attention.FLASH
    return Attention.EFFICIENT if query.shape[-1] % (8 if half else 4) == 0 else Attention.MATH


def attend(
    device: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention over tensors on meta, as `device` would run it.

    The steps around each kernel are those of ATen's native/transformers/attention.cpp.
    """
    scale = options.get("scale")
    kernel = choose(device, query, key, value, attn_mask)
    if kernel is Attention.MATH:
        math: Tensor = _aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale
        )[0]
        return math
    mask = attn_mask
    if mask is not None and mask.dtype == torch.bool:
        barred, free = (torch.scalar_tensor(x, dtype=query.dtype, device=mask.device) for x in (float("-inf"), 0.0))
        mask = torch.where(mask.logical_not(), barred, free)
    if kernel is Attention.CPU_FLASH:
        cpu: Tensor = _aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, dropout_p, is_causal, attn_mask=mask, scale=scale
        )[0]
        return cpu
    if kernel is Attention.EFFICIENT:
        efficient: Tensor = _aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, False, dropout_p, is_causal, scale=scale
        )[0]
        return efficient
    width = query.shape[-1]
    padded = [F.pad(tensor, (0, -width % 8)) if width % 8 else tensor for tensor in (query, key, value)]
    flash: Tensor = _aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, False, scale=scale)[0]
    return flash[..., :width]
