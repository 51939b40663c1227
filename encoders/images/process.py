"""Decoding in a process that can be killed, for images whose price is not bounded by their pixels."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from PIL import Image

from encoders.contract.errors import (
    EmptyImage,
    ImageError,
    ImageTooLarge,
    NotAnImage,
    UndecodableImage,
    UnsupportedImage,
    VisiontowerError,
)
from encoders.images.preprocess import bands
from encoders.images.price import Price
from encoders.images.signatures import format_of

COMMAND = (sys.executable, "-m", "encoders.images.worker")
_ERRORS = {each.__name__: each for each in (EmptyImage, ImageTooLarge, NotAnImage, UndecodableImage, UnsupportedImage)}
_WALL = 8
"""A decode is given up after so many times its processor time: it hangs, or the machine is far too busy for it."""
_ENDING_S = 5
_MOST_SAID = 2000
_SIGXCPU = 24


class DecodeProcess:
    """One process, started with the first image, and again after it was killed. One thread decodes, any may kill."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        """command: what to run; the parent's id is added to it."""
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_busy = False  # under _lock, as what follows
        self._is_killed = False

    def decode(
        self,
        image_bytes: bytes,
        *,
        price: Price,
        max_pixels: int,
        at_least: int | None = None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Image.Image:
        """As decode.decode. The price is held to: UndecodableImage if the decode takes more.

        is_wanted: asked once the process runs; from then on `kill` ends the decode, with UndecodableImage. Raises
        OSError if no process can be started.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._start()
        with self._lock:
            self._is_busy = True
        limit_s = _WALL * price.cpu_s
        watch = threading.Timer(limit_s, self.kill)
        watch.daemon = True
        watch.start()
        try:
            if not is_wanted():
                self.kill()
            question = {
                "length": len(image_bytes),
                "max_pixels": max_pixels,
                "at_least": at_least,
                "decode_bytes": price.decode_bytes,
                "cpu_s": price.cpu_s,
            }
            return _asked(self._process, question, image_bytes)
        except ImageError:
            raise
        except (OSError, EOFError):  # it has ended
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDING_S)
            status = self._process.returncode
            self.close()
            name = format_of(image_bytes) or "image"
            raise UndecodableImage(name, _why(status, price, limit_s, is_killed=self._is_killed)) from None
        except BaseException:  # what it says next would be of this image still
            self.close()
            raise
        finally:
            watch.cancel()
            with self._lock:
                was_killed, self._is_busy, self._is_killed = self._is_killed, False, False
            if was_killed:
                self.close()

    def kill(self) -> None:
        """End the decode that it is at, if there is one, and the process with it. On any thread."""
        with self._lock:
            if self._is_busy and self._process is not None:
                self._is_killed = True
                self._process.kill()

    def close(self) -> None:
        """End the process; wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def _start(self) -> "subprocess.Popen[bytes]":
        """Raises OSError if it cannot be started, with what it said."""
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [*self._command, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # a signal to the terminal's group is the server's to obey
            )
            assert process.stdout is not None
            if not process.stdout.readline():
                self._process = process
                self.close()
                errors.seek(0, os.SEEK_END)
                errors.seek(max(0, errors.tell() - _MOST_SAID))
                said = errors.read().decode(errors="replace").strip()
                raise OSError(f"the decoding process ended with {process.returncode} as it started: {said}")
        return process


def _asked(process: "subprocess.Popen[bytes]", question: dict[str, Any], file: bytes) -> Image.Image:
    """Raises ImageError, as the worker did; EOFError or OSError if it ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question).encode() + b"\n")
    process.stdin.write(file)
    process.stdin.flush()
    line = process.stdout.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    answer = json.loads(line)
    if "error" in answer:
        error: ImageError = ImageError.__new__(_ERRORS[answer["error"]])
        VisiontowerError.__init__(error, answer["message"], **answer["facts"])
        raise error
    image = Image.new("RGB", tuple(answer["size"]))
    for box in bands(image):
        size = box[2], box[3] - box[1]
        band = process.stdout.read(3 * size[0] * size[1])
        if len(band) < 3 * size[0] * size[1]:
            raise EOFError
        image.paste(Image.frombytes("RGB", size, band), box)
    return image


def _why(status: int | None, price: Price, limit_s: float, *, is_killed: bool) -> str:
    """status: of a process that has ended, as subprocess gives it."""
    if is_killed:
        return f"it was not decoded within {limit_s:,.0f} s"
    if status == -_SIGXCPU:
        return f"it took more than {price.cpu_s} s of processor time"
    return "its decoder crashed"
