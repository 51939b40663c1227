"""The whole service on the stub card, with torch's real allocator and its real out-of-memory errors."""

import re
from typing import Any

import pytest

from tests.support import cudastub

MODEL = "openclip:RN50@random"
pytestmark = pytest.mark.slow


CASES = ("8GiB", f"8GiB+{600 * 2**20}", "auto")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Case -> what became of a service, on a card of 1 GiB. Their processes share the imports."""
    stub = cudastub.build(tmp_path_factory.mktemp("cudastub"))
    return dict(zip(CASES, cudastub.run(stub, "serve.py", *CASES, gib=1), strict=True))


def metric(result: dict[str, Any], series: str) -> float:
    found = re.search(rf"^visiontower_{re.escape(series)} (\S+)$", result["metrics"], re.MULTILINE)
    assert found, series
    return float(found[1])


def out_of_memory(result: dict[str, Any]) -> float:
    return metric(result, f'out_of_memory_total{{model="{MODEL}"}}')


def test_within_its_budget_it_splits_and_never_runs_out(results: dict[str, Any]) -> None:
    """60 images of 448 wait at once on a card of 1 GiB, of which the plan takes 0.8, and follow each other closely."""
    result = results[CASES[2]]
    assert set(result["waves"]) == set(result["mixed"]) == {200}
    assert result["ready"] == 200
    assert result["at_work"] == {"now": 0, "most": 2}
    assert out_of_memory(result) == 0
    assert metric(result, 'admission_total{decision="split"}') > 0
    assert metric(result, f'vram_prediction_ratio{{model="{MODEL}"}}') == pytest.approx(1.0, abs=0.01)
    kinds = {k: metric(result, f'vram_bytes{{device="cuda:0",kind="{k}"}}') for k in ("reserved", "budget", "total")}
    assert kinds["reserved"] <= kinds["budget"] <= kinds["total"] == 2**30


def test_an_out_of_memory_is_recovered_from_and_remembered(results: dict[str, Any]) -> None:
    """Told of a budget that the card does not have, it runs into torch.OutOfMemoryError; everybody is answered."""
    result = results[CASES[0]]
    assert set(result["waves"]) == set(result["mixed"]) == {200}
    assert result["ready"] == 200
    assert out_of_memory(result) == 1


def test_an_image_too_large_for_the_card_fails_alone(results: dict[str, Any]) -> None:
    """Convolutions take a workspace of 600 MiB that no plan can see, and the budget is not the card's."""
    result = results[CASES[1]]
    assert result["large"]["type"] == "/problems/out-of-memory"
    assert result["large"]["status"] == 507
    assert result["ready"] == 200
