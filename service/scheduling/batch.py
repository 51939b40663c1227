"""One batch through an encoder, with failures kept to the items that cause them. Runs on a device thread.

A failed forward is split in halves until the items that cause it stand alone: they fail, their neighbours are answered.
So is one the device has no room for. Halves run one after the other, whether the batch failed when it was begun or when
it was waited for. What an encoder raises is translated here; nothing else does.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np

from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderFailed, NonFiniteOutput, OutOfMemory
from encoders.contract.values import Encoded, Floats, Outputs
from service.scheduling.queue import BatchKey, ImageKey

R = TypeVar("R")
_log = logging.getLogger(__name__)

Outcome: TypeAlias = Encoded | Floats | EncoderFailed
"""What became of one item: its row, or why there is none."""

Begun: TypeAlias = list[Outcome] | Callable[[], list[Outcome]]
"""A batch given to its encoder: one outcome an item, in order, or what waits for them, to be called once."""


def forward(
    encoder: Encoder,
    key: BatchKey,
    payloads: Sequence[Any],
    *,
    on_out_of_memory: Callable[[int], None] = lambda batch: None,
) -> list[Outcome]:
    """As `begin`, and waited for: one outcome a payload, in order."""
    begun = begin(encoder, key, payloads, on_out_of_memory=on_out_of_memory)
    return begun if isinstance(begun, list) else begun()


def begin(
    encoder: Encoder,
    key: BatchKey,
    payloads: Sequence[Any],
    *,
    on_out_of_memory: Callable[[int], None] = lambda batch: None,
) -> Begun:
    """Give a batch to its encoder; what the encoder does at once, and every failure met so far, is dealt with.

    payloads: each uint8 [H, W, 3] for an ImageKey, int64 [context_length] for a TextKey; all of equal shape.
    on_out_of_memory: told of every batch size there was no room for, before its halves are tried.
    """

    def settle(rows: list[Outcome] | EncoderFailed) -> list[Outcome]:
        if not isinstance(rows, EncoderFailed):
            return rows
        # Outside the except block, and with the tracebacks gone, so that the failed attempt's tensors are free by now.
        if isinstance(rows, OutOfMemory):
            on_out_of_memory(len(payloads))
        if len(payloads) == 1:
            return [rows]
        middle = len(payloads) // 2
        halves = payloads[:middle], payloads[middle:]
        return [each for half in halves for each in forward(encoder, key, half, on_out_of_memory=on_out_of_memory)]

    begun = _try(partial(_begin, encoder, key, payloads), key, len(payloads))
    return (lambda: settle(_try(begun, key, len(payloads)))) if callable(begun) else settle(begun)


def _begin(encoder: Encoder, key: BatchKey, payloads: Sequence[Any]) -> Begun:
    """Raises what the encoder raises, or EncoderFailed if it does not give a row for each."""
    stacked = payloads[0][None] if len(payloads) == 1 else np.stack(payloads)
    begun = encoder.begin(stacked, key.outputs) if isinstance(key, ImageKey) else encoder.encode_text(stacked)
    count = len(payloads)
    return (lambda: _rows(begun(), key, count)) if callable(begun) else _rows(begun, key, count)


def _rows(encoded: Encoded | Floats, key: BatchKey, count: int) -> list[Outcome]:
    if len(encoded) != count:
        raise EncoderFailed(f"{key.model} gave {len(encoded)} rows for {count} inputs.", model=key.model)
    return [encoded.row(index) for index in range(count)] if isinstance(encoded, Encoded) else list(encoded)


def _try(step: Callable[[], R], key: BatchKey, count: int) -> R | EncoderFailed:
    """What one step of a forward of `count` gives, or how it failed."""
    try:
        return step()
    except EncoderFailed as error:
        _log.warning("a forward of %d failed: %s", count, error, exc_info=count == 1)
        return _without_frames(error)
    except Exception as error:
        _log.error("a forward of %d failed: %s", count, key.model, exc_info=count == 1)
        failed = EncoderFailed(f"{key.model} failed with {type(error).__name__}.", model=key.model)
        failed.__cause__ = error
        return _without_frames(failed)


def _without_frames(error: EncoderFailed) -> EncoderFailed:
    """The error without its and its causes' tracebacks: their frames hold the forward's tensors."""
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def try_out(encoder: Encoder) -> None:
    """One real forward of each half. Raises EncoderFailed or whatever the encoder raises."""
    spec = encoder.spec
    grey = np.full((1, *spec.image_size, 3), 128, dtype=np.uint8)
    results = [encoder.encode(grey, Outputs(pooled=True)).pooled]
    if spec.has_text:
        results.append(encoder.encode_text(encoder.tokenize(["a warm-up"])))
    for result in results:
        if result is None or len(result) != 1:
            raise EncoderFailed(f"{spec.id} did not answer a plain grey image with one row.", model=spec.id)
        if not is_finite(result):
            raise NonFiniteOutput(encoder=spec.id)


def works(encoder: Encoder) -> bool:
    """Whether `try_out` succeeds; a failure is logged."""
    try:
        try_out(encoder)
    except Exception:
        _log.exception("%s fails on a plain grey image", encoder.spec.id)
        return False
    return True


def is_finite(values: Floats) -> bool:
    """Whether no value is NaN or infinite. One pass that allocates nothing: NaN and infinity survive a sum."""
    with np.errstate(all="ignore"):
        if np.isfinite(np.add.reduce(values, axis=None, dtype=np.float32)):
            return True
        return bool(np.isfinite(values).all())  # finite values can also overflow the sum
