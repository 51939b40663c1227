"""What forwards of transformers' families take does not depend on what ran before.

That it is what blueprints predict: tests/encoders/runtime/test_trace.py.
"""

from collections.abc import Iterator

import pytest
import torch

from encoders.contract.values import ImageSize, Outputs
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.trace import Trace
from tests.support.hf_folders import Twins, one_thread


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with one_thread():
        yield Twins(tmp_path_factory.mktemp("hf"))


def taken(encoder: TorchEncoder, size: ImageSize, outputs: Outputs) -> int:
    pixels = torch.zeros(3, *size, 3, dtype=torch.uint8)
    with torch.inference_mode(), Trace() as trace:
        encoder.run(pixels, outputs)
    peak: int = trace.peak
    return peak


def test_a_second_forward_of_a_size_takes_what_the_first_took(twins: Twins) -> None:
    """BEiT's index of positions would be cached, and then no longer counted."""
    encoder, _ = twins("beit")
    size, outputs = ImageSize(56, 40), Outputs(pooled=True)
    assert taken(encoder, size, outputs) == taken(encoder, size, outputs)
