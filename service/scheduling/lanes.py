"""Policy: on a CPU several forwards run side by side, each in a lane with its part of the cores. Pure.

A forward on all cores waits at every product for the core that decodes an image or serves a request. So each lane
computes on its part. A forward that needs more than a lane's part of the memory runs alone, and so do calls. A single
item that is all there is runs alone too, on all cores, for its answer comes sooner. It always runs in the first lane:
GNU's OpenMP keeps a team for every thread that ever had one, and once all teams together are larger than the machine,
their threads sleep at barriers.

Brief forwards are not run side by side: their lanes would take turns at the interpreter, at each of the forward's
hundred operations, with each other and with the event loop. One lane of larger batches does the same work with less.

A GPU has one lane, and the rules come to nothing.
"""

from collections.abc import Callable, Mapping

ENOUGH = 32
"""Images, in all batches side by side, from which on larger batches are hardly faster on a CPU."""
BRIEF_S = 0.02
"""Seconds, below which a forward is brief."""


class Lanes:
    """The lanes and who is in them. Used under the device threads' lock.

    number: forwards side by side, at most. take_cores: called on a lane's thread when its part of the cores changes;
    from then on the thread computes on that part, 1 being all of them. brief_s: seconds, below which a forward is
    brief. enough: items, in all batches side by side, from which on larger batches are hardly faster.
    """

    def __init__(
        self,
        number: int = 1,
        *,
        take_cores: Callable[[int], None] = lambda part: None,
        brief_s: float = 0.0,
        enough: int = ENOUGH,
    ) -> None:
        self.number = number
        self.take_cores = take_cores
        self._brief_s = brief_s
        self._enough = enough
        self.busy = 0
        """How many lanes are at work."""
        self.next = 0
        """The free lane of the lowest number, which takes the next work; `number` if none is free."""
        self.is_alone = False
        """Whether nothing may begin beside the work that runs."""
        self._entered: dict[int, float] = {}

    def enter(self, lane: int, *, now: float, alone: bool) -> int:
        """The lane begins work; gives the part of the cores it is to take."""
        self._entered[lane] = now
        self._count()
        self.is_alone = alone
        return 1 if alone else self.number

    def go_on(self, lane: int, *, now: float) -> None:
        """The lane begins the next forward without a pause."""
        self._entered[lane] = now

    def leave(self, lane: int) -> bool:
        """The lane is free again; False if it was free already."""
        if self._entered.pop(lane, None) is None:
            return False
        self._count()
        self.is_alone = self.is_alone and self.busy > 0
        return True

    def _count(self) -> None:
        self.busy = len(self._entered)
        self.next = 0
        while self.next in self._entered:
            self.next += 1

    @property
    def entered(self) -> Mapping[int, float]:
        """The lanes at work, and when each began what it is at."""
        return self._entered

    def abreast(self, forward_s: float) -> int:
        """How many forwards run side by side that take so long."""
        return 1 if forward_s < self._brief_s else self.number

    def enough(self, forward_s: float) -> int:
        """Items from which on a batch that runs beside its like is hardly faster for being larger."""
        return self._enough // self.abreast(forward_s)

    def share(self, waiting: int, *, forward_s: float) -> int:
        """How many of a line's items one free lane takes. forward_s: that the last such forward took.

        Its part, whether the other lanes are free or at work. If it took all, the last would wait for a long batch, and
        those who come next would wait behind it while the other lane stands idle.
        """
        return -(-waiting // self.abreast(forward_s))
