"""visiontower with another batching policy, for comparison: `python -m benchmarks.fixed_wait WAIT_MS FULL serve ...`.

A batch is run when its oldest item has waited WAIT_MS, or when FULL of them are there: most servers call this dynamic
batching. With a WAIT_MS of 0 it waits for nothing. The service has one policy (service/scheduling/patience.py), so this
one lives here, as a Patience of another kind.
"""

import sys
from functools import partial

import service.engine.engine
from service.cli.main import main
from service.memory.shape import Shape
from service.scheduling.patience import Patience


class FixedWait(Patience):
    """Waits for a time or a number, whatever is on its way."""

    def __init__(self, *, wait_s: float, full: int) -> None:
        super().__init__()
        self._wait_s = wait_s
        self._full = full
        self._is_asked = False  # whether it will be: a lane asks for how long to wait while something is coming

    def arrived(self, shape: Shape, *, expected: float, in_line: int) -> bool:
        """As Patience.arrived."""
        super().arrived(shape, expected=expected, in_line=in_line)
        if not self._is_asked:
            self._is_asked = True
            self.coming += 1
        return in_line == self._full

    def wait_s(self, shape: Shape, *, waiting: int, enough: int, forward_s: float, since: float, now: float) -> float:
        """As Patience.wait_s."""
        wait_s = 0.0 if waiting >= self._full else max(0.0, since + self._wait_s - now)
        if not wait_s and self._is_asked:
            self._is_asked = False
            self.coming -= 1
        return wait_s


if __name__ == "__main__":
    wait_ms, full, *rest = sys.argv[1:]
    patient = partial(FixedWait, wait_s=float(wait_ms) / 1000, full=int(full))
    setattr(service.engine.engine, "Patience", patient)  # noqa: B010  # mypy would not have it assigned
    sys.exit(main(rest))
