"""The spec says the shape of every answer: of final tokens, layers, projected, dense, pooled, at any size."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.adapters.registry import load
from encoders.contract.encoder import Encoder
from encoders.contract.errors import OutputNotOffered
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Encoded, Grid, ImageSize, Outputs, TokenKind
from tests.support.hf_folders import FAMILIES, one_thread, write

NAMES = [
    "demo:vit",
    "demo:resnet",
    "demo:convnext",
    "timm:resnet18@random",
    "timm:convnextv2_atto@random",
    "timm:swin_tiny_patch4_window7_224@random",
    "timm:vit_tiny_patch16_224@random",
    "timm:mobilenetv3_small_100@random",
    "fake:any",
]


@pytest.fixture(scope="module")
def encoder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    """An encoder of ours by its id, or a tiny one of a family of transformers'."""
    folder: Path = tmp_path_factory.mktemp("hf")

    def made(known: str) -> Encoder:
        if known not in FAMILIES:
            return load(known)
        write(known, folder / known)
        return load(f"hf:{folder / known}")

    return made


def offered(spec: EncoderSpec) -> list[Outputs]:
    """All tokens that may be asked for, and pooled vectors by themselves, beside tokens and beside a layer."""
    found = [Outputs(pooled=True)]
    for kind, layer in product(TokenKind, [None, *range(spec.layers)]):
        if kind is TokenKind.DENSE and layer is not None:
            continue
        try:
            found.append(spec.outputs(tokens=kind, layer=layer, pooled=layer in (None, 0)))
        except OutputNotOffered:
            continue
    return found


def asked(spec: EncoderSpec) -> Iterator[tuple[ImageSize, Outputs]]:
    """Everything at its own size; where it takes another, final tokens and a layer at one of other proportions."""
    (rows, cols), patch = spec.grid(), spec.patch_size
    other = ImageSize((rows + 1) * patch.height, max(1, cols - 1) * patch.width)
    for outputs in offered(spec):
        yield spec.image_size, outputs
        if spec.resolutions.problem(other) is None and outputs.layer in (None, 0):
            yield other, outputs


@pytest.mark.parametrize("known", [*NAMES, *FAMILIES])
def test_every_answer_has_the_shape_that_the_spec_says(encoder_of: Callable[[str], Encoder], known: str) -> None:
    with one_thread():
        encoder = encoder_of(known)
        spec = encoder.spec
        for size, outputs in asked(spec):
            pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
            try:
                encoded = encoder.encode(pixels, outputs)
            except OutputNotOffered:  # a projector that reads several layers at once has none for one
                assert known in ("llava-layers", "vipllava")
                continue
            assert spec.mismatch(encoded, images=2, size=size, outputs=outputs) is None, (size, outputs)
            count = spec.token_count(size, outputs)
            assert (count is None) == (outputs.tokens is None or (outputs.layer is not None and spec.layer_sizes != ()))
            if encoded.tokens is not None:
                assert encoded.tokens.shape[2] == spec.tokens_width(outputs)
                assert count in (None, encoded.tokens.shape[1])
            if encoded.pooled is not None:
                assert encoded.pooled.shape == (2, spec.pooled_size)


BOTH = Outputs(tokens=TokenKind.HIDDEN, pooled=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pooled": np.zeros((2, 7), np.float32)}, "pooled: 2x7, must be 2x6"),
        ({"pooled": np.zeros((1, 6), np.float32)}, "pooled: 1x6, must be 2x6"),
        ({"pooled": None}, "pooled: none, must be 2x6"),
        ({"tokens": np.zeros((2, 17, 6), np.float32)}, "tokens: 2x17x6, must be 2x17x12"),
        ({"tokens": np.zeros((2, 16, 12), np.float32)}, "tokens: 2x16x12, must be 2x17x12"),
        ({"tokens": np.zeros((2, 17), np.float32)}, "tokens: 2x17, must be 2x17x12"),
        ({"tokens": None}, "tokens: none, must be 2x17x12"),
        ({"prefix_tokens": 0}, "prefix tokens: 0, must be 1"),
        ({"grid": Grid(2, 8)}, "grid: 2x8, must be 4x4"),
    ],
)
def test_an_answer_of_another_shape_is_named(change: dict[str, object], said: str) -> None:
    encoder = FakeEncoder(after=lambda encoded: replace(encoded, **change))  # type: ignore[arg-type]
    size = encoder.spec.size()
    encoded = encoder.encode(np.zeros((2, *size, 3), np.uint8), BOTH)
    assert encoder.spec.mismatch(encoded, images=2, size=size, outputs=BOTH) == said


def test_a_stage_has_the_grid_that_its_forward_says_and_the_tokens_of_that_grid() -> None:
    spec = fake_spec(prefix_tokens=1, layer_sizes=(3, 6, 9, 12))
    outputs, size = spec.outputs(tokens=TokenKind.HIDDEN, layer=1), spec.size()
    right = Encoded(Grid(8, 8), tokens=np.zeros((1, 64, 6), np.float32))
    assert spec.token_count(size, outputs) is None
    assert spec.mismatch(right, images=1, size=size, outputs=outputs) is None
    wrong = replace(right, grid=Grid(4, 4))
    assert spec.mismatch(wrong, images=1, size=size, outputs=outputs) == "tokens: 1x64x6, must be 1x16x6"


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 20}, {"pooled_size": 9}, {"projected_size": 5}, {"prefix_tokens": 3}]
)
def test_a_fake_has_the_shape_of_its_spec(changes: dict[str, object]) -> None:
    encoder = FakeEncoder(fake_spec("fake:any", **changes))
    size = encoder.spec.size()
    for outputs in offered(encoder.spec):
        encoded = encoder.encode(np.zeros((2, *size, 3), np.uint8), outputs)
        assert encoder.spec.mismatch(encoded, images=2, size=size, outputs=outputs) is None
