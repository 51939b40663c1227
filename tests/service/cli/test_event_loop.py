"""Commands' event loop: Ctrl-C ends it whenever it comes."""

import asyncio
import signal
import threading

import pytest

from service.cli import event_loop


def test_it_gives_the_works_result_or_error() -> None:
    async def fails() -> None:
        raise LookupError("its error")

    async def gives() -> int:
        return 3

    assert event_loop.run(gives()) == 3
    with pytest.raises(LookupError, match="its error"):
        event_loop.run(fails())


def test_a_ctrl_c_that_does_not_interrupt_the_loops_wait_ends_it_too() -> None:
    """As one that comes just before the wait. Here another thread takes the signal, once the loop waits."""
    ends: list[str] = []

    async def waits() -> None:
        asyncio.get_running_loop().call_later(20, ends.append, "woken by a timer")
        threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)).start()
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    with pytest.raises(KeyboardInterrupt):
        event_loop.run(waits())
    assert ends == ["cancelled"]


def test_afterwards_ctrl_c_is_as_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    event_loop.run(asyncio.sleep(0))
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_where_ctrl_c_is_ignored_it_stays_so() -> None:
    """As of a job that a shell started in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        event_loop.run(asyncio.sleep(0))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_runs_in_another_thread() -> None:
    ran: list[int] = []

    async def work() -> None:
        ran.append(1)

    thread = threading.Thread(target=lambda: event_loop.run(work()))
    thread.start()
    thread.join()
    assert ran == [1]
