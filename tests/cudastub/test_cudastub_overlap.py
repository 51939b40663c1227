"""Forwards begun one behind the other, through torch's own CUDA code and allocator. Values and time are not seen."""

from pathlib import Path
from typing import Any

import pytest

from tests.support import cudastub

pytestmark = pytest.mark.slow
ENCODERS = [
    "demo:vit",
    "openclip:RN50@random",
    "openclip:convnext_base_w@random",
    "timm:vit_small_patch14_dinov2@random",
]


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cudastub.build(tmp_path_factory.mktemp("cudastub"))


@pytest.fixture(scope="module")
def result(stub: Path) -> Any:
    """Of a program that ends if anything that torch knows to wait for the card is called while a forward is begun."""
    return cudastub.run(stub, "overlap.py", "bfloat16", *ENCODERS, gib=8)


def test_a_forward_gives_all_it_took_back_before_the_next_is_begun(result: Any) -> None:
    assert len(result["rows"]) > 20
    for row in result["rows"]:
        assert row["kept"] == [0, 0, 0], row


def test_a_forward_begun_behind_another_takes_what_it_takes_alone(result: Any) -> None:
    for row in result["rows"]:
        assert len(set(row["peaks"])) == 1, row


def test_each_gives_its_rows_in_the_encoder_s_dtype(result: Any) -> None:
    for row in result["rows"]:
        assert row["arrays"] == [[4, "bfloat16"]] * 3, row


def test_failures_in_either_step_are_translated(result: Any) -> None:
    assert result["errors"] == {"waiting": "EncoderFailed", "beginning": "OutOfMemory"}
