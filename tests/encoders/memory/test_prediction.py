"""Predicted against real: the same forward over tensors that hold nothing, over real ones, and by torch's own count.

To the byte against the tensors' own sizes; within 1 % of what the CPU allocator handed out, but where oneDNN reorders a
convolution's weights into a buffer of its own, which no tensor's size tells.
"""

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from encoders.adapters.openclip.clip import clip_parts
from encoders.adapters.registry import blueprint, load
from encoders.contract.encoder import Blueprint, Placement
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.runtime.blueprint import TorchBlueprint
from encoders.runtime.device_memory import HostMemory
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.trace import Trace
from tests.support.suites import split

BOTH = Outputs(pooled=True, tokens=TokenKind.HIDDEN)
SIZES = {
    "openclip:RN50@random": (224, 336, 448),
    "openclip:ViT-B-32@random": (224, 320, 448),
    "openclip:convnext_base_w@random": (224, 256, 448),
    "openclip:ViT-B-16-SigLIP@random": (224, 256, 320),
    "timm:vit_small_patch14_dinov2@random": (224, 336, 518),
    "timm:vgg16@random": (224, 256, 320),
    "demo:vit": (96, 192, 224),
    "demo:resnet": (96, 192, 224),
    "demo:convnext": (96, 192, 224),
}
REORDERED = {
    ("openclip:RN50@random", 224, 1): "the 3 x 3 convolutions of 512 channels",
    ("openclip:ViT-B-32@random", 224, 1): "the patch embedding, 9.4 MB",
    ("openclip:ViT-B-32@random", 224, 3): "the patch embedding, 9.4 MB",
    ("openclip:ViT-B-32@random", 320, 1): "the patch embedding, 9.4 MB",
    ("openclip:ViT-B-32@random", 448, 1): "the patch embedding, 9.4 MB",
    ("openclip:convnext_base_w@random", 224, 1): "the 2 x 2 convolutions between stages",
    **{
        ("timm:vgg16@random", side, batch): "the 7 x 7 convolution of 512 to 4096 channels, 411 MB"
        for side in SIZES["timm:vgg16@random"]
        for batch in (1, 3)
    },
}
"""Where a library's own buffer dominates. (Demo encoders' forwards are too small to tell.)"""


SMALL = ["openclip:RN50@random", "openclip:ViT-B-32@random", "openclip:convnext_base_w@random"]
SMALL += ["timm:vit_small_patch14_dinov2@random", "demo:vit", "demo:resnet", "demo:convnext"]


@pytest.fixture(scope="module", params=split(SIZES, quick=SMALL))
def pair(request: pytest.FixtureRequest) -> tuple[Blueprint, TorchEncoder]:
    """A blueprint, and the encoder that was loaded."""
    name: str = request.param
    if "SigLIP" in name:  # its tokenizer is on the hub alone
        model = open_clip.create_model("ViT-B-16-SigLIP")
        config = open_clip.get_model_preprocess_cfg(model)
        parts = clip_parts(model, config, tokenizer=None, encoder_id=name)
        real = TorchEncoder(parts.spec, parts.tower, parts.text, placement=Placement())
    else:
        loaded = load(name)
        assert isinstance(loaded, TorchEncoder)
        real = loaded
    return blueprint(name), real


def traced(encoder: TorchEncoder, size: ImageSize, outputs: Outputs, batch: int) -> Trace:
    """A real forward, counted."""
    pixels = torch.zeros(batch, *size, 3, dtype=torch.uint8)
    trace = Trace()
    with torch.inference_mode(), trace:
        encoder.run(pixels, outputs)
    return trace


def profiled(encoder: TorchEncoder, size: ImageSize, outputs: Outputs, batch: int) -> tuple[Trace, int]:
    """A real forward, counted, and the most bytes that torch's CPU allocator had given out during it."""
    # acc_events: before torch 2.15 a profile without warns that it keeps one cycle, which is all there is here.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        trace = traced(encoder, size, outputs, batch)
    found: Any = profiler.profiler
    events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
    steps = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    given_to_pixels = batch * size.height * size.width * 3
    return trace, int(np.cumsum(steps).max()) - given_to_pixels


@pytest.mark.parametrize(("place", "batch"), split([(0, 3), (2, 1)], quick=[(0, 3)]))
def test_a_forward_takes_what_was_predicted(pair: tuple[Blueprint, TorchEncoder], place: int, batch: int) -> None:
    drawn, real = pair
    side = SIZES[real.spec.id][place]
    size = ImageSize(side, side)
    cost = drawn.cost(size, BOTH, device="cpu")
    trace, peak = profiled(real, size, BOTH, batch)
    assert trace.peak == cost.requested(batch)
    assert trace.flops == batch * cost.flops
    assert peak >= trace.peak
    if (real.spec.id, side, batch) not in REORDERED and not real.spec.id.startswith("demo:"):
        assert peak <= 1.01 * trace.peak


def test_other_outputs_take_what_was_predicted(pair: tuple[Blueprint, TorchEncoder]) -> None:
    """A layer, projected and dense tokens where there are some, at the smallest of the sizes."""
    drawn, real = pair
    spec = real.spec
    size = ImageSize(*(SIZES[spec.id][0],) * 2)
    kinds = [TokenKind.PROJECTED] * spec.projects + [TokenKind.DENSE] * spec.dense
    for outputs in (
        Outputs(pooled=True),
        Outputs(tokens=TokenKind.HIDDEN, layer=0),
        *(Outputs(tokens=k) for k in kinds),
    ):
        predicted = drawn.cost(size, outputs, device="cpu").requested(2)
        assert traced(real, size, outputs, 2).peak == predicted, outputs


def test_texts_take_what_was_predicted(pair: tuple[Blueprint, TorchEncoder]) -> None:
    drawn, real = pair
    if not real.spec.has_text:
        pytest.skip("no text half")
    ids = torch.from_numpy(real.tokenize(["a cat", "a dog", "a fish"]).ids)
    with torch.inference_mode(), Trace() as trace:
        real.run_text(ids)
    assert trace.peak == drawn.text_cost(device="cpu").requested(3)


@pytest.mark.parametrize("name", ["demo:vit", "demo:resnet", "demo:convnext"])
def test_half_the_precision_is_predicted_too(name: str) -> None:
    real = load(name, Placement(dtype="bfloat16"))
    assert isinstance(real, TorchEncoder)
    cost = blueprint(name, dtype="bfloat16").cost(real.spec.image_size, BOTH, device="cpu")
    assert traced(real, real.spec.image_size, BOTH, 5).peak == cost.requested(5)


@pytest.mark.parametrize("name", ["demo:vit", "demo:resnet", "demo:convnext"])
def test_measuring_changes_no_number(name: str) -> None:
    encoder = load(name)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    plain = encoder.encode(pixels, BOTH)
    with HostMemory().reading() as reading:
        measured = encoder.encode(pixels, BOTH)
    assert measured.tokens is not None
    assert measured.pooled is not None
    np.testing.assert_array_equal(measured.tokens, plain.tokens)
    np.testing.assert_array_equal(measured.pooled, plain.pooled)
    assert reading.peak == blueprint(name).cost(encoder.spec.image_size, BOTH, device="cpu").requested(3)


def test_a_blueprint_has_no_weights() -> None:
    """bigG: 10 GB of weights, planned where they would not fit."""
    drawn = blueprint("openclip:ViT-bigG-14@laion2b_s39b_b160k", dtype="bfloat16")
    assert isinstance(drawn, TorchBlueprint)
    assert drawn.spec.weights_bytes > 5e9
    assert all(parameter.is_meta for parameter in drawn.tower.parameters())
    assert drawn.cost(drawn.spec.image_size, BOTH, device="cuda").requested(1) > 5e6
