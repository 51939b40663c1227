"""OpenVINO in PyTorch's place: the same answers, and PyTorch's own wherever OpenVINO is not asked or cannot."""

import logging
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from encoders import blueprint, load
from encoders.contract.encoder import Encoder, Placement
from encoders.contract.spec import EncoderSpec, Preprocessing, Resolutions
from encoders.contract.values import Encoded, Floats, Grid, ImageSize, Outputs, Pixels, TokenKind
from encoders.runtime.blueprint import in_openvino
from encoders.runtime.device import resolve
from encoders.runtime.device_memory import HostMemory
from encoders.runtime.openvino import accelerated
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.tower import Features, Tower, to_patches
from tests.support.closeness import cosines
from tests.support.photographs import photographs
from tests.support.suites import split

ENCODERS = ["demo:vit", "demo:resnet", "demo:convnext", "timm:vit_tiny_patch16_224@random"]
POOLED, TOKENS = Outputs(pooled=True), Outputs(tokens=TokenKind.HIDDEN)
BOTH = Outputs(tokens=TokenKind.HIDDEN, pooled=True)
LAYER, DENSE = Outputs(tokens=TokenKind.HIDDEN, layer=1, pooled=True), Outputs(tokens=TokenKind.DENSE)


def on(runtime: str, encoder_id: str, dtype: str = "float32") -> Encoder:
    return load(encoder_id, Placement(dtype=dtype, runtime=runtime))


def pixels(encoder: Encoder, size: ImageSize | None = None) -> Pixels:
    """Four photographs."""
    return np.stack([encoder.preprocess(image, size or encoder.spec.image_size) for image in photographs()])


def values(encoded: Encoded) -> list[Floats]:
    return [rows for rows in (encoded.tokens, encoded.pooled) if rows is not None]


@pytest.mark.parametrize(
    ("encoder_id", "dtype"),
    split(
        product(ENCODERS, ["float32", "bfloat16"]),
        quick=[("demo:vit", "bfloat16"), ("demo:resnet", "float32"), ("demo:convnext", "bfloat16")],
    ),
)
def test_vectors_and_tokens_of_photographs_are_those_of_pytorch_in_float32(encoder_id: str, dtype: str) -> None:
    reference, ours = on("torch", encoder_id), on("openvino", encoder_id, dtype)
    assert ours.spec.runtime == "openvino"
    for outputs in (POOLED, TOKENS, BOTH):
        for batch in (1, 4):
            given = pixels(reference)[:batch]
            found, expected = ours.encode(given, outputs), reference.encode(given, outputs)
            assert (found.grid, found.prefix_tokens) == (expected.grid, expected.prefix_tokens)
            for a, b in zip(values(found), values(expected), strict=True):
                assert a.shape == b.shape
                assert cosines(a, b).min() >= 0.999


def test_an_answer_is_not_touched_by_the_next_forward() -> None:
    encoder = on("openvino", "demo:vit")
    given = pixels(encoder)
    first = encoder.encode(given[:2], BOTH)
    kept = [rows.copy() for rows in values(first)]
    encoder.encode(given[2:], BOTH)
    for rows, as_they_were in zip(values(first), kept, strict=True):
        np.testing.assert_array_equal(rows, as_they_were)


@pytest.mark.parametrize(("side", "outputs"), [(64, BOTH), (96, LAYER), (96, DENSE)])
def test_other_sizes_and_outputs_are_pytorchs_to_the_bit(side: int, outputs: Outputs) -> None:
    ours, reference = on("openvino", "demo:vit", "bfloat16"), on("torch", "demo:vit", "bfloat16")
    given = pixels(ours, ImageSize(side, side))
    for a, b in zip(values(ours.encode(given, outputs)), values(reference.encode(given, outputs)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_forward_is_over_when_it_has_begun() -> None:
    encoder = on("openvino", "demo:vit")
    forward = encoder.begin(pixels(encoder), POOLED)
    assert forward.is_done
    np.testing.assert_array_equal(forward.wait().pooled, encoder.encode(pixels(encoder), POOLED).pooled)


def test_texts_are_pytorchs_to_the_bit() -> None:
    ours, reference = on("openvino", "demo:vit"), on("torch", "demo:vit")
    ids = ours.tokenize(["a red circle", "a tree"]).ids
    np.testing.assert_array_equal(ours.encode_text(ids), reference.encode_text(ids))


def test_the_spec_says_what_runs_it_and_counts_its_copy_of_the_weights() -> None:
    plain, ours = on("torch", "demo:vit", "bfloat16").spec, on("openvino", "demo:vit", "bfloat16").spec
    assert (plain.runtime, ours.runtime) == ("torch", "openvino")
    assert plain.weights_bytes < ours.weights_bytes <= 2 * plain.weights_bytes
    assert plain.revision == ours.revision


def test_a_plan_has_the_copy_and_twice_the_room_of_what_the_graph_runs() -> None:
    plain, ours = blueprint("demo:vit", dtype="bfloat16"), in_openvino(blueprint("demo:vit", dtype="bfloat16"))
    native, wide = plain.spec.image_size, ImageSize(96, 128)
    assert ours.spec.weights_bytes == on("openvino", "demo:vit", "bfloat16").spec.weights_bytes
    for outputs in (POOLED, BOTH):
        for batch in (1, 2, 9):
            taken = plain.cost(native, outputs, device="cpu").requested(batch)
            assert ours.cost(native, outputs, device="cpu").requested(batch) == 2 * taken
    for size, outputs in ((wide, POOLED), (native, LAYER), (native, DENSE)):
        assert ours.cost(size, outputs, device="cpu") == plain.cost(size, outputs, device="cpu")
    assert ours.text_cost(device="cpu") == plain.text_cost(device="cpu")


def test_torch_does_not_see_its_memory_so_nothing_is_measured() -> None:
    encoder, memory = on("openvino", "demo:vit"), HostMemory()
    given = pixels(encoder)
    with memory.reading() as ours:
        encoder.encode(given, POOLED)
    with memory.reading() as torchs:
        encoder.encode(given, DENSE)
    assert ours.peak is None
    assert torchs.peak is not None


class Grey(Tower):
    """The mean of each pixel's channels; `counts` makes the batch size a constant of its trace."""

    def __init__(self, *, counts: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.counts = counts

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        grey = pixels.mean(dim=1, keepdim=True) * self.scale
        batch = int(pixels.shape[0]) if self.counts else pixels.shape[0]
        tokens = to_patches(grey + torch.zeros(batch, 1, *pixels.shape[2:]))
        return Features(Grid(8, 8), tokens=tokens, pooled=tokens[:, :, 0])


def grey(*, counts: bool) -> TorchEncoder:
    side = ImageSize(8, 8)
    spec = EncoderSpec(
        id="grey",
        family="grey",
        image_size=side,
        patch_size=ImageSize(1, 1),
        prefix_tokens=0,
        hidden_size=1,
        embed_dim=None,
        pooled_size=64,
        pooling="none",
        layers=1,
        resolutions=Resolutions(side, side, side, only=side),
        preprocessing=Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3),
    )
    return TorchEncoder(spec, Grey(counts=counts), placement=Placement())


def test_a_tower_whose_trace_holds_for_one_batch_size_alone_stays_pytorchs(caplog: pytest.LogCaptureFixture) -> None:
    encoder = grey(counts=True)
    with caplog.at_level(logging.WARNING):
        assert accelerated(encoder, lanes=1) is encoder
    assert "grey is run by PyTorch: OpenVINO does not take it" in caplog.text
    assert accelerated(grey(counts=False), lanes=1).spec.runtime == "openvino"


def test_an_encoder_that_has_no_torch_runs_as_it_does_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encoder = load("fake:any", Placement(runtime="openvino"))
    assert encoder.spec.runtime == "torch"
    assert "fake:any does not run on openvino" in caplog.text


def test_it_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("cpu", "float32", "openvino") == Placement("cpu", "float32", "openvino")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="is for CPUs"):
        resolve("cuda", "float32", "openvino")
    monkeypatch.setattr("encoders.runtime.device.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'visiontower\[openvino\]'"):
        resolve("cpu", "float32", "openvino")
