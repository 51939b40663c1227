"""Weights laid out for CPUs: the same answers, and nothing held twice."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from encoders import load
from encoders.adapters.registry import blueprint
from encoders.contract.encoder import Encoder, Placement
from encoders.contract.values import Outputs, TokenKind
from encoders.runtime.attention import BatchFirst, straighten
from encoders.runtime.packed_linear import PackedLinear, is_packable, pack
from encoders.runtime.torch_encoder import TorchEncoder
from tests.support.closeness import cosines
from tests.support.photographs import photographs

packs = pytest.mark.skipif(not is_packable(torch.bfloat16), reason="this CPU has no kernels for bfloat16")
OUTPUTS = {
    "pooled": Outputs(pooled=True),
    "tokens": Outputs(tokens=TokenKind.HIDDEN),
    "both": Outputs(tokens=TokenKind.HIDDEN, pooled=True),
    "a layer's": Outputs(tokens=TokenKind.HIDDEN, layer=1, pooled=True),
    "the last layer's": Outputs(tokens=TokenKind.HIDDEN, layer=4),
    "projected": Outputs(tokens=TokenKind.PROJECTED, pooled=True),
    "dense": Outputs(tokens=TokenKind.DENSE, pooled=True),
}


@cache
def on(dtype: str) -> Encoder:
    return load("demo:vit", Placement(dtype=dtype))


@packs
@pytest.mark.parametrize("name", OUTPUTS)
def test_packed_weights_give_what_plain_ones_give(name: str) -> None:
    plain, packed = on("float32"), on("bfloat16")
    given = np.stack([plain.preprocess(image, plain.spec.image_size) for image in photographs()])
    expected, found = plain.encode(given, OUTPUTS[name]), packed.encode(given, OUTPUTS[name])
    assert (found.grid, found.prefix_tokens) == (expected.grid, expected.prefix_tokens)
    for ours, theirs in ((found.tokens, expected.tokens), (found.pooled, expected.pooled)):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert ours.shape == theirs.shape
            assert cosines(ours, theirs).min() >= 0.999


@packs
def test_texts_too() -> None:
    plain, packed = on("float32"), on("bfloat16")
    ids = plain.tokenize(["a red circle", "a tree"]).ids
    assert cosines(packed.encode_text(ids), plain.encode_text(ids)).min() >= 0.999


@packs
def test_the_plain_weights_are_let_go_of() -> None:
    encoder = on("bfloat16")
    assert isinstance(encoder, TorchEncoder)
    assert not [module for module in encoder.tower.modules() if type(module) is nn.Linear]
    left = sum(parameter.nbytes for parameter in encoder.tower.parameters())
    assert left < encoder.spec.weights_bytes / 10
    assert encoder.spec.weights_bytes == blueprint("demo:vit", dtype="bfloat16").spec.weights_bytes


@packs
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_an_attention_give_what_torchs_give(bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 32, dtype=torch.bfloat16)
    model = nn.Sequential(nn.Linear(32, 48, bias=bias), nn.GELU()).to(torch.bfloat16).requires_grad_(False)
    attention = nn.Sequential(nn.MultiheadAttention(32, 4, bias=bias, batch_first=True)).to(torch.bfloat16).eval()
    attention.requires_grad_(False)
    straighten(attention)
    straight = attention[0]
    assert isinstance(straight, BatchFirst)

    def results() -> list[torch.Tensor]:
        return [model(x), straight(x[:, :1], x, x, need_weights=False)[0], straight.values(x)]

    expected = results()
    pack(model)
    straight.pack()
    assert isinstance(model[0], PackedLinear)
    for found, before in zip(results(), expected, strict=True):
        torch.testing.assert_close(found.float(), before.float(), rtol=0.02, atol=0.02)
