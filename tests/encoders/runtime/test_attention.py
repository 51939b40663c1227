"""The attention that forwards run with against torch's own module."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.runtime import attention
from encoders.runtime.attention import (
    Attention,
    attend,
    by_products,
    choose,
    pays_by_products,
    planned_for,
    straighten,
)
from encoders.runtime.trace import Trace

BATCH, TOKENS, KEYS, WIDTH, HEADS = 3, 5, 7, 16, 4


def module(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options).eval().requires_grad_(False)
    for parameter in attention.parameters():
        parameter.copy_(torch.randn_like(parameter) / 4)
    return attention


def straightened(**options: Any) -> nn.Module:
    model = nn.Sequential(module(**options))
    straighten(model)
    return model[0]


def barred() -> Tensor:
    mask = torch.rand(TOKENS, KEYS) < 0.4
    mask[:, 0] = False
    return mask


torch.manual_seed(0)
MASKS = {
    "none": None,
    "additive": torch.randn(TOKENS, KEYS),
    "bool": barred(),
    "a head": torch.randn(BATCH * HEADS, TOKENS, KEYS),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"kdim": 24, "vdim": 24}], ids=["packed", "no bias", "other widths"]
)
def test_queries_of_others_are_answered_as_by_torch(options: dict[str, Any], mask: str) -> None:
    query, keys = torch.randn(BATCH, TOKENS, WIDTH), torch.randn(BATCH, KEYS, options.get("kdim", WIDTH))
    expected = module(**options)(query, keys, keys, need_weights=False, attn_mask=MASKS[mask])[0]
    given = straightened(**options)(query, keys, keys, need_weights=False, attn_mask=MASKS[mask])[0]
    torch.testing.assert_close(given, expected)


def test_tokens_among_themselves_are_answered_as_by_torch() -> None:
    tokens = torch.randn(BATCH, TOKENS, WIDTH)
    causal = torch.full((TOKENS, TOKENS), float("-inf")).triu(1)
    for mask in (None, causal):
        expected = module()(tokens, tokens, tokens, need_weights=False, attn_mask=mask)[0]
        given = straightened()(tokens, tokens, tokens, need_weights=False, attn_mask=mask)[0]
        torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}], ids=["bias_kv", "zero_attn"])
def test_rarer_options_are_left_to_torch(options: dict[str, Any]) -> None:
    tokens = torch.randn(BATCH, TOKENS, WIDTH)
    padding = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    padding[:, -1] = True
    for more in ({"need_weights": False}, {"key_padding_mask": padding}):
        expected, weights = module(**options)(tokens, tokens, tokens, **more)
        given, given_weights = straightened(**options)(tokens, tokens, tokens, **more)
        torch.testing.assert_close(given, expected)
        torch.testing.assert_close(given_weights, weights)


def test_no_product_copies_weights_for_each_token() -> None:
    tokens = torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.bfloat16)
    attention = straightened().to(torch.bfloat16)
    with torch.profiler.profile(acc_events=True) as profile:
        attention(tokens, tokens, tokens, need_weights=False)
    assert "aten::bmm" not in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize(("length", "copied"), [(77, 2 * 80 * 4), (80, 0)])
def test_a_card_copies_a_mask_whose_rows_are_not_aligned(length: int, copied: int) -> None:
    """For the efficient kernel, as ATen's preprocess_mask does: into rows of the next multiple of 8."""
    query, mask = torch.empty(2, 4, length, 16, device="meta"), torch.empty(2, 1, 1, length, device="meta")
    aligned = torch.empty(2, 1, 1, 80, device="meta")[..., :length]
    assert choose("cuda", query, query, query, mask) is Attention.EFFICIENT
    peaks = []
    for each in (mask, aligned):
        with Trace(runs_on="cuda") as trace:
            attend("cuda", query, query, query, each)
        peaks.append(trace.peak)
    assert peaks[0] - peaks[1] == copied


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("shape", [(8, 5, 5), (1, 2, 5, 5), (4, 5)])
def test_a_plan_refuses_a_mask_of_another_shape(device: str, shape: tuple[int, ...]) -> None:
    query, mask = torch.empty(2, 4, 5, 16, device="meta"), torch.empty(shape, device="meta")
    with pytest.raises(RuntimeError, match="expand"):
        attend(device, query, query, query, mask)


@pytest.mark.parametrize("heads_at_once", [1, 4, 1000])
@pytest.mark.parametrize("mask", [None, torch.full((TOKENS, KEYS), float("-inf")).triu(1)], ids=["free", "causal"])
def test_products_give_what_torchs_kernel_gives(
    monkeypatch: pytest.MonkeyPatch, heads_at_once: int, mask: Tensor | None
) -> None:
    monkeypatch.setattr(attention, "_SCORES_BYTES", heads_at_once * TOKENS * KEYS * 4)
    query = torch.randn(BATCH, HEADS, TOKENS, WIDTH)
    key, value = torch.randn(2, BATCH, HEADS, KEYS, WIDTH)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(by_products(query.clone(), key, value, mask), expected)


def test_products_hold_as_many_scores_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_SCORES_BYTES", 3 * TOKENS * KEYS * 4)
    peaks = []
    for batch in (2, 20):
        query, key = torch.randn(batch, HEADS, TOKENS, WIDTH), torch.randn(batch, HEADS, KEYS, WIDTH)
        with Trace() as trace:
            by_products(query, key, key)
        peaks.append(trace.peak)
    assert peaks == [3 * TOKENS * KEYS * 4] * 2


def test_few_rows_are_left_to_torchs_kernel_but_planned_as_many() -> None:
    rows = torch.empty(2, 5, 8, dtype=torch.bfloat16)
    assert not pays_by_products(rows, least=11)
    assert pays_by_products(rows, least=10) == pays_by_products(rows)
    with planned_for("cpu"):
        assert pays_by_products(rows.to("meta"), least=11) == pays_by_products(rows)


def test_a_plan_for_a_card_has_no_products_in_it() -> None:
    rows = torch.empty(1, dtype=torch.bfloat16, device="meta")
    with planned_for("cuda"):
        assert not pays_by_products(rows)
    with planned_for("cpu"):
        assert pays_by_products(rows) == pays_by_products(torch.empty(1, dtype=torch.bfloat16))
