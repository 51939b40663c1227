"""Freed memory goes back to the machine when nothing is at work, and not more often than it pays."""

import subprocess
import sys
import weakref

import pytest

from service.run.heap import Heap, give_back
from tests.support.paths import ROOT


class Process:
    """Its resident bytes and its clock are the test's; memory given back leaves it at 100."""

    def __init__(self) -> None:
        self.now = 0.0
        self.resident = 150
        self.times = 0
        self.heap = Heap(clock=lambda: self.now, resident=lambda: self.resident, give_back=self.give_back)

    def give_back(self) -> None:
        self.resident = 100
        self.times += 1

    def look(self, *, after_s: float, is_idle: bool = True) -> int:
        """How often memory has been given back by then."""
        self.now += after_s
        self.heap.look(is_idle=is_idle)
        self.heap.join()
        return self.times


def test_memory_is_given_back_if_the_process_has_grown() -> None:
    process = Process()
    assert process.look(after_s=30) == 1
    assert process.look(after_s=30) == 1, "it has not grown"
    process.resident = 105
    assert process.look(after_s=30) == 1, "by very little"
    process.resident = 150
    assert process.look(after_s=30) == 2


def test_while_requests_are_at_work_it_waits() -> None:
    process = Process()
    assert process.look(after_s=1000, is_idle=False) == 0
    assert process.look(after_s=0.1) == 1


def test_it_is_done_twice_a_minute_at_most() -> None:
    process = Process()
    assert process.look(after_s=29) == 0
    assert process.look(after_s=1) == 1
    process.resident = 150
    assert process.look(after_s=29) == 1
    assert process.look(after_s=1) == 2


PROGRAM = """
from service.run.heap import Heap, resident_bytes
kept = [bytes(1024) for _ in range(200_000)]
now = [0.0]
heap = Heap(clock=lambda: now[0])
del kept[:-1]  # the last lies behind all others
before, now[0] = resident_bytes(), 60.0
heap.look(is_idle=True)
heap.join()
print(before - resident_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_lies_below_something_that_lives_on_is_given_back() -> None:
    program = subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    assert int(program.stdout) > 100 * 2**20


def test_garbage_is_looked_for_before_memory_is_given_back() -> None:
    class Kept:
        def __init__(self) -> None:
            self.itself = self

    kept = weakref.ref(Kept())
    give_back()
    assert kept() is None
