"""What keys have used: requests of a second and images of a day, in one count for all who share the file."""

from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import pytest

from service.access.usage import Usage

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
DAY = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def passed(usage: Usage, number: int, *, per_second: float) -> int:
    return sum(not usage.request("a", per_second=per_second) for _ in range(number))


@pytest.mark.parametrize(("per_second", "at_once"), [(10.0, 10), (1.0, 1), (0.1, 1), (2.5, 2), (1000.0, 1000)])
def test_a_second_s_requests_may_come_at_once(per_second: float, at_once: int, clock: Clock) -> None:
    usage = Usage(None, clock=clock)
    assert passed(usage, at_once + 3, per_second=per_second) == at_once


@pytest.mark.parametrize("per_second", [0.1, 1.0, 3.0, 10.0])
def test_over_a_minute_as_many_pass_as_the_rate_says(per_second: float, clock: Clock) -> None:
    usage, found = Usage(None, clock=clock), 0
    for _ in range(600):
        found += passed(usage, 2, per_second=per_second)
        clock.now += 0.1
    assert abs(found - 60 * per_second) <= max(1, per_second)


def test_who_comes_when_told_passes(clock: Clock) -> None:
    usage = Usage(None, clock=clock)
    for _ in range(20):
        wait_s = usage.request("a", per_second=3)
        if wait_s:
            clock.now += wait_s + 1e-6
            assert usage.request("a", per_second=3) == 0


def test_keys_have_rates_of_their_own(clock: Clock) -> None:
    usage = Usage(None, clock=clock)
    assert usage.request("a", per_second=1) == 0
    assert usage.request("b", per_second=1) == 0
    assert usage.request("a", per_second=1) > 0


def test_a_clock_that_is_set_back_shuts_nobody_out(clock: Clock) -> None:
    usage = Usage(None, clock=clock)
    assert passed(usage, 20, per_second=10) == 10
    clock.now -= 3600
    assert passed(usage, 20, per_second=10) == 10


def test_a_rate_that_is_raised_holds_at_once(clock: Clock) -> None:
    usage = Usage(None, clock=clock)
    assert usage.request("a", per_second=0.001) == 0
    assert usage.request("a", per_second=0.001) > 900
    assert usage.request("a", per_second=10) == 0


def test_the_images_of_a_day_are_as_many_as_the_limit_and_no_more(clock: Clock) -> None:
    usage = Usage(None, clock=clock)
    assert usage.images("a", 11, per_day=10) is None
    assert usage.images("a", 6, per_day=10) == "2026-11-30"
    assert usage.images("a", 5, per_day=10) is None, "it would be over"
    assert usage.images("a", 4, per_day=10) is not None
    assert usage.images("a", 1, per_day=10) is None
    assert usage.today("a") == 10
    assert usage.today("b") == 0


def test_a_day_ends_at_midnight_utc_and_yesterday_s_are_given_back_to_yesterday(clock: Clock) -> None:
    usage = Usage(None, clock=clock)
    assert usage.seconds_left() == DAY / 2
    yesterday = usage.images("a", 10, per_day=10)
    assert yesterday is not None
    clock.now += DAY / 2
    assert usage.today("a") == 0
    assert usage.images("a", 10, per_day=10) == "2026-12-01"
    usage.give_back("a", 10, day=yesterday)
    assert usage.today("a") == 10
    clock.now -= 1  # the clock is set back over midnight
    assert usage.today("a") == 0
    assert usage.images("a", 10, per_day=10) == "2026-11-30"


def test_counts_outlive_the_server_and_old_days_go(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "usage"
    first = Usage(path, clock=clock)
    assert first.images("a", 7, per_day=10)
    assert first.request("a", per_second=1) == 0
    first.close()
    again = Usage(path, clock=clock)
    assert again.today("a") == 7
    assert again.request("a", per_second=1) > 0
    again.close()
    clock.now += 40 * DAY
    Usage(path, clock=clock).close()
    clock.now -= 40 * DAY
    assert Usage(path, clock=clock).today("a") == 0


def test_several_servers_have_one_count(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "usage"
    Usage(path, clock=clock).close()
    found: list[int] = []

    def use() -> None:
        usage = Usage(path, clock=clock)
        found.append(sum(usage.images("a", 1, per_day=100) is not None for _ in range(60)))
        usage.close()

    threads = [Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found) == 100


def test_a_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot keep what keys have used"):
        Usage(tmp_path)
    with pytest.raises(ValueError, match="unable to open"):
        Usage(tmp_path / "none" / "usage")
    (tmp_path / "text").write_text("no database, and longer than the head of one" * 9)
    with pytest.raises(ValueError, match="not a database"):
        Usage(tmp_path / "text")
