"""Pins the attention kernels of forwards, so that predictions are of the kernels that run.

Left to itself torch chooses by device, dtype, shape and flags, and nn.MultiheadAttention has a fast path whose
memory on CPUs grows with the square of the tokens. `pin` narrows the choice for real forwards; `attend` runs the
same kernel over tensors on meta, where torch has none to choose; `straighten` spares nn.MultiheadAttention a detour;
`by_products` is a kernel of our own, for CPUs whose flash attention is slow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_aten = torch.ops.aten
_MASK_ALIGNMENT = 8
"""ATen's preprocess_mask copies a mask whose rows do not begin at a multiple of it, for the efficient kernel."""

_SCORES_BYTES = 2**20
"""Of the attention scores that `by_products` holds at once: they stay in a core's cache between its steps."""

_planned_for: ContextVar[str | None] = ContextVar("_planned_for", default=None)


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

    The steps around each kernel are those of ATen's native/transformers/attention.cpp. Raises RuntimeError for a mask
    of another shape.
    """
    scale = options.get("scale")
    if attn_mask is not None:
        attn_mask.expand(*query.shape[:-1], key.shape[-2])  # kernels look on a device; on meta nothing else does
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
        if mask is not None and any(stride % _MASK_ALIGNMENT for stride in mask.stride()[:-1]):
            length = mask.shape[-1]
            mask = F.pad(mask, (0, _MASK_ALIGNMENT - length % _MASK_ALIGNMENT))[..., :length]
        efficient: Tensor = _aten._scaled_dot_product_efficient_attention(
            query, key, value, mask, False, dropout_p, is_causal, scale=scale
        )[0]
        return efficient
    width = query.shape[-1]
    padded = [F.pad(tensor, (0, -width % 8)) if width % 8 else tensor for tensor in (query, key, value)]
    flash: Tensor = _aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, False, scale=scale)[0]
    return flash[..., :width]


@contextmanager
def planned_for(device: str) -> Iterator[None]:
    """In here tensors on meta stand for tensors on `device` (cpu or cuda)."""
    token = _planned_for.set(device)
    try:
        yield
    finally:
        _planned_for.reset(token)


def pays_by_products(x: Tensor, *, least: int = 0) -> bool:
    """Whether attention over the rows x, [batch, tokens, width], is faster by `by_products` than in torch's kernel.

    On a CPU without AMX torch's flash attention multiplies small bfloat16 tiles one by one: that
    takes 1.6 to 1.8 times as long. least: rows from which on it pays; plans are made as for many.
    """
    device = _planned_for.get() if x.is_meta else x.device.type
    many = x.is_meta or x.shape[:-1].numel() >= least
    return device == "cpu" and x.dtype == torch.bfloat16 and many and not _has_amx()


@cache
def _has_amx() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(query key^T / sqrt(width) + mask) value, a number of heads at a time. Scores are rounded to the dtype.

    query: [batch, heads, tokens, width], contiguous; written over: the result lies in it. key, value: the same, of as
    many tokens as are attended to. mask: [tokens, keys], added.
    """
    rows, keys, values = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    scale = query.shape[-1] ** -0.5
    bytes_a_head = rows.shape[1] * keys.shape[1] * rows.element_size()
    # As many whatever the batch: then memory is a fixed part and so much an image, and a plan can hold to the byte.
    step = max(1, _SCORES_BYTES // bytes_a_head)
    scratch = query.new_empty(step, rows.shape[1], keys.shape[1])
    for first in range(0, len(rows), step):
        some = slice(first, min(first + step, len(rows)))
        scores = scratch[: some.stop - first]
        added, beta = (scores, 0) if mask is None else (mask.expand_as(scores), 1)
        torch.baddbmm(added, rows[some], keys[some].transpose(1, 2), beta=beta, alpha=scale, out=scores)
        torch.softmax(scores, dim=-1, out=scores)
        torch.bmm(scores, values[some], out=rows[some])
    return query


def straighten(model: nn.Module) -> None:
    """Makes every nn.MultiheadAttention in the model keep the batch in front; weights and values stay what they are.

    torch's own turns [batch, tokens, width] round before its projections. A product with what has been turned copies
    the weights once for every token: in bfloat16 that was four fifths of a ViT-B/32's forward on a CPU.
    """
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and module.batch_first:
            module.__class__ = BatchFirst


class BatchFirst(nn.MultiheadAttention):
    """What nn.MultiheadAttention gives at inference, computed in the order the tensors lie in memory."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention.forward, to which the rarer of its options are left."""
        if key_padding_mask is not None or need_weights or query.ndim != 3 or self._extends_keys:
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        queries, keys, values = (self._by_head(x) for x in self._projected(query, key, value))
        mask = self._mask(attn_mask, batch=query.shape[0])
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out, None

    @property
    def _extends_keys(self) -> bool:
        return self.bias_k is not None or self.add_zero_attn

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each [batch, tokens, width]."""
        if self.in_proj_weight is not None and query is key is value:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(map(F.linear, (query, key, value), weights, biases))

    def _by_head(self, rows: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, heads, tokens, width of a head], not copied."""
        batch, tokens, width = rows.shape
        return rows.view(batch, tokens, self.num_heads, width // self.num_heads).transpose(1, 2)

    def _mask(self, mask: Tensor | None, *, batch: int) -> Tensor | None:
        """As scaled_dot_product_attention takes it: [..., tokens, keys], where True lets through."""
        if mask is not None and mask.ndim == 3:
            mask = mask.view(batch, self.num_heads, *mask.shape[1:])
        return mask.logical_not() if mask is not None and mask.dtype == torch.bool else mask
