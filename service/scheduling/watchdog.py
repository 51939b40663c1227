"""Notices a device that hangs: a forward that has run far longer than such forwards do, and may never end.

Nothing can end it: its thread is inside the device's library. So its waiters are answered with an error, and whoever
else could only wait behind it. What can run beside it goes on. If the forward returns after all, all is as before.
"""

import logging
from collections.abc import Callable

from service.errors import DeviceHangs
from service.scheduling.device_threads import DeviceThreads, Work
from service.scheduling.items import fail
from service.scheduling.limits import BatchLimits
from service.scheduling.resident import Resident

_log = logging.getLogger(__name__)

CALL_S = 300.0
"""Seconds for a try-out of a model, and for other calls: nothing is known yet of how fast it should be."""
_STEP_S = 1.0
"""Two looks count as this far apart at most: a process that was stopped meanwhile must not blame its device."""


class Watchdog:
    """Stands beside the device threads. Lives on the event loop; `look` is called several times a second.

    hang: what is said of the work that hangs; None if none does.
    """

    def __init__(self, threads: DeviceThreads, limits: BatchLimits, *, clock: Callable[[], float]) -> None:
        self._threads = threads
        self._limits = limits
        self._clock = clock
        self._looked = clock()
        self._spent: dict[tuple[int, float], float] = {}  # seconds, by lane and beginning of its work
        self._hanging: dict[tuple[int, float], Resident | None] = {}  # None: a call
        self.hang: DeviceHangs | None = None

    def look(self) -> None:
        """Answer whoever waits for work that hangs; take work again once it has returned."""
        now = self._clock()
        step_s, self._looked = min(now - self._looked, _STEP_S), now
        before, self._spent = self._spent, {}
        hanging: dict[tuple[int, float], Resident | None] = {}
        for work in self._threads.at_work():
            key = work.lane, work.since
            spent_s = self._spent[key] = before[key] + step_s if key in before else min(now - work.since, step_s)
            limit_s = self._longest_s(work)
            if key in self._hanging or spent_s > limit_s:
                hanging[key] = None if work.taken is None else work.taken.batch[0].item.resident
                if key not in self._hanging:
                    self._tell(work, limit_s)
        if hanging or self._hanging:
            self._answer(hanging)

    def _longest_s(self, work: Work) -> float:
        if work.taken is None:
            return CALL_S
        return self._limits.hangs_after_s(work.taken.shape, len(work.taken.batch))

    def _tell(self, work: Work, limit_s: float) -> None:
        taken = work.taken
        name = "a call" if taken is None else f"a forward of {len(taken.batch)} by {taken.shape.model}"
        error = DeviceHangs(name, limit_s=limit_s)
        self.hang = self.hang or error
        _log.critical("%s", error)
        if taken is not None:
            taken.batch[0].item.resident.hang = error
            fail([waiting.item.future for waiting in taken.batch], error)

    def _answer(self, hanging: dict[tuple[int, float], Resident | None]) -> None:
        """Fail what cannot run beside the work that hangs; let all run again that could not and now can."""
        assert self.hang is not None
        residents = [resident for resident in hanging.values() if resident is not None]
        for returned in self._hanging.values():
            if returned is not None and returned not in residents:
                returned.hang = None
        self._hanging = hanging
        if hanging and not self._threads.can_begin(beside=len(hanging)):
            if self._threads.refusal is None:
                self._threads.abandon(self.hang)
            return
        self._threads.resume(self.hang)
        if hanging:
            self._threads.give_up({resident.spec.id for resident in residents}, self.hang)
        else:
            _log.warning("what hung has returned: the device works again")
            self.hang = None
