"""What forwards of transformers' families take, to the byte, against what their blueprints predict."""

from collections.abc import Iterator

import pytest
import torch

from encoders.adapters.registry import blueprint
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.trace import Trace
from tests.support.hf_folders import FAMILIES, TEXTS, Twins, one_thread
from tests.support.suites import split

QUICK = ["align", "beit", "chinese-clip", "mlcd", "swin", "vit-mae"]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with one_thread():
        yield Twins(tmp_path_factory.mktemp("hf"))


def offered(spec: EncoderSpec) -> list[Outputs]:
    kinds = [TokenKind.HIDDEN, *[TokenKind.PROJECTED] * spec.projects, *[TokenKind.DENSE] * spec.dense]
    return [
        Outputs(pooled=True),
        *(Outputs(pooled=True, tokens=kind) for kind in kinds),
        Outputs(tokens=TokenKind.HIDDEN, layer=0),
        Outputs(tokens=TokenKind.HIDDEN, layer=spec.layers - 1, pooled=True),
    ]


def taken(encoder: TorchEncoder, size: ImageSize, outputs: Outputs) -> int:
    pixels = torch.zeros(3, *size, 3, dtype=torch.uint8)
    with torch.inference_mode(), Trace() as trace:
        encoder.run(pixels, outputs)
    peak: int = trace.peak
    return peak


@pytest.mark.parametrize("family", split((name for name in FAMILIES if "llava" not in name), quick=QUICK))
def test_a_forward_takes_what_was_predicted(twins: Twins, family: str) -> None:
    encoder, _ = twins(family)
    drawn, spec = blueprint(encoder.spec.id), encoder.spec
    for size in (spec.image_size, ImageSize(40, 64)):
        if size == spec.image_size or spec.resolutions.problem(size) is None:
            taken(encoder, size, Outputs(pooled=True))  # transformers keeps DINOv3's coordinates of a size from now on
            for outputs in offered(spec):
                predicted: int = drawn.cost(size, outputs, device="cpu").requested(3)
                assert taken(encoder, size, outputs) == predicted, (size, outputs)
    if spec.has_text:
        ids = torch.from_numpy(encoder.tokenize(TEXTS).ids)
        with torch.inference_mode(), Trace() as trace:
            encoder.run_text(ids)
        assert trace.peak == drawn.text_cost(device="cpu").requested(len(TEXTS))


def test_a_second_forward_of_a_size_takes_what_the_first_took(twins: Twins) -> None:
    """BEiT's index of positions would be cached, and then no longer counted."""
    encoder, _ = twins("beit")
    size, outputs = ImageSize(56, 40), Outputs(pooled=True)
    assert taken(encoder, size, outputs) == taken(encoder, size, outputs)
