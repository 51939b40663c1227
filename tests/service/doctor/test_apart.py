"""What breaks a process is told, and breaks no other."""

import os
import signal
import threading

from service.doctor.apart import apart
from service.doctor.facts import Unknown

ENOUGH_S = 60.0


def seven() -> int:
    print("not between the parent's lines")
    return 7


def raises() -> None:
    raise ValueError("two\nlines")


def dies() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def hangs() -> None:
    threading.Event().wait()


def test_values_and_errors_come_back() -> None:
    assert apart([raises, seven], within_s=ENOUGH_S) == {raises: Unknown("ValueError: two lines"), seven: 7}


def test_the_end_of_the_process_is_told_of_all_that_was_left() -> None:
    reason = Unknown("the process ended with SIGTERM")
    assert apart([seven, dies, raises], within_s=ENOUGH_S) == {seven: 7, dies: reason, raises: reason}


def test_what_hangs_is_not_waited_for() -> None:
    assert apart([hangs], within_s=0.01) == {hangs: Unknown("there was no answer within 0 s")}
