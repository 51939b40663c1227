"""What a device runs side by side, and that encoders can be run so."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from encoders import load
from encoders.contract.encoder import Placement
from encoders.contract.values import Encoded, Outputs, TokenKind
from encoders.runtime import device
from encoders.runtime.device import resolve, take_cores
from tests.support.photographs import photographs
from tests.support.suites import split

OUTPUTS = [
    Outputs(tokens=TokenKind.HIDDEN, pooled=True),
    Outputs(pooled=True),
    Outputs(tokens=TokenKind.HIDDEN, layer=1),
]


@pytest.mark.parametrize(("cores", "lanes"), [(1, 1), (2, 2), (64, 2)])
def test_a_cpu_has_two_lanes_where_it_has_two_cores(monkeypatch: pytest.MonkeyPatch, cores: int, lanes: int) -> None:
    monkeypatch.setattr(device, "_CORES", cores)
    assert resolve("cpu", "float32", lanes="auto").lanes == lanes
    assert resolve("cpu", "float32").lanes == 1


def test_a_card_has_one_and_more_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve("cuda", "float16", lanes="auto").lanes == 1
    with pytest.raises(ValueError, match="2 lanes are for CPUs"):
        resolve("cuda", "float16", lanes=2)


def test_a_thread_takes_its_part_of_the_cores_and_nobody_else_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_CORES", 4)
    before = torch.get_num_threads()

    def taken(part: int) -> int:
        take_cores(part)
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        assert [pool.submit(taken, part).result() for part in (2, 1, 8)] == [2, 4, 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize(
    "encoder_id",
    split(
        ["demo:vit", "demo:resnet", "demo:convnext", "timm:vit_tiny_patch16_224@random"],
        quick=["demo:vit", "demo:resnet", "demo:convnext"],
    ),
)
def test_forwards_side_by_side_do_not_touch_each_other(encoder_id: str, runtime: str) -> None:
    encoder = load(encoder_id, Placement(dtype="bfloat16", runtime=runtime, lanes=2))
    pixels = np.stack([encoder.preprocess(image, encoder.spec.image_size) for image in photographs()])

    def encode(index: int) -> Encoded:
        take_cores(2)
        return encoder.encode(pixels[index % 4 :], OUTPUTS[index % 3])

    with ThreadPoolExecutor(1) as alone:
        expected = list(alone.map(encode, range(12)))
    with ThreadPoolExecutor(2) as lanes:
        found = list(lanes.map(encode, range(24)))
    for index, ours in enumerate(found):
        theirs = expected[index % 12]
        for rows, same in ((ours.tokens, theirs.tokens), (ours.pooled, theirs.pooled)):
            assert (rows is None) == (same is None)
            if rows is not None and same is not None:
                np.testing.assert_allclose(rows.astype(np.float32), same.astype(np.float32), rtol=1e-2, atol=1e-2)
