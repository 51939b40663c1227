"""visiontower with another batching policy, for comparison: `python -m benchmarks.fixed_wait WAIT_MS FULL serve ...`.

A batch is run when its oldest item has waited WAIT_MS, or when FULL of them are there: what most servers call dynamic
batching; with a WAIT_MS of 0 it waits for nothing. The service itself has one policy (service/batching.py), so this one
lives here, in a Batcher that does not take its next batch before it is ripe.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import service.core
from service.batcher import Batcher
from service.cli import main


class PatientBatcher(Batcher):
    """Batcher, but for when it takes a batch."""

    def __init__(self, *, wait_s: float, full: int, **options: Any) -> None:
        super().__init__(**{**options, "shares_cores": False})
        self._wait_s = wait_s
        self._full = full

    def _next(self) -> Callable[[], None] | None:
        with self._wake:  # a reentrant lock: the batch is taken before anybody else can come between
            while not self._stopping and not self._calls and (left := self._left()) > 0:
                self._wake.wait(None if left == float("inf") else left)
            return super()._next()

    def _left(self) -> float:
        """Seconds until a batch is ripe; infinite while nothing waits."""
        since = [at for model in self._encoders if (at := self._queue.oldest_since(model)) is not None]
        if not since:
            return float("inf")
        return 0.0 if len(self._queue) >= self._full else min(since) + self._wait_s - self._clock()


if __name__ == "__main__":
    wait_ms, full, *rest = sys.argv[1:]
    patient = partial(PatientBatcher, wait_s=float(wait_ms) / 1000, full=int(full))
    setattr(service.core, "Batcher", patient)  # noqa: B010  # mypy would not have it assigned
    sys.exit(main(rest))
