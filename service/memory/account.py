"""The host's memory that requests hold: bodies, pictures being decoded, pixels, prompts, answers. Takes none itself.

A request says what a stage will take before the stage begins, and is refused if that is too much. So no sum of
requests takes more than the limit, whatever the stages are. The encoders and their forwards are the budget's
(budget.py). The event loop and the threads behind it use it.
"""

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, TypeAlias

from encoders.memory.machine import host_memory
from service.errors import HostMemoryFull, OverHostMemory

Stage: TypeAlias = Literal["body", "image", "input", "text", "answer"]
"""image: while it is decoded. input: the pixels that wait for their forward."""

_MIB = 1024 * 1024
_SHARE, _LEAST, _MOST = 8, 256 * _MIB, 4096 * _MIB
"""Of `auto`: this part of what is free, within these bytes."""
_LITTLE = 64
"""A taking of up to this part of the limit is little."""
_LEFT = 8
"""This part of the limit a picture leaves to others."""


def automatic_limit(part: float = 1.0) -> int:
    """Bytes for requests where the operator names none: an eighth of the memory that is free, from 256 MiB to 4 GiB.

    part: of the memory that is free; the rest is for other engines on the machine.
    """
    _, free = host_memory()
    return max(_LEAST, min(_MOST, int(free * part) // _SHARE))


class Account:
    """limit: bytes that all requests may hold together.

    Whoever takes much must leave as much for others: a hold that is not little gets at most half of what others leave.
    So a few large requests cannot keep the small ones out. With nothing held by others, one may take all. Pictures wait
    for each other: with none being decoded, the first may take what is free, but for a part that it leaves to what is
    little.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[Stage, int] = {"body": 0, "image": 0, "input": 0, "text": 0, "answer": 0}
        self._lock = threading.Lock()
        self.short: set[threading.Condition] = set()
        """Of those who wait for room: each is notified when bytes are given back, and leaves the set."""

    @property
    def held(self) -> Mapping[str, int]:
        """Bytes by stage, now."""
        return dict[str, int](self._held.items())

    def hold(self, stage: Stage, nbytes: int = 0, *, beside: int = 0) -> "Hold":
        """Take bytes for a stage; they are given back at the end of a `with`, or by `release`.

        beside: bytes that the same request holds already. They are counted with these, and are not others'.

        Raises HostMemoryFull if others hold too much now, OverHostMemory if it could never be.
        """
        hold = Hold(self, stage, beside)
        hold.grow(nbytes)
        return hold

    def most(self, stage: Stage) -> int:
        """Bytes that one taking of the stage can ever have."""
        return self.limit - self.limit // _LEFT if stage == "image" else self.limit

    def _take(self, stage: Stage, nbytes: int, own: int) -> None:
        """own: bytes that the same request has already; others' bytes are what it must leave room beside."""
        total = nbytes + own
        with self._lock:
            others = sum(self._held.values()) - own
            room = self.limit - others
            if total > self.most(stage):
                raise OverHostMemory(stage=stage, needed=total, limit=self.most(stage))
            # As a whole, not by its last step: whoever comes in pieces gets no more than who comes at once.
            most = room if total <= self.limit // _LITTLE or not others else room // 2
            if stage == "image" and self._held["image"] == own:
                most = max(most, room - self.limit // _LEFT)
            if total > most:
                raise HostMemoryFull(stage=stage, needed=nbytes, free=room - own, limit=self.limit)
            self._held[stage] += nbytes

    def _give(self, stage: Stage, nbytes: int) -> None:
        with self._lock:
            self._held[stage] -= nbytes
        if self.short:
            for condition in tuple(self.short):
                with condition:
                    self.short.discard(condition)
                    condition.notify_all()


class Hold:
    """Bytes of one stage of one request."""

    def __init__(self, account: Account, stage: Stage, beside: int = 0) -> None:
        self._account = account
        self.stage: Stage = stage
        self._beside = beside
        self.nbytes = 0

    def grow(self, nbytes: int) -> None:
        """Take more. Raises as Account.hold; the hold keeps the bytes that it had."""
        if nbytes > 0:
            self._account._take(self.stage, nbytes, self._beside + self.nbytes)
            self.nbytes += nbytes

    def shrink(self, nbytes: int) -> None:
        """Give back all but so many bytes."""
        if nbytes < self.nbytes:
            self._account._give(self.stage, self.nbytes - nbytes)
            self.nbytes = nbytes

    def release(self) -> None:
        """Give all back; a second time does nothing."""
        self.shrink(0)

    def __enter__(self) -> "Hold":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
