"""Predictions against torch's own CUDA allocator, on the stub card."""

from pathlib import Path
from typing import Any

import pytest

from tests import cudastub

pytestmark = pytest.mark.slow
WORKSPACE = 8 * 2**20 + 2**17
"""cuBLAS's on compute capability 8.0."""
ENCODERS = [
    "openclip:RN50@random",
    "openclip:ViT-B-32@random",
    "openclip:convnext_base_w@random",
    "timm:vgg16@random",
    "timm:vit_small_patch14_dinov2@random",
    "demo:vit",
    "demo:resnet",
    "demo:convnext",
]


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cudastub.build(tmp_path_factory.mktemp("cudastub"))


@pytest.fixture(scope="module", params=["float16", "float32"])
def rows(stub: Path, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cudastub.run(stub, "forwards.py", request.param, *ENCODERS, gib=24)
    return found


def test_what_tensors_ask_for_is_predicted_to_the_byte(rows: list[dict[str, Any]]) -> None:
    """Or hides under a matrix product's workspace, where a forward has less than that."""
    forwards = [row for row in rows if "at_most" in row]
    assert len(forwards) > 150
    for row in forwards:
        assert row["predicted"] <= row["requested"] <= row["at_most"], row
        if row["at_most"] == row["predicted"]:
            assert row["requested"] == row["predicted"], row
    exact = sum(row["requested"] == row["predicted"] for row in forwards)
    assert exact > 0.5 * len(forwards)


def test_the_allocator_gives_what_was_asked_for_in_blocks_of_512(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if "allocated" in row:
            assert row["requested"] <= row["allocated"] <= row["requested"] * 1.005 + 64 * 512, row


def test_weights_arrive_in_the_precision_they_stay_in(rows: list[dict[str, Any]]) -> None:
    """Loading never takes more of the card than the weights, and one of them on its way."""
    loads = [row for row in rows if "largest" in row]
    assert len(loads) == len(ENCODERS)
    for row in loads:
        assert row["peak"] <= row["requested"] + row["largest"], row


@pytest.mark.parametrize("gib", [1, 2, 4])
@pytest.mark.parametrize(
    ("dtype", "encoders"),
    [
        ("float16", [*ENCODERS[:4], "openclip:ViT-L-14@random"]),
        ("float32", ENCODERS[:2]),
    ],
)
def test_the_largest_batch_is_never_over_the_true_one_and_at_least_nine_tenths_of_it(
    stub: Path, gib: int, dtype: str, encoders: list[str]
) -> None:
    for row in cudastub.run(stub, "largest.py", dtype, *encoders, gib=gib):
        assert row["planned"] <= row["ran"], row
        assert row["planned"] >= 0.9 * row["ran"] - 1e-9 or row["ran"] - row["planned"] <= 1, row
