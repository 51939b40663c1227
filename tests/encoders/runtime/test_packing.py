"""Weights laid out for CPUs: the same answers, and nothing held twice."""

from functools import cache

import numpy as np
import pytest
import torch
from open_clip.transformer import TextTransformer
from torch import nn

from encoders import load
from encoders.adapters.registry import blueprint
from encoders.contract.encoder import Encoder, Placement
from encoders.contract.values import Outputs, TokenKind
from encoders.runtime.packed_linear import PackedLinear, is_packable, pack_linears
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
def test_a_layer_gives_what_torchs_gives(bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 32, dtype=torch.bfloat16)
    model = nn.Sequential(nn.Linear(32, 48, bias=bias), nn.GELU()).to(torch.bfloat16).requires_grad_(False)
    linear = model[0]
    assert isinstance(linear, nn.Linear)
    expected, weight = model(x), linear.weight.clone()
    pack_linears(model)
    packed = model[0]
    assert isinstance(packed, PackedLinear)
    torch.testing.assert_close(model(x).float(), expected.float(), rtol=0.02, atol=0.02)
    assert torch.equal(packed.weight, weight), "a library that multiplies by itself gets its own weights"
    torch.testing.assert_close(model(x).float(), expected.float(), rtol=0.02, atol=0.02)


@packs
def test_what_listens_to_a_layer_is_heard() -> None:
    x = torch.randn(2, 32, dtype=torch.bfloat16)
    model = nn.Sequential(nn.Linear(32, 48)).to(torch.bfloat16).requires_grad_(False)
    model[0].register_forward_hook(lambda layer, args, output: output * 2)
    expected = model(x)
    pack_linears(model)
    torch.testing.assert_close(model(x), expected)


@packs
def test_open_clip_takes_a_packed_projection_of_texts_for_a_layer() -> None:
    torch.manual_seed(0)
    text: nn.Module = TextTransformer(
        context_length=4, vocab_size=8, width=32, heads=2, layers=1, output_dim=16, proj_bias=True, pool_type="last"
    )
    ids, text = torch.tensor([[1, 2, 3, 4]]), text.to(torch.bfloat16).requires_grad_(False)
    expected = text(ids)
    pack_linears(text)
    torch.testing.assert_close(text(ids).float(), expected.float(), rtol=0.02, atol=0.02)
