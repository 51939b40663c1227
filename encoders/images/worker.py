"""A process that decodes images, and may be killed while it does: `python -m encoders.images.worker PARENT`.

It reads questions from its standard input and writes answers to its standard output until its input ends; process.py
is the other end. A question is a line of JSON and the file; an answer is a line of JSON and, of an image, its RGB
bytes. What decoders print goes nowhere. On Linux it ends with its parent.
"""

import ctypes
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from PIL import Image

from encoders.contract.errors import ImageError, UndecodableImage
from encoders.images.decode import decode
from encoders.images.preprocess import bands

if sys.platform != "win32":
    import resource

_NICENESS = 5
"""Forwards and plain images go first."""
_PR_SET_PDEATHSIG = 1
_SLACK = 64 * 1024 * 1024
_SLACK_A_CORE, _MOST_CORES = 16 * 1024 * 1024, 16
"""Bytes beside the price: decoders start a thread a core, each with its stack."""


def main() -> None:
    """Answer until the input ends. The argument is the parent's process id."""
    if sys.platform != "win32":
        _end_with(int(sys.argv[1]))
        os.nice(_NICENESS)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the server's to obey
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    _say(answers, {"ready": True})
    os.dup2(nowhere, 2)
    trim = _trim()
    while line := sys.stdin.buffer.readline():
        question = json.loads(line)
        _answer(question, sys.stdin.buffer.read(question["length"]), answers)
        trim()


def _answer(question: dict[str, Any], file: bytes, answers: BinaryIO) -> None:
    try:
        with _limits(question["decode_bytes"], question["cpu_s"]):
            image = _decoded(question, file)
    except ImageError as error:
        said = {"error": type(error).__name__, "message": str(error), "facts": error.facts}
        _say(answers, said)
        return
    _say(answers, {"size": image.size})
    for box in bands(image):
        answers.write(image.crop(box).tobytes())
    answers.flush()


def _decoded(question: dict[str, Any], file: bytes) -> Image.Image:
    try:
        return decode(file, max_pixels=question["max_pixels"], at_least=question["at_least"])
    except UndecodableImage as error:
        if isinstance(error.__cause__, MemoryError):
            name = str(error.facts["format"])
            raise UndecodableImage(name, "it needs more memory than its header announces") from error
        raise


def _say(answers: BinaryIO, said: dict[str, Any]) -> None:
    answers.write(json.dumps(said, default=str).encode() + b"\n")
    answers.flush()


@contextmanager
def _limits(decode_bytes: int, cpu_s: int) -> Iterator[None]:
    """Memory over the limit is a MemoryError here, processor time over it the end of the process."""
    if sys.platform == "win32":
        yield
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    limits = {resource.RLIMIT_CPU: int(used.ru_utime + used.ru_stime) + cpu_s + 1}
    if (data := _data_bytes()) is not None:
        limits[resource.RLIMIT_DATA] = (
            data + decode_bytes + _SLACK + _SLACK_A_CORE * min(_MOST_CORES, os.cpu_count() or 1)
        )
    before = {name: resource.getrlimit(name) for name in limits}
    for name, limit in limits.items():
        soft, hard = before[name]
        given = [each for each in (limit, soft) if each != resource.RLIM_INFINITY]
        resource.setrlimit(name, (min(given), hard))
    try:
        yield
    finally:
        for name, limits_before in before.items():
            resource.setrlimit(name, limits_before)


def _data_bytes() -> int | None:
    """Bytes that the kernel counts for RLIMIT_DATA; None where it does not say."""
    with suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"VmData:"):
                return int(line.split()[1]) * 1024
    return None


def _end_with(parent: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before it could be told of
        sys.exit(0)


def _trim() -> Callable[[], object]:
    """What gives freed memory back to the system."""
    with suppress(OSError, AttributeError, TypeError):
        trim = ctypes.CDLL(None).malloc_trim
        return lambda: (gc.collect(), trim(0))
    return gc.collect


if __name__ == "__main__":
    main()
