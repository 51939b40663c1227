"""Forwards that are recorded, by torch's own allocator. The stub card cannot record: programs/graphs.py stands in."""

import re
from typing import Any

import pytest

from tests.support.cudastub import on_stub_card

pytestmark = pytest.mark.slow
ENCODERS = ["demo:vit", "openclip:RN50@random"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return on_stub_card(tmp_path_factory, "graphs", "float16", *ENCODERS, memory_gb=4)


def test_a_graph_works_in_what_the_plan_says_of_its_forward(told: Any) -> None:
    assert len(told["rows"]) == 8
    for row in told["rows"]:
        assert row["predicted"] <= row["scratch"] <= row["at_most"], row


def test_graphs_share_a_pool_that_is_no_larger_than_planned(told: Any) -> None:
    for row in told["rows"]:
        assert 0 < row["pool"] <= row["pool_planned"] < row["taken"], row


def test_replays_follow_each_other_take_nothing_anew_and_are_not_measured(told: Any) -> None:
    """The program ends if beginning one waits for the card, as far as torch knows."""
    for row in told["rows"]:
        *eager, recorded, replayed = row["peaks"]
        assert set(eager) == {row["scratch"]}, row
        assert recorded is replayed is None, row
        assert (row["replays"], row["kept"], len(set(map(tuple, row["shapes"])))) == (3, 0, 1), row


def test_a_forward_that_cannot_be_recorded_is_answered_and_leaves_nothing_behind(told: Any) -> None:
    without_room, failed = told["without_room"], told["cannot_record"]
    assert set(without_room["rows"]) == {8}
    assert (without_room["taken"], without_room["forwards"]) == (0, 1)
    assert set(failed["rows"]) == {8}
    assert len(set(failed["held"])) == 1


def test_the_benchmark_runs_a_forward_either_way(told: Any) -> None:
    assert told["benchmark"] == [[2, 64], [2, 64]]


def test_a_service_has_its_graphs_within_its_budget(told: Any) -> None:
    served = told["served"]
    assert set(served["statuses"]) == {200}
    assert served["replays"] > 0
    assert served["total"] == 2**31
    assert served["limit"] + served["context"] == served["total"]
    assert served["context"] >= 2**30
    ratio = re.search(r"^visiontower_vram_prediction_ratio\{.*\} (\S+)$", served["metrics"], re.MULTILINE)
    assert ratio is not None
    assert 0.75 < float(ratio[1]) <= 1.0  # of the last batch: one of few images does not use all of its workspace
