"""How many replicas the work that waits needs."""

from types import SimpleNamespace

import pytest

from service.run.ray.autoscaling import PRESSURE, by_waiting, pressure, wanted


@pytest.mark.parametrize(
    ("oldest_s", "fullness", "expected"),
    [(0.0, 0.0, 0.0), (1.0, 0.1, 1.0), (3.0, 0.1, 3.0), (0.1, 0.5, 1.0), (0.1, 1.0, 2.0)],
)
def test_a_replica_bears_the_age_or_the_fullness_of_its_queue(
    oldest_s: float, fullness: float, expected: float
) -> None:
    assert pressure(oldest_s=oldest_s, fullness=fullness) == expected


@pytest.mark.parametrize(
    ("now", "pressures", "expected"),
    [
        (2, [1.0, 1.0], 2),
        (2, [0.5, 0.5], 2),  # within the slack nothing changes
        (2, [1.4, 1.4], 3),
        (2, [9.0, 9.0], 4),  # twice as many at most: a queue that has waited for a start is old
        (4, [0.2, 0.2, 0.2, 0.2], 2),
        (4, [0.0, 0.0, 0.0, 0.0], 1),
        (4, [2.0, 0.0, 0.0, 0.0], 4),  # one that is behind is no lack of others
        (3, [], 3),  # nobody has told yet
    ],
)
def test_replicas_follow_the_mean(now: int, pressures: list[float], expected: int) -> None:
    assert wanted(now, dict(enumerate(pressures)), requests=5) == expected


def test_none_are_left_only_if_nobody_asks() -> None:
    assert wanted(1, {"a": 0.0}, requests=0) == 0
    assert wanted(1, {"a": 0.0}, requests=1) == 1
    assert wanted(0, {}, requests=0) == 0
    assert wanted(0, {}, requests=1) == 1


def test_ray_asks_with_its_context() -> None:
    context = SimpleNamespace(target_num_replicas=2, total_num_requests=8, aggregated_metrics={PRESSURE: {"a": 2.0}})
    assert by_waiting(context) == (4, {})
    assert by_waiting(SimpleNamespace(target_num_replicas=2, total_num_requests=8, aggregated_metrics={})) == (2, {})
