"""Decoding in a process that can be killed: the same pictures and errors, and a killed decode is one image's alone."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
from PIL import Image

from encoders.contract.errors import ImageError, UndecodableImage
from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize
from encoders.images.decode import decode
from encoders.images.price import Price, price
from encoders.images.process import COMMAND, DecodeProcess
from tests.encoders.images.files import CASES, encoded, seeds, with_scans
from tests.support.paths import ROOT
from tests.support.photographs import photograph

MAX_PIXELS = 10**8
ANY = Preprocessing((0, 0, 0), (1, 1, 1))
GENEROUS = Price(is_plain=False, decode_bytes=10**9, nbytes=10**9, work=1, cpu_s=30)
PICTURE = encoded(photograph("chelsea"), "BMP")


@pytest.fixture
def apart() -> Iterator[DecodeProcess]:
    process = DecodeProcess()
    yield process
    process.close()


def outcome(process: DecodeProcess | None, file: bytes) -> tuple[str, object]:
    """The picture's pixels, or the error, decoded in the process or here."""
    try:
        if process is None:
            image = decode(file, max_pixels=MAX_PIXELS, at_least=64)
        else:
            cost = price(file, ANY, ImageSize(32, 32), max_pixels=MAX_PIXELS)
            image = process.decode(file, price=cost, max_pixels=MAX_PIXELS, at_least=64)
    except ImageError as error:
        return type(error).__name__, (str(error), error.facts)
    assert image.mode == "RGB"
    return "image", np.asarray(image).tobytes()


def test_pictures_and_errors_are_those_of_a_decode_here(apart: DecodeProcess) -> None:
    """Of every format and oddity, within the memory and time of its price."""
    files = [*seeds().values(), *(path.read_bytes() for path in sorted(CASES.iterdir())), b"", b"%PDF-1.7"]
    files += [encoded(Image.new("RGB", (1500, 1000), "red"), kind) for kind in ("PNG", "TIFF", "GIF", "AVIF")]
    kinds = set()
    for file in files:
        mine, theirs = outcome(apart, file), outcome(None, file)
        assert mine == theirs
        kinds.add(mine[0])
    assert kinds == {"image", "EmptyImage", "NotAnImage", "UnsupportedImage", "UndecodableImage"}


def test_a_decode_that_takes_more_memory_than_its_price_fails_alone(apart: DecodeProcess) -> None:
    large = encoded(Image.new("L", (12_000, 8_000)), "TIFF", compression="tiff_adobe_deflate")
    little = Price(is_plain=False, decode_bytes=0, nbytes=0, work=1, cpu_s=30)
    with pytest.raises(UndecodableImage, match="more memory than its header announces"):
        apart.decode(large, price=little, max_pixels=MAX_PIXELS)
    assert apart.decode(PICTURE, price=GENEROUS, max_pixels=MAX_PIXELS).size == photograph("chelsea").size


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of processor time")
def test_a_decode_that_takes_more_time_than_its_price_is_killed_alone(apart: DecodeProcess) -> None:
    """A progressive JPEG of 20,000 empty scans: the picture of 0.2 megapixels would take many seconds."""
    jpeg = with_scans(encoded(photograph("chelsea").resize((2000, 1500)), "JPEG", progressive=True), 20_000)
    quick = Price(is_plain=False, decode_bytes=10**9, nbytes=10**9, work=1, cpu_s=1)
    with pytest.raises(UndecodableImage, match="it took more than 1 s of processor time") as killed:
        apart.decode(jpeg, price=quick, max_pixels=MAX_PIXELS)
    assert killed.value.facts["format"] == "JPEG"
    assert apart.decode(PICTURE, price=GENEROUS, max_pixels=MAX_PIXELS).size == photograph("chelsea").size


SAYS = "import sys; sys.stdout.write('{}\\n'); sys.stdout.flush(); sys.stdin.buffer.readline(); "
"""A worker that is ready, and reads a question."""


def test_a_decode_that_hangs_is_killed() -> None:
    apart = DecodeProcess((sys.executable, "-c", SAYS + "import threading; threading.Event().wait()"))
    with pytest.raises(UndecodableImage, match="it was not decoded within 0 s"):
        apart.decode(PICTURE, price=Price(False, 0, 0, 1, cpu_s=0), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("end", ["import os; os.abort()", "sys.exit(0)", "print('{\"size\": [9, 9]}')"])
def test_a_decoder_that_crashes_fails_its_image(end: str) -> None:
    apart = DecodeProcess((sys.executable, "-c", SAYS + end))
    for _ in range(2):
        with pytest.raises(UndecodableImage, match="The BMP image cannot be decoded: its decoder crashed"):
            apart.decode(PICTURE, price=GENEROUS, max_pixels=MAX_PIXELS)


def test_a_decode_that_nobody_waits_for_is_killed_and_the_next_is_not(apart: DecodeProcess) -> None:
    for _ in range(2):
        with pytest.raises(UndecodableImage):
            apart.decode(PICTURE, price=GENEROUS, max_pixels=MAX_PIXELS, is_wanted=lambda: False)
        apart.kill()  # too late, or too early: it is at no decode
        assert apart.decode(PICTURE, price=GENEROUS, max_pixels=MAX_PIXELS).size == photograph("chelsea").size
        apart.kill()


def test_a_process_that_cannot_start_says_why() -> None:
    apart = DecodeProcess((sys.executable, "-c", "raise SystemExit('no such library')"))
    with pytest.raises(OSError, match="ended with 1 as it started: no such library"):
        apart.decode(PICTURE, price=GENEROUS, max_pixels=MAX_PIXELS)


def test_it_ends_with_its_input_and_prints_nothing() -> None:
    """Also what libtiff has to say of a broken file."""
    broken = encoded(photograph("chelsea"), "TIFF", compression="tiff_lzw")
    broken = broken[:2000] + bytes(3000) + broken[5000:]
    question = b'{"length": %d, "max_pixels": 1000000, "at_least": null, "decode_bytes": 9999999, "cpu_s": 9}\n'
    done = subprocess.run(
        [*COMMAND, str(os.getpid())], input=question % len(broken) + broken, cwd=ROOT, capture_output=True, check=True
    )
    ready, answer = done.stdout.splitlines()
    assert b"ready" in ready
    assert b"UndecodableImage" in answer
    assert done.stderr == b""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when it next reads")
def test_it_ends_with_its_parent() -> None:
    """Whatever it is at: here it waits, and the pipe to it is held open by this process."""
    held, write = os.pipe()
    parent = (
        "import os, signal, subprocess, sys\n"
        "child = subprocess.Popen([*sys.argv[2:], str(os.getpid())], stdin=int(sys.argv[1]), stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", parent, str(held), *COMMAND], cwd=ROOT, pass_fds=[held], capture_output=True, check=False
    )
    try:
        psutil.Process(int(done.stdout)).wait(30)
    except psutil.NoSuchProcess:
        pass
    finally:
        os.close(held)
        os.close(write)
