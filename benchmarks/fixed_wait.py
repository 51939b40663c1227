"""visiontower with another batching policy, for comparison: `python -m benchmarks.fixed_wait WAIT_MS FULL serve ...`.

A batch is run when its oldest item has waited WAIT_MS, or when FULL of them are there: what most servers call dynamic
batching; with a WAIT_MS of 0 it waits for nothing. The service itself has one policy (service/batching.py), so this one
lives here, in a Batcher that does not take its next batch before it is ripe.
"""

import sys
from functools import partial
from typing import Any

import service.engine.engine
from service.cli.main import main
from service.scheduling.device_threads import Batcher


class PatientBatcher(Batcher):
    """Batcher, but for when it takes a batch."""

    def __init__(self, *, wait_s: float, full: int, **options: Any) -> None:
        super().__init__(**{**options, "shares_cores": False})
        self._wait_s = wait_s
        self._full = full

    def _due_in(self, lane: int) -> float | None:
        due_in = super()._due_in(lane)
        if due_in != 0 or self._calls or len(self._queue) >= self._full:
            return due_in
        since = (self._queue.oldest_since(model) for model in self._encoders)
        return max(0.0, min(at for at in since if at is not None) + self._wait_s - self._clock())


if __name__ == "__main__":
    wait_ms, full, *rest = sys.argv[1:]
    patient = partial(PatientBatcher, wait_s=float(wait_ms) / 1000, full=int(full))
    setattr(service.engine.engine, "Batcher", patient)  # noqa: B010  # mypy would not have it assigned
    sys.exit(main(rest))
