"""What a request of the small model takes of a core, step by step, at the load of 32 callers.

    python -m benchmarks.costs --work small

A server whose steps' functions are timed is asked in a closed loop. Times are processor time of the thread that takes
the step, so other programs and waiting for the interpreter disturb them little; a step has what is left without the
steps inside it. The rest is what no step names: the event loop, the threads' waking, the timing itself.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from functools import wraps
from importlib import import_module
from inspect import iscoroutinefunction
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.load import Usage, requests
from benchmarks.servers import OURS, running
from benchmarks.works import FOLDER, WORKS

STEPS = {
    "HTTP, read": ("service.run.connection:Connection.data_received",),
    "HTTP, answer": ("uvicorn.protocols.http.httptools_impl:RequestResponseCycle.send",),
    "ASGI": ("uvicorn.protocols.http.httptools_impl:RequestResponseCycle.run_asgi",),
    "middleware": (
        "service.http.middleware.observe:Observe.__call__",
        "service.http.middleware.cross_site:RefuseCrossSite.__call__",
    ),
    "metrics": ("service.telemetry.metrics:Metrics.request", "service.telemetry.metrics:Metrics.answered"),
    "exchange": ("service.http.exchange:Dispatch.__call__",),
    "body": ("service.http.exchange:Exchange._incoming",),
    "options": tuple(f"service.http.protocols.native.requests:{name}" for name in ("parse", "read", "choose")),
    "engine": ("service.engine.engine:Engine.embed",),
    "image": ("service.engine.images:Images.encode",),
    "price": ("service.engine.images:Images._price",),
    "to a decoding thread": (
        "service.engine.decoding:Decoding.submit",
        "service.scheduling.device_threads:DeviceThreads.expect",
    ),
    "decode": ("encoders.images.decode:decode",),
    "preprocess": ("encoders.runtime.torch_encoder:TorchEncoder.preprocess",),
    "into the queue": ("service.scheduling.device_threads:DeviceThreads.settle",),
    "next batch": ("service.scheduling.device_threads:DeviceThreads._next",),
    "forward": ("encoders.runtime.torch_encoder:TorchEncoder.begin",),
    "batch, before and after": ("service.scheduling.device_threads:DeviceThreads._run",),
    "rows to the event loop": ("service.scheduling.device_threads:_deliver",),
    "row as asked": ("service.engine.engine:embeddings",),
    "write": tuple(
        f"service.http.protocols.native.answers:{name}"
        for name in ("_entries", "timing_ms", "server_timing", "written")
    ),
}
"""Functions by step."""

_spent: Counter[str] = Counter()
_inside = threading.local()


def _enter() -> None:
    stack = getattr(_inside, "stack", None)
    if stack is None:
        stack = _inside.stack = []
    stack.append([time.thread_time(), 0.0])


def _leave(step: str) -> None:
    began, others = _inside.stack.pop()
    took = time.thread_time() - began
    _spent[step] += took - others
    if _inside.stack:
        _inside.stack[-1][1] += took


class _Turns:
    """A coroutine whose turns are timed."""

    def __init__(self, step: str, coroutine: Any) -> None:
        self._step, self._coroutine = step, coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        sent, error = None, None
        while True:
            _enter()
            try:
                given = self._coroutine.send(sent) if error is None else self._coroutine.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                _leave(self._step)
            error = None
            try:
                sent = yield given
            except BaseException as thrown:
                error = thrown


def _timed(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
    if iscoroutinefunction(function):

        @wraps(function)
        async def turns(*args: Any, **options: Any) -> Any:
            return await _Turns(step, function(*args, **options))

        return turns

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        _enter()
        try:
            return function(*args, **options)
        finally:
            _leave(step)

    return call


def _serve(words: list[str]) -> None:
    """The server, its steps timed. At SIGUSR1 it writes what was spent so far."""
    for step, names in STEPS.items():
        for name in names:
            module, _, path = name.partition(":")
            *owners, last = path.split(".")
            owner = import_module(module)
            for each in owners:
                owner = getattr(owner, each)
            setattr(owner, last, _timed(step, getattr(owner, last)))
            for imported in list(sys.modules.values()):  # from X import function
                if not owners and getattr(imported, last, None) is getattr(owner, last).__wrapped__:
                    setattr(imported, last, getattr(owner, last))

    def write(number: int, frame: FrameType | None) -> None:
        file = FOLDER / "costs.json"
        file.with_suffix(".new").write_text(json.dumps(_spent))
        file.with_suffix(".new").rename(file)

    signal.signal(signal.SIGUSR1, write)
    from service.cli.main import main as command

    command(words)


def _read(pid: int) -> Counter[str]:
    file: Path = FOLDER / "costs.json"
    file.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    while not file.exists():
        time.sleep(0.01)
    return Counter(json.loads(file.read_text()))


def measure(work: str, *, number: int, concurrency: int, flags: list[str]) -> dict[str, float]:
    """Microseconds a request by step; `rest` and `all` too."""
    with running(OURS, WORKS[work], flags=flags, program=[sys.executable, "-m", "benchmarks.costs"]) as target:
        asyncio.run(requests(target, number // 4, concurrency=concurrency))
        before, cpu_s = _read(target.pid), Usage.of(target.pid).cpu_s
        asyncio.run(requests(target, number, concurrency=concurrency))
        after, cpu_s = _read(target.pid), Usage.of(target.pid).cpu_s - cpu_s
    found = {step: 1e6 * (after[step] - before[step]) / number for step in STEPS}
    whole = 1e6 * cpu_s / number
    return {**found, "rest": whole - sum(found.values()), "all": whole}


def main() -> None:
    """A table."""
    if sys.argv[1:2] == ["serve"]:
        _serve(sys.argv[1:])
        return
    parser = argparse.ArgumentParser("python -m benchmarks.costs", description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=WORKS, default="small")
    parser.add_argument("--requests", type=int, default=8000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--flags", type=str.split, default=[], help="of serve")
    a = parser.parse_args()
    found = measure(a.work, number=a.requests, concurrency=a.concurrency, flags=a.flags)
    print("| step | us of a core a request |\n|---|---|")
    for step, microseconds in found.items():
        print(f"| {step} | {microseconds:.0f} |")


if __name__ == "__main__":
    main()
