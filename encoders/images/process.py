"""Decoding in a process that can be killed, for images whose price is not bounded by their pixels."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any

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
_MOST_SAID = 2000


class DecodeProcess:
    """One process, started with the first image, and again after it was killed. One thread decodes, any may kill."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        """command: what to run; the parent's id is added to it."""
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

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
        process = self._process or self._start()
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            process.kill()

        if not is_wanted():
            process.kill()
        watch = threading.Timer(_WALL * price.cpu_s, give_up)
        watch.daemon = True
        watch.start()
        try:
            question = {
                "length": len(image_bytes),
                "max_pixels": max_pixels,
                "at_least": at_least,
                "decode_bytes": price.decode_bytes,
                "cpu_s": price.cpu_s,
            }
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.write(image_bytes)
            process.stdin.flush()
            answer = process.stdout.readline()
            if not answer.endswith(b"\n"):
                raise EOFError
            return _image(json.loads(answer), process.stdout)
        except (OSError, EOFError):  # it has ended
            self.close()
            name = format_of(image_bytes) or "image"
            raise UndecodableImage(
                name, _why(process.returncode, price, limit_s=_WALL * price.cpu_s if is_late.is_set() else None)
            ) from None
        finally:
            watch.cancel()

    def kill(self) -> None:
        """End the process, and with it the decode that it is at. On any thread."""
        process = self._process
        if process is not None:
            process.kill()

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


def _image(answer: dict[str, Any], pipe: IO[bytes]) -> Image.Image:
    """Raises ImageError, as the worker did; EOFError if it ended."""
    if "error" in answer:
        error: ImageError = ImageError.__new__(_ERRORS[answer["error"]])
        VisiontowerError.__init__(error, answer["message"], **answer["facts"])
        raise error
    image = Image.new("RGB", tuple(answer["size"]))
    for box in bands(image):
        size = box[2], box[3] - box[1]
        band = pipe.read(3 * size[0] * size[1])
        if len(band) < 3 * size[0] * size[1]:
            raise EOFError
        image.paste(Image.frombytes("RGB", size, band), box)
    return image


def _why(status: int | None, price: Price, *, limit_s: float | None) -> str:
    if limit_s is not None:
        return f"it was not decoded within {limit_s:,.0f} s"
    if status == -24:  # SIGXCPU
        return f"it took more than {price.cpu_s} s of processor time"
    return "its decoder crashed, or was killed"
