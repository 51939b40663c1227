"""The pace of a run: stages by hand, the wall, the cards that an hour takes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scaling.cards import CARDS, card_of
from service.scaling.pipeline import Cluster, Need, Pipeline, Stage, Supply, fed, pipeline

NEED = Need(read_bytes=100_000, decode_s=0.002, engine_s=0.0005, write_s=0.0005, write_bytes=2_000)
SUPPLY = Supply(cores=12, engines=2, bytes_s=1.25e9, forwards_s=1000.0)


def paces(pipeline: Pipeline) -> dict[str, float]:
    return {stage.name: stage.pace for stage in pipeline.stages}


def test_each_stage_is_what_a_card_has_by_what_an_image_takes() -> None:
    assert paces(pipeline(NEED, SUPPLY, storage_bytes_s=None)) == pytest.approx(
        {
            "read": 12_500,  # 1.25 GB/s by 100 kB
            "cores": 4_000,  # 12 cores by 3 ms
            "engine": 4_000,  # 2 by 0.5 ms
            "forward": 1_000,
            "write": 625_000,  # 1.25 GB/s by 2 kB
        }
    )


def test_the_storage_is_shared_by_all_that_is_read_and_written() -> None:
    stages = pipeline(NEED, SUPPLY, storage_bytes_s=1.02e9)
    assert paces(stages)["storage"] == pytest.approx(10_000)
    assert stages.limit == pytest.approx(10_000)


@pytest.mark.parametrize(
    ("cards", "wall", "pace"), [(1, "forward", 1_000), (9, "forward", 9_000), (11, "storage", 1e4)]
)
def test_the_slowest_stage_is_the_wall(cards: int, wall: str, pace: float) -> None:
    stages = pipeline(NEED, SUPPLY, storage_bytes_s=1.02e9)
    assert stages.wall(cards).name == wall
    assert stages.pace(cards) == pytest.approx(pace)


def test_hours_and_card_hours_by_hand() -> None:
    cluster = Cluster(pipeline(NEED, SUPPLY, storage_bytes_s=None), images=36_000_000, cards=4)
    assert (cluster.pace, cluster.hours, cluster.card_hours) == pytest.approx((4_000, 2.5, 10.0))
    assert cluster.wall == "forward"


def test_what_keeps_a_card_busy_by_hand() -> None:
    busy = fed(NEED, 3000.0)
    assert (busy.cores, busy.engines, busy.bytes_s) == pytest.approx((9, 2, 3e8))


@given(st.floats(0.01, 1e6))
def test_a_card_that_is_kept_busy_is_the_wall(forwards_s: float) -> None:
    assert pipeline(NEED, fed(NEED, forwards_s), storage_bytes_s=None).pace(1) == pytest.approx(forwards_s)


def stages(*, shared: bool) -> st.SearchStrategy[Pipeline]:
    pace = st.floats(0.01, 1e6)
    own = st.lists(st.builds(Stage, st.just("own"), pace), min_size=1, max_size=5)
    storage = st.lists(st.builds(Stage, st.just("storage"), pace, st.just(True)), min_size=shared, max_size=shared)
    return st.builds(lambda one, other: Pipeline([*one, *other]), own, storage)


@given(stages(shared=False), st.integers(1, 1000))
def test_twice_the_cards_halve_the_hours(pipeline: Pipeline, cards: int) -> None:
    one, two = (Cluster(pipeline, 1000, count) for count in (cards, 2 * cards))
    assert two.hours == pytest.approx(one.hours / 2)
    assert two.card_hours == pytest.approx(one.card_hours)


@given(stages(shared=True), st.integers(1, 1000))
def test_unless_the_storage_is_the_wall(pipeline: Pipeline, cards: int) -> None:
    one, two = (Cluster(pipeline, 1000, count) for count in (cards, 2 * cards))
    assert one.hours / 2 <= two.hours * (1 + 1e-9)
    assert two.hours <= one.hours
    if one.wall == "storage":
        assert two.hours == one.hours == pytest.approx(1000 / pipeline.limit / 3600)


@given(stages(shared=True), st.floats(0.01, 1e6))
def test_the_fewest_cards_that_are_fast_enough(pipeline: Pipeline, wanted: float) -> None:
    pace = min(wanted, pipeline.limit)
    cards = pipeline.cards_for(pace)
    assert pipeline.pace(cards) >= pace * (1 - 1e-9)
    assert cards == 1 or pipeline.pace(cards - 1) < pace


@given(stages(shared=False), st.integers(1, 10_000))
def test_the_pace_of_so_many_cards_takes_so_many(pipeline: Pipeline, cards: int) -> None:
    assert pipeline.cards_for(pipeline.pace(cards)) == cards


def test_without_shared_stages_there_is_no_limit() -> None:
    assert pipeline(NEED, SUPPLY, storage_bytes_s=None).limit == math.inf


def test_a_card_is_known_by_its_name_in_any_case() -> None:
    assert card_of("H100") == CARDS["h100"]
    assert (card_of("a100-40").tflops, card_of("a100-40").memory_bytes) == (312, 40 * 10**9)
    with pytest.raises(ValueError, match=r"'v100' is not known: choose one of t4, .*, b200$"):
        card_of("v100")
