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

    def arrived(self, shape: Shape, *, expected: float, in_line: int) -> bool:
        """As Patience.arrived."""
        super().arrived(shape, expected=expected, in_line=in_line)
        return in_line == self._full

    def wait_s(self, shape: Shape, *, waiting: int, enough: int, forward_s: float, since: float, now: float) -> float:
        """As Patience.wait_s."""
        return 0.0 if waiting >= self._full else max(0.0, since + self._wait_s - now)


if __name__ == "__main__":
    wait_ms, full, *rest = sys.argv[1:]
    patient = partial(FixedWait, wait_s=float(wait_ms) / 1000, full=int(full))
    setattr(service.engine.engine, "Patience", patient)  # noqa: B010  # mypy would not have it assigned
    sys.exit(main(rest))
