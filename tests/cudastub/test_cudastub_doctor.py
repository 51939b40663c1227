"""The doctor's lines about CUDA, on the stub card: torch's own host code, and a card that computes zeros."""

import re

import pytest

from tests.support.cudastub import on_stub_card

pytestmark = pytest.mark.slow


def test_a_card_is_told_and_a_wrong_answer_is_noticed(tmp_path_factory: pytest.TempPathFactory) -> None:
    told = on_stub_card(tmp_path_factory, "doctor", "encoders", memory_gb=16)
    (card,) = told["torch"]["cards"]
    assert (card["capability"], card["total"]) == ([8, 0], 16 * 2**30)
    assert told["nvidia"]["cuda"] == [13, 2]
    assert (told["choice"]["device"], told["choice"]["dtype"]) == ("cuda:0", "bfloat16")
    assert 12 * 2**30 < told["choice"]["budget"] < 13 * 2**30
    pictures, *encoders = told["checks"]
    assert pictures["problem"] is None
    for check in encoders:
        assert check["problem"].startswith("cosines are off by nan")
        assert re.search(r"memory (0\.9\d|1\.0\d) of the plan$", check["said"]), check
    assert [each["what"].partition(":")[0] for each in told["findings"] if each["severity"] == "wrong"] == [
        "The self-test failed"
    ]


def test_a_card_that_torch_has_no_kernels_for_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    told = on_stub_card(tmp_path_factory, "doctor", memory_gb=1, FAKE_CC="60")
    said = " ".join(each["what"] for each in told["findings"])
    assert "has no kernels for cuda:0 (FAKE), of compute capability 6.0" in said
    assert "cuda:0 (FAKE) has 1 GiB" in said
