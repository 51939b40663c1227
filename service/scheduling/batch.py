"""One batch through an encoder. A failure is kept to the items that cause it. Runs on a device thread.

A forward that failed is split in halves until the items that cause the failure stand alone: they fail, their neighbours
are answered. So is a forward that the device has no room for. Halves run one after the other. This module translates
all that an encoder raises into EncoderFailed.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from encoders.contract.encoder import Encoder, Forward
from encoders.contract.errors import EncoderFailed, OutOfMemory
from encoders.contract.values import Encoded, Floats
from service.memory.measurement import Measurement
from service.memory.shape import ImageShape, Shape

R = TypeVar("R")
_log = logging.getLogger(__name__)

Outcome: TypeAlias = Encoded | Floats | EncoderFailed
"""What became of one item: its row, or why there is none."""


class Batch:
    """Items of one shape at their encoder. Made by `begin`.

    is_done: the device has finished with them, or never began: nothing can be begun behind.
    """

    def __init__(self, encoder: Encoder, shape: Shape, payloads: Sequence[Any], measurement: Measurement) -> None:
        self._encoder = encoder
        self._shape = shape
        self._payloads = payloads
        self._measurement = measurement
        self._begun: Forward | _Texts | EncoderFailed = self._try(self._begin)
        self.is_done = isinstance(self._begun, EncoderFailed) or self._begun.is_done

    def wait(self) -> list[Outcome]:
        """One outcome an item, in order. Called once."""
        rows = self._begun if isinstance(self._begun, EncoderFailed) else self._try(self._rows)
        if not isinstance(rows, EncoderFailed):
            return rows
        # Outside the except block, and with the tracebacks gone, so that the failed attempt's tensors are free by now.
        count = len(self._payloads)
        if isinstance(rows, OutOfMemory):
            self._measurement.ran_out(self._shape, count)
        if count == 1:
            return [rows]
        self._begun = rows  # and the forward's own
        first, second = self._payloads[: count // 2], self._payloads[count // 2 :]
        return [
            outcome
            for half in (first, second)
            for outcome in Batch(self._encoder, self._shape, half, self._measurement).wait()
        ]

    def _begin(self) -> "Forward | _Texts":
        payloads, shape = self._payloads, self._shape
        stacked = payloads[0][None] if len(payloads) == 1 else np.stack(payloads)
        with self._measurement.reading(shape) as reading:
            if isinstance(shape, ImageShape):
                forward: Forward | _Texts = self._encoder.begin(stacked, shape.outputs)
            else:
                forward = _Texts(self._encoder.encode_text(stacked))
        self._measurement.ran(shape, len(payloads), reading.peak)
        return forward

    def _rows(self) -> list[Outcome]:
        assert not isinstance(self._begun, EncoderFailed)
        rows = self._begun.wait()
        count = len(self._payloads)
        if len(rows) != count:
            raise EncoderFailed(
                f"{self._shape.model} gave {len(rows)} rows for {count} inputs.", model=self._shape.model
            )
        if not isinstance(rows, Encoded):
            return list(rows)
        return [rows.row(index) for index in range(count)]

    def _try(self, step: Callable[[], R]) -> R | EncoderFailed:
        """What a step gives, or how it failed."""
        count, model = len(self._payloads), self._shape.model
        try:
            return step()
        except EncoderFailed as error:
            _log.warning("a forward of %d failed: %s", count, error, exc_info=count == 1)
            return _without_frames(error)
        except Exception as error:
            _log.error("a forward of %d failed: %s", count, model, exc_info=count == 1)
            failed = EncoderFailed(f"{model} failed with {type(error).__name__}.", model=model)
            failed.__cause__ = error
            return _without_frames(failed)


class _Texts:
    """A forward of texts: done when it returns."""

    is_done = True

    def __init__(self, rows: Floats) -> None:
        self._rows = rows

    def wait(self) -> Floats:
        return self._rows


def _without_frames(error: EncoderFailed) -> EncoderFailed:
    """The error without the tracebacks of all that led to it: their frames hold the forward's tensors."""
    links: list[BaseException | None] = [error]
    seen: set[int] = set()
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            links += [link.__cause__, link.__context__]
    return error
