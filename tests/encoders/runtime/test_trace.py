"""Traces of small encoders, of every family and of towers made to be awkward: measured equals predicted, to the byte.

The large ones, and what torch's allocator says, are in test_prediction.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from torch import Tensor

from encoders.adapters.fake import fake_spec
from encoders.adapters.registry import blueprint, load
from encoders.contract.cost import Cost
from encoders.contract.encoder import Blueprint, Placement
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Grid, ImageSize, Outputs, TokenKind
from encoders.runtime.blueprint import TorchBlueprint
from encoders.runtime.device_memory import HostMemory
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.tower import Features, Tower
from encoders.runtime.trace import Trace
from tests.support.hf_folders import FAMILIES, POOLERLESS, one_thread, write
from tests.support.photographs import photographs
from tests.support.suites import split

BATCHES = (1, 3)
"""1 has a value of its own in a curve; 3 lies between the batches that are traced."""

MANY = (100, 103)
"""Texts in bfloat16 on a CPU: a few attend in a kernel that takes less."""

DEMOS = ["demo:vit", "demo:resnet", "demo:convnext"]


@dataclass
class Pair:
    """An encoder with its weights, and its blueprint."""

    encoder: TorchEncoder
    blueprint: Blueprint

    @property
    def spec(self) -> EncoderSpec:
        return self.encoder.spec


class Small(Protocol):
    """Makes a small pair."""

    def __call__(self, name: str, dtype: str = "float32") -> Pair: ...


def pair_of(encoder_id: str, dtype: str) -> Pair:
    encoder = load(encoder_id, Placement(dtype=dtype))
    assert isinstance(encoder, TorchEncoder)
    return Pair(encoder, blueprint(encoder_id, dtype=dtype))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    """Encoders that cost next to nothing: the demo's, and a tiny one of each of transformers' families."""
    folder = tmp_path_factory.mktemp("hf")

    def make(name: str, dtype: str = "float32") -> Pair:
        if name in DEMOS:
            return pair_of(name, dtype)
        write(name, folder / name)
        return pair_of(f"hf:{folder / name}", dtype)

    with one_thread():
        yield make


def noise(batch: int, size: ImageSize) -> Any:
    return np.random.default_rng(batch).integers(0, 256, (batch, *size, 3), dtype=np.uint8)


def check(
    cost: Cost, forward: Callable[[int], list[Any]], *, batches: tuple[int, ...] = BATCHES, flops_by_image: bool = True
) -> None:
    """Predicted equals measured at every batch; at its end a forward leaves what it gives and nothing more.

    forward: of so many items; gives its outputs on the host. flops_by_image: whether no work is shared by a batch.
    """
    for batch in batches:
        with Trace() as trace:
            outputs = forward(batch)
        assert (batch, trace.peak) == (batch, cost.requested(batch))
        if flops_by_image or batch == 1:
            assert (batch, trace.flops) == (batch, cost.flops * batch)
        assert trace.now == cost.output_bytes * batch == sum(output.nbytes for output in outputs)


def check_images(pair: Pair, size: ImageSize, outputs: Outputs, *, flops_by_image: bool = True) -> None:
    def forward(batch: int) -> list[Any]:
        encoded = pair.encoder.encode(noise(batch, size), outputs)
        return [array for array in (encoded.tokens, encoded.pooled) if array is not None]

    check(pair.blueprint.cost(size, outputs, device="cpu"), forward, flops_by_image=flops_by_image)


def check_texts(pair: Pair) -> None:
    cost = pair.blueprint.text_cost(device="cpu")
    batches = BATCHES if pair.spec.dtype == "float32" else MANY
    ids = pair.encoder.tokenize(["a cat " * 200] * max(batches)).ids  # without padding, which is not computed

    def forward(batch: int) -> list[Any]:
        return [pair.encoder.encode_text(ids[:batch])]

    check(cost, forward, batches=batches)
    for some in (ids[:1], ids[:3], pair.encoder.tokenize(["a", *["a cat " * 20] * 30, "a cat"] * 3).ids):
        with Trace() as trace:
            pair.encoder.encode_text(some)
        assert trace.peak <= cost.requested(len(some))


def other_outputs(spec: EncoderSpec) -> list[Outputs]:
    """All that can be asked for besides pooled and final tokens together."""
    given = [Outputs(pooled=True), Outputs(tokens=TokenKind.HIDDEN)]
    given += [Outputs(pooled=pooled, tokens=TokenKind.HIDDEN, layer=1) for pooled in (True, False)]
    if spec.projects:
        given += [Outputs(tokens=TokenKind.PROJECTED), Outputs(tokens=TokenKind.PROJECTED, layer=spec.layers - 1)]
    if spec.dense:
        given += [Outputs(pooled=pooled, tokens=TokenKind.DENSE) for pooled in (True, False)]
    return given


SAME_SHAPE = [family for family in FAMILIES if family not in POOLERLESS]


QUICK = [("demo:vit", "bfloat16"), ("demo:resnet", "bfloat16"), ("demo:convnext", "bfloat16")]
QUICK += [(name, "float32") for name in ("clip", "siglip", "siglip2", "dinov2", "dinov2-registers", "dinov3", "vit")]
QUICK += [
    (name, "float32") for name in ("resnet", "convnextv2", "dinov3-convnext", "llava", "llava-layers", "vipllava")
]
"""Every family; variants of them are slow."""


@pytest.mark.parametrize(
    ("name", "dtype"),
    split(
        [*((name, "bfloat16") for name in DEMOS), *((name, "float32") for name in [*DEMOS, *SAME_SHAPE])], quick=QUICK
    ),
)
def test_every_family_takes_what_was_predicted(small: Small, name: str, dtype: str) -> None:
    pair, both = small(name, dtype), Outputs(pooled=True, tokens=TokenKind.HIDDEN)
    patch = pair.spec.patch_size
    native, other = pair.spec.size(), ImageSize(patch.height * 5, patch.width * 6)
    for size, outputs in [(native, both), (other, both), *((native, outputs) for outputs in other_outputs(pair.spec))]:
        if name == "dinov3":  # from the first forward on, transformers keeps where the patches of a grid lie
            pair.blueprint.cost(size, outputs, device="cpu")
            pair.encoder.encode(noise(1, size), outputs)
        if name in ("llava-layers", "vipllava") and outputs.layer and outputs.tokens is TokenKind.PROJECTED:
            continue  # their projectors read several layers at once
        if size == native or pair.spec.resolutions.problem(size) is None:
            # Swin V2 works its position biases out once a batch
            check_images(pair, size, outputs, flops_by_image=name != "swinv2")
    if pair.spec.has_text:
        check_texts(pair)


def test_the_hosts_reading_is_the_prediction(small: Small) -> None:
    pair, outputs = small("demo:vit"), Outputs(pooled=True)
    size = pair.spec.size()
    with HostMemory().reading() as reading:
        pair.encoder.encode(noise(3, size), outputs)
    assert reading.peak == pair.blueprint.cost(size, outputs, device="cpu").requested(3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", DEMOS)
def test_metering_changes_no_bit(small: Small, name: str, dtype: str) -> None:
    """Composite operations run in their parts under a Trace; the kernels are the same."""
    encoder = small(name, dtype).encoder
    pixels = np.stack([encoder.preprocess(photo, encoder.spec.size()) for photo in photographs()])
    for kind in (TokenKind.HIDDEN, TokenKind.PROJECTED, TokenKind.DENSE):
        outputs = Outputs(pooled=True, tokens=kind)
        plain = encoder.encode(pixels, outputs)
        with HostMemory().reading():
            metered = encoder.encode(pixels, outputs)
        np.testing.assert_array_equal(plain.tokens, metered.tokens)
        np.testing.assert_array_equal(plain.pooled, metered.pooled)


# Towers made to be awkward.


class AnotherWayAlone(Tower):
    """Takes eight times as much for one image, as a kernel may that is chosen by shape."""

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        copies = 8 if len(pixels) == 1 else 1
        pooled = pixels.repeat(copies, 1, 1, 1).mean(dim=(2, 3))[: len(pixels)]
        return Features(Grid(4, 4), pooled=pooled)


class OneByOne(Tower):
    """Runs as many operations as there are images."""

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        return Features(Grid(4, 4), pooled=torch.stack([image.square().mean(dim=(1, 2)) for image in pixels]))


class GivesViews(Tower):
    """Answers with a corner of something large."""

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        rows = pixels.flatten(2).transpose(1, 2)
        return Features(Grid(4, 4), tokens=rows[:, :16], pooled=(rows * 2)[:, 0])


def toy(tower: type[Tower]) -> Pair:
    spec = fake_spec(prefix_tokens=0, scoring=None, context_length=None)
    return Pair(TorchEncoder(spec, tower(), placement=Placement()), TorchBlueprint(spec, tower(), dtype="float32"))


@pytest.mark.parametrize("tower", [AnotherWayAlone, OneByOne, GivesViews])
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_a_tower_that_does_as_it_likes_is_predicted(tower: type[Tower], batch: int) -> None:
    pair, outputs = toy(tower), Outputs(pooled=True, tokens=TokenKind.HIDDEN)
    size = pair.spec.size()
    cost = pair.blueprint.cost(size, outputs, device="cpu")
    with Trace() as trace:
        encoded = pair.encoder.encode(noise(batch, size), outputs)
    assert trace.peak == cost.requested(batch)
    assert len(encoded) == batch
    assert trace.now == cost.output_bytes * batch


def test_one_image_alone_has_its_own_prediction() -> None:
    pair, outputs = toy(AnotherWayAlone), Outputs(pooled=True)
    cost = pair.blueprint.cost(pair.spec.size(), outputs, device="cpu")
    assert cost.requested(1) > cost.requested(2)


def test_outputs_are_all_that_is_left_of_a_forward() -> None:
    """A view would keep the large tensor that it is a corner of."""
    pair, size = toy(GivesViews), ImageSize(32, 32)
    with Trace() as trace:
        features = pair.encoder.run(torch.from_numpy(noise(2, size)), Outputs(pooled=True, tokens=TokenKind.HIDDEN))
    assert features.tokens is not None
    assert features.pooled is not None
    assert trace.now == features.tokens.nbytes + features.pooled.nbytes == 4 * 2 * 3 * (16 + 1)
    del features
    assert trace.now == 0


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_interpolation_is_one_operation_that_takes_what_it_gives(mode: str, dtype: torch.dtype, device: str) -> None:
    x = torch.empty(2, 3, 30, 30, dtype=dtype, device="meta")
    with torch.inference_mode(), Trace(runs_on=device) as planned:
        out = torch.nn.functional.interpolate(x, (20, 28), mode=mode)
    with torch.inference_mode(), Trace() as measured:
        torch.nn.functional.interpolate(torch.zeros_like(x, device="cpu"), (20, 28), mode=mode)
    assert planned.peak == out.nbytes
    assert measured.peak == x.nbytes + out.nbytes
