"""Seconds from `visiontower serve` with the demo encoders to its first answer."""

import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from statistics import median

from benchmarks.servers import OURS, SERVERS, free_port
from benchmarks.works import WORKS

_TIMES = 5
_PAUSE_S = 0.02
_LONGEST_S = 120.0


@dataclass(frozen=True)
class Start:
    """imports: of the libraries alone, in a Python that does nothing else."""

    first_answer: list[float]
    imports: list[float]

    def __str__(self) -> str:
        return (
            f"first answer of the demo encoders after {median(self.first_answer):.2f} s "
            f"({min(self.first_answer):.2f} to {max(self.first_answer):.2f}), of which importing torch and open_clip "
            f"takes {median(self.imports):.2f} s by itself; medians of {_TIMES}, in turn"
        )


def measure() -> Start:
    """One after the other, the first of each not counted: it warms the disk's cache. Raises RuntimeError."""
    start = Start([], [])
    for round in range(_TIMES + 1):
        first_answer, imports = _first_answer(), _imports()
        if round:
            start.first_answer.append(first_answer)
            start.imports.append(imports)
    return start


def _imports() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch, open_clip"], check=True)
    return time.monotonic() - started


def _first_answer() -> float:
    port = free_port()
    url = f"http://127.0.0.1:{port}{SERVERS[OURS].path}"
    asked = urllib.request.Request(url, WORKS["small"].pictures[0], {"Content-Type": "image/jpeg"})
    line = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--log-level", "warning"]
    started = time.monotonic()
    process = subprocess.Popen(line)
    try:
        while process.poll() is None and time.monotonic() < started + _LONGEST_S:
            try:
                with urllib.request.urlopen(asked, timeout=_LONGEST_S):
                    return time.monotonic() - started
            except OSError:
                time.sleep(_PAUSE_S)
        raise RuntimeError("the server did not come up")
    finally:
        process.terminate()
        process.wait()
