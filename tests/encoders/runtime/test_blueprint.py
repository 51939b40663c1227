"""A blueprint has the encoder's spec, a cost for everything the encoder offers, and no weights."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from encoders.adapters.fake import FakeBlueprint, fake_spec
from encoders.adapters.registry import blueprint, load
from encoders.contract.encoder import Blueprint
from encoders.contract.errors import OutputNotOffered
from encoders.contract.spec import EncoderSpec, Scoring
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.runtime.blueprint import TorchBlueprint
from tests.support.hf_folders import FAMILIES, POOLERLESS, one_thread, write
from tests.support.suites import split

NAMES = [
    "demo:vit",
    "demo:resnet",
    "demo:convnext",
    "openclip:RN50@random",
    "timm:resnet18@random",
    "timm:convnextv2_atto@random",
    "timm:swin_tiny_patch4_window7_224@random",
    "timm:vit_tiny_patch16_224@random",
    "timm:eva02_tiny_patch14_224@random",
    "timm:mobilenetv3_small_100@random",
]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A family of transformers' as an id of a folder of it; other ids as they are."""
    folder = tmp_path_factory.mktemp("hf")

    def name(known: str) -> str:
        if known not in FAMILIES:
            return known
        write(known, folder / known)
        return f"hf:{folder / known}"

    return name


def plain(spec: EncoderSpec) -> EncoderSpec:
    """Without what only weights tell."""
    scoring = spec.scoring and Scoring(spec.scoring.activation, logit_scale=1.0)
    if spec.id.rpartition("/")[2] in POOLERLESS:
        spec = replace(spec, parameters=0, weights_bytes=0)
    return replace(spec, revision="", architecture="", device="", scoring=scoring)


@pytest.mark.parametrize("known", [*NAMES, *FAMILIES])
def test_it_says_of_itself_what_the_encoder_does(named: Callable[[str], str], known: str) -> None:
    with one_thread():
        encoder_id = named(known)
        drawn, real = blueprint(encoder_id), load(encoder_id)
    assert plain(drawn.spec) == plain(real.spec)
    assert drawn.spec.revision == ""
    if drawn.spec.scoring is not None and known != "blip-retrieval":  # whose scale is no weight
        assert math.isnan(drawn.spec.scoring.logit_scale)


def offered(spec: EncoderSpec) -> list[Outputs]:
    kinds = [TokenKind.HIDDEN, *[TokenKind.PROJECTED] * spec.projects, *[TokenKind.DENSE] * spec.dense]
    return [
        Outputs(pooled=True),
        Outputs(tokens=TokenKind.HIDDEN, layer=0),
        *(Outputs(pooled=True, tokens=kind) for kind in kinds),
    ]


QUICK = ["demo:resnet", "timm:swin_tiny_patch4_window7_224@random"]
QUICK += ["clip", "convnextv2", "dinov2", "dinov3", "llava", "resnet", "siglip2", "vipllava", "vit"]
"""One of each kind, on a card; what a CPU takes, test_trace.py measures."""


@pytest.mark.parametrize(
    ("known", "device"),
    split(
        product([*NAMES, *FAMILIES], ["cpu", "cuda"]),
        quick=[("demo:vit", "cpu"), *((known, "cuda") for known in QUICK)],
    ),
)
def test_whatever_it_offers_has_a_cost(named: Callable[[str], str], known: str, device: str) -> None:
    drawn = blueprint(named(known), dtype="bfloat16")
    spec = drawn.spec
    other = ImageSize(*(side + step for side, step in zip(spec.image_size, spec.patch_size, strict=True)))
    asked = [(spec.image_size, outputs) for outputs in offered(spec)]
    if device == "cpu":  # test_trace.py measures there
        asked = [asked[0], asked[-1]]
    elif spec.resolutions.problem(other) is None:
        asked.append((other, Outputs(pooled=True, tokens=TokenKind.HIDDEN)))
    for size, outputs in asked:
        cost = drawn.cost(size, outputs, device=device)
        assert cost.requested(3) > 3 * (cost.input_bytes + cost.output_bytes) > 0
        assert cost.flops > 0
    if spec.has_text:
        assert drawn.text_cost(device=device).requested(2) > 0


@pytest.mark.parametrize("known", NAMES)
def test_it_holds_nothing(known: str) -> None:
    drawn = blueprint(known)
    assert isinstance(drawn, TorchBlueprint)
    assert all(tensor.is_meta for tensor in drawn.tower.state_dict().values())


def test_weights_that_are_not_there_are_not_missed(tmp_path: Path) -> None:
    write("clip", tmp_path / "clip")
    for file in (tmp_path / "clip").glob("*.safetensors"):
        file.unlink()
    assert blueprint(f"hf:{tmp_path / 'clip'}").spec.weights_bytes > 0


@pytest.mark.parametrize(
    "draw",
    [lambda: blueprint("timm:resnet18@random"), lambda: FakeBlueprint(fake_spec(scoring=None))],
    ids=["torch", "fake"],
)
def test_without_a_text_half_texts_have_no_cost(draw: Callable[[], Blueprint]) -> None:
    with pytest.raises(OutputNotOffered):
        draw().text_cost(device="cpu")


def test_an_encoder_has_no_costs_and_a_blueprint_encodes_nothing() -> None:
    runs, plans = ("encode", "begin", "encode_text", "preprocess", "tokenize"), ("cost", "text_cost")
    for encoder_id in ("demo:vit", "fake:any"):
        encoder, drawn = load(encoder_id), blueprint(encoder_id)
        assert [hasattr(encoder, name) for name in (*runs, *plans)] == [True] * len(runs) + [False] * len(plans)
        assert [hasattr(drawn, name) for name in (*runs, *plans)] == [False] * len(runs) + [True] * len(plans)
