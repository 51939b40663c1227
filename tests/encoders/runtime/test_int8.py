"""Products in 8 bits: near float32 for every library's block, planned to the byte, refused where too coarse."""

import logging
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from encoders import load
from encoders.adapters.registry import blueprint
from encoders.contract.encoder import Blueprint, Encoder, Placement
from encoders.contract.errors import Int8Refused
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.runtime import calibration
from encoders.runtime.block import Block, only_first, unify
from encoders.runtime.device import has_int8, resolve
from encoders.runtime.int8 import Int8Linear, Seen, Steps, observe, quantized
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.trace import Trace
from tests.encoders.runtime.test_block import BLOCKS, WIDTH, made
from tests.support.closeness import cosines
from tests.support.photographs import photographs

multiplies = pytest.mark.skipif(not has_int8(), reason="this CPU multiplies 8 bits no faster than 16")
pytestmark = multiplies

OUTPUTS = {
    "pooled": Outputs(pooled=True),
    "tokens": Outputs(tokens=TokenKind.HIDDEN, pooled=True),
    "a layer's": Outputs(tokens=TokenKind.HIDDEN, layer=1),
    "projected": Outputs(tokens=TokenKind.PROJECTED),
    "dense": Outputs(tokens=TokenKind.DENSE),
}


@cache
def on(dtype: str) -> Encoder:
    return load("demo:vit", Placement(dtype=dtype))


@cache
def plan() -> Blueprint:
    return blueprint("demo:vit", dtype="int8")


def tokens(seed: int, images: int = 3) -> Tensor:
    return torch.randn(images, 9, WIDTH, generator=torch.Generator().manual_seed(seed))


def in_int8(model: nn.Module, *given: Tensor) -> None:
    """The model's products in 8 bits, ranges as of the tensors given."""
    observed = observe(model, [partial(model, each) for each in given], images=sum(map(len, given)))
    quantized(model, observed, encoder_id="a:b", dtype=torch.float32)()


def near(ours: Tensor, theirs: Tensor, least: float) -> None:
    assert ours.shape == theirs.shape
    assert cosines(ours.flatten(1).numpy(), theirs.flatten(1).numpy()).min() >= least


def test_what_listens_to_a_layer_is_heard() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).requires_grad_(False)
    model[0].register_forward_hook(lambda layer, args, output: output * 2)
    expected = model(tokens(1))
    in_int8(model, tokens(2, images=100))
    assert isinstance(model[1], Int8Linear)
    near(model(tokens(1)), expected, 0.999)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_of_each_library_gives_nearly_the_same(name: str) -> None:
    model = made(BLOCKS[name])
    unify(model)
    x = tokens(1)
    expected = model(x) - x  # the part that is computed
    in_int8(model, tokens(2, images=100), tokens(3, images=50))
    block: Any = model[0]
    assert all(isinstance(part, Int8Linear) for part in (block.queries, block.keys_values, block.out, block.mlp_in))
    near(model(x) - x, expected, 0.999)
    with only_first(block, 2):
        near(model(x), (expected + x)[:, :2], 0.999)


def test_channels_of_very_different_ranges_are_evened_out() -> None:
    model = made(BLOCKS["timm"])
    unify(model)
    block: Any = model[0]
    with torch.no_grad():  # as in trained transformers: a few channels are a hundred times the others
        for norm, products in (
            (block.norm_1, (block.queries, block.keys_values)),
            (block.norm_2, (block.mlp_in,)),
        ):
            norm.weight[3] *= 100
            norm.bias[5] += 100
            for product in products:
                product.weight[:, 3] /= 100
                product.weight[:, 5] /= 100
    x = tokens(1)
    expected = model(x) - x
    in_int8(model, tokens(2, images=100), tokens(3, images=50))
    near(model(x) - x, expected, 0.998)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_outside_of_a_block_gives_nearly_the_same(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 48, bias=bias)).requires_grad_(False)
    expected = model(tokens(1))
    in_int8(model, tokens(1), tokens(2))
    assert isinstance(model[0], Int8Linear)
    near(model(tokens(1)), expected, 0.999)


def test_what_is_read_for_a_pooled_vector_alone_stays() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH)).requires_grad_(False)
    in_int8(model, torch.randn(4, WIDTH))
    assert type(model[0]) is nn.Linear


def test_steps_hold_zero_and_what_lies_beyond_the_range() -> None:
    steps = Steps.over(Seen(torch.tensor([-0.5, 0.1]), torch.tensor([0.0, 1.5]), rows=9))
    found = steps.of(torch.tensor([0.0, -1.0, 3.0, -9.0, 9.0]))  # twice as far as seen
    assert found.tolist() == [steps.zero, 0, 255, 0, 255]


def test_photographs_are_near_float32_and_the_spec_says_how_near() -> None:
    plain, coarse = on("float32"), on("int8")
    assert coarse.spec.dtype == "int8"
    assert coarse.spec.weights_bytes < plain.spec.weights_bytes / 2
    assert coarse.spec.architecture != plain.spec.architecture
    assert 0.99 <= (coarse.spec.int8_cosine or 0) <= 1
    assert plain.spec.int8_cosine is None
    given = np.stack([plain.preprocess(image, plain.spec.image_size) for image in photographs()])
    found, expected = (each.encode(given, OUTPUTS["tokens"]) for each in (coarse, plain))
    for ours, theirs in ((found.tokens, expected.tokens), (found.pooled, expected.pooled)):
        assert ours is not None
        assert theirs is not None
        assert cosines(ours.reshape(len(given), -1), theirs.reshape(len(given), -1)).min() >= 0.99


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_plan_holds_to_the_byte(name: str) -> None:
    encoder, drawn = on("int8"), plan()
    assert isinstance(encoder, TorchEncoder)
    assert drawn.spec.weights_bytes == encoder.spec.weights_bytes
    for size in (encoder.spec.image_size, ImageSize(96, 64)):
        cost = drawn.cost(size, OUTPUTS[name], device="cpu")
        for batch in (1, 2, 7):
            given = torch.zeros(batch, *size, 3, dtype=torch.uint8)
            with torch.inference_mode(), Trace() as trace:
                encoder.run(given, OUTPUTS[name])
            assert trace.peak == cost.requested(batch)
            assert trace.flops == cost.flops * batch


def test_texts_stay_what_they_are() -> None:
    native = resolve("cpu").dtype
    ids = on("int8").tokenize(["a red circle"]).ids
    assert np.array_equal(on("int8").encode_text(ids), on(native).encode_text(ids))


def test_a_model_of_convolutions_is_refused() -> None:
    with pytest.raises(Int8Refused, match="convolutions"):
        load("demo:resnet", Placement(dtype="int8"))
    with pytest.raises(Int8Refused, match="convolutions"):
        blueprint("demo:resnet", dtype="int8")


def test_a_card_is_refused() -> None:
    with pytest.raises(Int8Refused, match="CPUs"):
        plan().cost(ImageSize(64, 64), OUTPUTS["pooled"], device="cuda")


def test_openvino_is_refused() -> None:
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        resolve("cpu", "int8", "openvino")


def test_vectors_too_far_from_float32_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "LEAST_COSINE", 0.999999)
    with pytest.raises(Int8Refused, match=r"at cosine 0\.99.* Name a folder") as refused:
        load("demo:vit", Placement(dtype="int8"))
    assert 0.99 < float(str(refused.value.facts["cosine"])) < 1


def test_ranges_are_taken_from_the_users_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index, image in enumerate(photographs() * 3):
        image.resize((80, 80)).save(tmp_path / f"{index:02}.png")
        (tmp_path / f"{index:02}.txt").write_text("no picture")
    with caplog.at_level(logging.WARNING, "encoders.runtime.calibration"):
        own = load("demo:vit", Placement(dtype="int8", calibration=tmp_path))
    assert own.spec.architecture != on("int8").spec.architecture
    assert 0.99 <= (own.spec.int8_cosine or 0) <= 1
    assert "00.txt is not used" in caplog.text


def test_a_folder_of_too_few_pictures_is_refused(tmp_path: Path) -> None:
    photographs()[0].save(tmp_path / "one.png")
    with pytest.raises(Int8Refused, match="has 1 that can be read: it needs 8"):
        load("demo:vit", Placement(dtype="int8", calibration=tmp_path))


def test_a_calibration_is_a_folder_and_for_int8(tmp_path: Path) -> None:
    assert resolve("cpu", "int8", calibration=tmp_path).calibration == tmp_path
    with pytest.raises(ValueError, match="is for int8"):
        resolve("cpu", "bfloat16", calibration=tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        resolve("cpu", "int8", calibration=tmp_path / "none")


def test_drawn_pictures_are_the_same_in_every_process() -> None:
    first, again = list(calibration.pictures(None)), list(calibration.pictures(None))
    assert [image.tobytes() for image in first] == [image.tobytes() for image in again]
    assert len({image.tobytes() for image in first}) == calibration.PICTURES
    spreads = [np.asarray(image, np.float32).std() for image in first]
    assert min(spreads) > 20


def test_the_towers_of_a_trial_are_left_whole() -> None:
    encoder: Any = on("int8")
    assert any(isinstance(module, Block) for module in encoder.tower.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in encoder.tower.modules())
