"""One batch through an encoder. A failure is kept to the items that cause it. Runs on a device thread.

A forward that failed is split in halves until the items that cause the failure stand alone: they fail, their neighbours
are answered. So is a forward that the device has no room for. Halves run one after the other. This module translates
all that an encoder raises into EncoderFailed.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from encoders.contract.encoder import Encoder, Forward
from encoders.contract.errors import EncoderFailed, OutOfMemory
from encoders.contract.values import Encoded, Floats
from service.memory.measurement import Measurement
from service.memory.shape import ImageShape, Shape

_log = logging.getLogger(__name__)

Outcome: TypeAlias = Encoded | Floats | EncoderFailed
"""One item's row, or the error that stands for it."""


class Batch:
    """Items of one shape, given to their encoder when the batch is made.

    is_done: the device has finished, so no other batch can be begun behind this one. outcomes: one an item, in order,
    once they are known. worked: whether any item has a row. peak: bytes that the forward took, if it was measured.
    on_failure: called after each forward that failed, on the device thread; others may follow.
    """

    def __init__(
        self,
        encoder: Encoder,
        shape: Shape,
        payloads: Sequence[Any],
        measurement: Measurement,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._encoder = encoder
        self._shape = shape
        self._payloads = payloads
        self._measurement = measurement
        self._on_failure = on_failure
        self.outcomes: list[Outcome] | None = None
        self.worked = False
        self.peak: int | None = None
        self._failure: EncoderFailed | None = None
        self._forward: Forward | _Texts | None = None
        self.is_done = True
        self._try(self._begin)

    def wait(self) -> list[Outcome]:
        """The outcomes, once they are there."""
        if self._failure is None and self.outcomes is None:
            self._try(self._take_rows)
        if self.outcomes is not None:
            return self.outcomes
        # Outside the except block, and with the tracebacks gone, so that the failed attempt's tensors are free by now.
        failure, count = self._failure, len(self._payloads)
        assert failure is not None
        if isinstance(failure, OutOfMemory):
            self._measurement.ran_out(self._shape, count)
        outcomes: list[Outcome] = [failure]
        if count > 1:
            outcomes = []
            for half in (self._payloads[: count // 2], self._payloads[count // 2 :]):
                batch = Batch(self._encoder, self._shape, half, self._measurement, self._on_failure)
                outcomes += batch.wait()
                self.worked = self.worked or batch.worked
        self.outcomes = outcomes
        return outcomes

    def _begin(self) -> None:
        """Give the items to the encoder; take the rows if they are there already."""
        payloads, shape = self._payloads, self._shape
        stacked = payloads[0][None] if len(payloads) == 1 else np.stack(payloads)
        is_settled = shape in self._measurement.settled
        with nullcontext() if is_settled else self._measurement.forward(shape, len(payloads)) as reading:
            if isinstance(shape, ImageShape):
                self._forward = self._encoder.begin(stacked, shape.outputs)
            else:
                self._forward = _Texts(self._encoder.encode_text(stacked))
        self.peak = None if reading is None else reading.peak
        self.is_done = self._forward.is_done
        if self.is_done:
            self._take_rows()

    def _take_rows(self) -> None:
        """Raises what the encoder raises, or EncoderFailed if it does not give a row for each item."""
        forward, self._forward = self._forward, None  # let go of: it may hold its outputs on the device
        assert forward is not None
        rows, shape, spec, count = forward.wait(), self._shape, self._encoder.spec, len(self._payloads)
        if isinstance(shape, ImageShape):
            wrong = spec.mismatch(rows, images=count, size=shape.size, outputs=shape.outputs)
        else:
            wrong = spec.mismatch_of_texts(rows, texts=count)
        if wrong is not None:
            raise EncoderFailed(f"{spec.id} gave rows that its spec does not announce: {wrong}.", model=spec.id)
        outcomes: list[Outcome] = []
        if isinstance(rows, Encoded):
            for index in range(count):
                tokens = None if rows.tokens is None else rows.tokens[index]
                pooled = None if rows.pooled is None else rows.pooled[index]
                outcomes.append(Encoded(rows.grid, rows.prefix_tokens, tokens, pooled))
        else:
            outcomes += list(rows)
        self.outcomes, self.worked = outcomes, True

    def _try(self, step: Callable[[], None]) -> None:
        """Take a step, or keep how it failed."""
        count, model = len(self._payloads), self._shape.model
        try:
            step()
            return
        except EncoderFailed as error:
            _log.warning("a forward of %d failed: %s", count, error, exc_info=count == 1)
            failure = error
        except Exception as error:
            _log.error("a forward of %d failed: %s", count, model, exc_info=count == 1)
            failure = EncoderFailed(f"{model} failed with {type(error).__name__}.", model=model)
            if isinstance(error, MemoryError):
                failure = OutOfMemory(encoder=model)
            failure.__cause__ = error
        self._failure = _without_frames(failure)
        self._forward = None
        self._on_failure()


@dataclass(frozen=True)
class _Texts:
    """A forward of texts: done when it returns."""

    rows: Floats
    is_done: bool = True

    def wait(self) -> Floats:
        return self.rows


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
