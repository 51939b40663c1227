"""Who decodes: threads for plain images, and a process for each other image, that is killed if nobody waits for it.

An image waits in line behind those whose requests asked for less, and until there is memory for it. The threads run
what follows the decode too: resizing, and the way into the forward's queue.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from PIL import Image

from encoders.contract.errors import VisiontowerError
from encoders.images.decode import decode
from encoders.images.price import Price
from encoders.images.process import DecodeProcess
from encoders.memory.machine import available_cores
from service.engine.fair_line import FairLine
from service.errors import HostMemoryFull, OverHostMemory, ShuttingDown
from service.memory.account import Account, Hold

_log = logging.getLogger(__name__)

_LITTLE = 4 * 1024 * 1024
"""Bytes that a decode takes without asking the account: no more of them run than there are threads."""
TOGETHER = 8
"""Little images that a thread decodes one after the other, before it goes on with what follows for each. To take turns
at both for every image takes a twelfth longer: caches hold the one or the other. Decoded, each has under 1 MiB.
"""

_TOGETHER_WORK = 1_000_000
"""Work, some milliseconds, that the first of them waits for at most."""

_UNFORESEEN = "an image's error was not foreseen"


def is_little(price: Price) -> bool:
    """Whether it is decoded on a thread, and without asking the account."""
    return price.is_plain and price.nbytes <= _LITTLE


def automatic_threads() -> int:
    """Threads that decode where the operator names no number.

    With one thread more the threads of a forward wait for each other's turn.
    """
    return max(1, available_cores() - 1)


class Decode(Protocol):
    """Image bytes -> RGB, here or elsewhere."""

    def __call__(self, image_bytes: bytes, *, max_pixels: int, at_least: int | None) -> Image.Image:
        """As encoders.images.decode.decode."""


@dataclass(eq=False, slots=True)
class Job:
    """One image's decode and what follows. Either `run` or `fail` is called, once, on any thread; neither raises.

    run: gives what follows, if it may wait for other images' decodes. fail: told None if the job was dropped.
    is_dropped: nobody waits for it any more.
    """

    price: Price
    run: Callable[[Decode], Callable[[], None] | None]
    fail: Callable[[VisiontowerError | None], None]
    is_dropped: bool = False


class Decoding:
    """Two crews over one account of memory: threads that decode plain images, and threads with a process each."""

    def __init__(self, account: Account, *, threads: int, processes: int) -> None:
        self.threads = threads
        self._most = account.most("image")
        self._plain = _Crew(account, threads, name="decode")
        self._dear = _Crew(account, processes, name="decode apart", is_apart=True)

    def submit(self, job: Job, flow: object, *, beside: int = 0) -> None:
        """Do it when it is its turn. flow: its request, by identity. beside: bytes that this one holds already.

        Raises OverHostMemory if there will never be memory for it, and ShuttingDown.
        """
        if job.price.nbytes > self._most - beside:
            raise OverHostMemory(stage="image", needed=job.price.nbytes + beside, limit=self._most)
        (self._plain if job.price.is_plain else self._dear).submit(job, flow)

    def drop(self, job: Job) -> None:
        """Nobody waits for it any more: it leaves the line, or its process is killed. A plain decode goes on."""
        (self._plain if job.price.is_plain else self._dear).drop(job)

    def stop(self) -> None:
        """Fail what waits, end the threads after what they are at, and kill the processes. Does not wait."""
        self._plain.stop()
        self._dear.stop()


class _Crew:
    """Threads over one line, started when they are needed. is_apart: each decodes in a process of its own."""

    def __init__(self, account: Account, number: int, *, name: str, is_apart: bool = False) -> None:
        self._account = account
        self._number = number
        self._name = name
        self._is_apart = is_apart
        self._wake = threading.Condition()
        self._line: FairLine[Job] = FairLine()  # this and what follows under _wake
        self._handed: deque[Job] = deque()  # for threads that were idle
        self._idle = 0
        self._threads = 0
        self._running: dict[Job, DecodeProcess] = {}
        self._stopping = False

    def submit(self, job: Job, flow: object) -> None:
        with self._wake:
            if self._stopping:
                raise ShuttingDown
            if job.price.nbytes <= _LITTLE and self._idle > len(self._handed):
                self._handed.append(job)
            else:
                self._line.put(job, flow, job.price.work)
                if self._threads < self._number and self._idle < len(self._handed) + self._line.size:
                    self._threads += 1
                    name = f"{self._name} {self._threads}"
                    threading.Thread(target=self._main, name=name, daemon=True).start()
            self._wake.notify()

    def drop(self, job: Job) -> None:
        with self._wake:
            job.is_dropped = True
            was_waiting = self._line.discard(job)
            if not was_waiting and job in self._running:
                self._running[job].kill()
        if was_waiting:
            job.fail(None)

    def stop(self) -> None:
        with self._wake:
            self._stopping = True
            waiting = list(self._line)
            for job in waiting:
                self._line.discard(job)
            for process in self._running.values():
                process.kill()
            self._wake.notify_all()
        for job in waiting:
            job.fail(ShuttingDown())

    def _main(self) -> None:
        process = DecodeProcess() if self._is_apart else None
        while (taken := self._next(process)) is not None:
            jobs, hold = taken
            following: list[Callable[[], None]] = []
            for job in jobs:
                try:
                    follow = job.run(decode if process is None else partial(_decode_apart, process, job))
                    following += [follow] if follow else []
                except BaseException:
                    _log.critical(_UNFORESEEN, exc_info=True)
            for follow in following:
                try:
                    follow()
                except BaseException:
                    _log.critical(_UNFORESEEN, exc_info=True)
            if process is not None:
                with self._wake:
                    del self._running[jobs[0]]
            if hold is not None:
                hold.release()
            follow = None
            del job, jobs, following, hold, taken  # they hold encoders and files, which are let go of here
        if process is not None:
            process.close()

    def _next(self, process: DecodeProcess | None) -> tuple[list[Job], Hold | None] | None:
        """The next job, waited for, with the memory for it, or a few little ones; None when told to stop."""
        with self._wake:
            self._idle += 1
            taken: tuple[list[Job], Hold | None] | None = None
            while taken is None:
                if self._handed:
                    taken = [self._handed.popleft()], None
                elif self._line.size:
                    taken = self._take()
                if taken is not None:
                    break
                if self._stopping:
                    return None
                self._wake.wait()
            self._idle -= 1
            if process is not None:
                self._running[taken[0][0]] = process
            return taken

    def _take(self) -> tuple[list[Job], Hold | None] | None:
        """A few little jobs, if one is due first; else the job that is due first of those that there is memory for."""
        most = 1 if self._is_apart else min(TOGETHER, -(-self._line.size // self._number))
        little: list[Job] = []
        work = 0
        while len(little) < most and (job := next(iter(self._line), None)) and job.price.nbytes <= _LITTLE:
            work += job.price.work
            if little and work > _TOGETHER_WORK:
                break
            self._line.take(job)
            little.append(job)
        if little:
            return little, None
        for job in self._line:
            hold = self._hold(job.price.nbytes) if job.price.nbytes > _LITTLE else None
            if hold is not None or job.price.nbytes <= _LITTLE:
                self._line.take(job)
                return [job], hold
        return None

    def _hold(self, nbytes: int) -> Hold | None:
        """None if there is no room; once there may be some, the crew is woken."""
        for _ in range(2):
            try:
                return self._account.hold("image", nbytes)
            except HostMemoryFull:
                self._account.short.add(self._wake)  # and try once more: room may have come in between
        return None


def _decode_apart(
    process: DecodeProcess, job: Job, image_bytes: bytes, *, max_pixels: int, at_least: int | None
) -> Image.Image:
    return process.decode(
        image_bytes,
        price=job.price,
        max_pixels=max_pixels,
        at_least=at_least,
        is_wanted=lambda: not job.is_dropped,
    )
