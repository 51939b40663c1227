"""One block for all libraries gives what theirs give, in their places; what it does not know stays as it is."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn
from transformers import CLIPVisionConfig, Dinov2Config, ViTConfig
from transformers.activations import ACT2FN
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer
from transformers.models.vit.modeling_vit import ViTLayer

from encoders.runtime.block import Block, only_first, unify
from tests.support.closeness import close

WIDTH, HEADS = 32, 4
SIZES = {
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "_attn_implementation": "sdpa",
}
BLOCKS: dict[str, Callable[[], Any]] = {
    "open_clip": partial(ResidualAttentionBlock, WIDTH, HEADS),
    "open_clip-quick-gelu": partial(ResidualAttentionBlock, WIDTH, HEADS, act_layer=QuickGELU, ls_init_value=0.1),
    "timm": partial(TimmBlock, WIDTH, HEADS, qkv_bias=True),
    "timm-scaled-without-bias": partial(TimmBlock, WIDTH, HEADS, init_values=0.1, act_layer=nn.SiLU),
    "clip": lambda: CLIPEncoderLayer(CLIPVisionConfig(**SIZES)),
    "clip-quick": lambda: CLIPEncoderLayer(CLIPVisionConfig(**SIZES, hidden_act="quick_gelu")),
    "clip-tanh": lambda: CLIPEncoderLayer(CLIPVisionConfig(**SIZES, hidden_act="gelu_pytorch_tanh")),
    "dinov2": lambda: Dinov2Layer(Dinov2Config(**SIZES)),
    "vit": lambda: ViTLayer(ViTConfig(**SIZES)),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "normed queries and keys": partial(TimmBlock, WIDTH, HEADS, qk_norm=True),
    "normed attention": partial(TimmBlock, WIDTH, HEADS, scale_attn_norm=True),
    "norms behind": partial(ResPostBlock, WIDTH, HEADS),
    "attends to others": partial(ResidualAttentionBlock, WIDTH, HEADS, is_cross_attention=True),
    "tokens first": partial(ResidualAttentionBlock, WIDTH, HEADS, batch_first=False),
    "swiglu": lambda: Dinov2Layer(Dinov2Config(**SIZES, use_swiglu_ffn=True)),
}


def made(make: Callable[[], Any]) -> nn.Sequential:
    """The block in a model, with weights of which none is zero or one by initialisation."""
    torch.manual_seed(0)
    model = nn.Sequential(make()).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.add_(torch.randn_like(weight) * 0.1)
    return model


def tokens() -> Tensor:
    return torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_gives_what_the_librarys_gives(name: str) -> None:
    model, x = made(BLOCKS[name]), tokens()
    mask = torch.full((7, 7), float("-inf")).triu(1)
    options = {"attention_mask": mask[None, None]} if "Layer" in type(model[0]).__name__ else {"attn_mask": mask}
    plain = {"attention_mask": None} if "Layer" in type(model[0]).__name__ else {}
    expected = [model[0](x, **plain), model[0](x, **options)]
    unify(model)
    block: Any = model[0]
    assert isinstance(block, Block)
    for found, theirs in zip([block(x), block(x, **options)], expected, strict=True):
        close(found, theirs)
    close(block(x, is_causal=True), expected[1])


@pytest.mark.parametrize("name", BLOCKS)
def test_a_mask_means_what_it_means_to_the_librarys_block(name: str) -> None:
    """open_clip adds even one of truth values to the logits, and has one for each head of each item too."""
    model, x = made(BLOCKS[name]), tokens()
    lets_through = torch.ones(7, 7, dtype=torch.bool).tril()
    if name.startswith("open_clip"):
        by_head = torch.randn(3 * HEADS, 7, 7, generator=torch.Generator().manual_seed(2))
        given = [{"attn_mask": lets_through}, {"attn_mask": by_head}]
    else:
        given = [{"attn_mask" if name.startswith("timm") else "attention_mask": lets_through[None, None]}]
    expected = [model[0](x, **options) for options in given]
    unify(model)
    for options, theirs in zip(given, expected, strict=True):
        close(model[0](x, **options), theirs)


@pytest.mark.parametrize("name", ACT2FN)
def test_an_activation_gives_what_the_librarys_gives_far_from_zero_too(name: str) -> None:
    model, x = made(lambda: CLIPEncoderLayer(CLIPVisionConfig(**SIZES, hidden_act=name))), tokens()
    model[0].mlp.fc1.weight.mul_(40)  # type: ignore[union-attr,operator]
    expected = model[0](x, attention_mask=None)
    unify(model)
    assert isinstance(model[0], Block)
    close(model[0](x), expected)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_plain_block_stays(name: str) -> None:
    model = made(OTHERS[name])
    kind = type(model[0])
    unify(model)
    assert type(model[0]) is kind


def test_a_learnt_activation_stays_in_a_blueprint_too() -> None:
    model = made(partial(TimmBlock, WIDTH, HEADS, act_layer=nn.PReLU)).to("meta")
    unify(model)
    block: Any = model[0]
    assert isinstance(block, Block)
    assert isinstance(block.activate, nn.PReLU)
    assert block(tokens().to("meta")).shape == tokens().shape


def test_hooks_and_weights_stay() -> None:
    model, seen = made(BLOCKS["open_clip"]), []
    model[0].register_forward_hook(lambda block, given, output: seen.append(output))
    numbers = sum(weight.numel() for weight in model.parameters())
    unify(model)
    assert model(tokens()) is seen[0]
    assert sum(weight.numel() for weight in model.parameters()) == numbers


@pytest.mark.parametrize("count", [1, 3])
def test_the_first_tokens_alone_are_those_of_all(count: int) -> None:
    model = made(BLOCKS["timm"])
    unify(model)
    other = made(BLOCKS["timm"])
    unify(other)
    every = model(tokens())
    with only_first(model[0], count):
        first, others = model(tokens()), other(tokens())
    close(first, every[:, :count])
    assert first.shape == (3, count, WIDTH)
    assert others.shape == every.shape
    with only_first(None, count):
        assert model(tokens()).shape == every.shape


def test_attending_alone_is_the_attention_of_one_token() -> None:
    model, x = made(BLOCKS["vit"]), tokens()[:, :1]
    layer = model[0]
    expected = layer.attention(layer.layernorm_before(x))[0]  # type: ignore[operator]
    unify(model)
    close(model[0].alone(x), expected)  # type: ignore[operator]
