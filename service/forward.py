"""One batch through an encoder, with failures kept to the items that cause them. Runs on the device thread.

A failed forward is split in halves until the items that cause it stand alone: they fail, their neighbours are answered.
So is one the device has no room for. What an encoder raises is translated here; nothing else does.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from encoders.errors import EncoderFailed, NonFiniteOutput, OutOfMemory
from encoders.types import Encoded, Encoder, Floats, Outputs
from service.batching import BatchKey, ImageKey

_log = logging.getLogger(__name__)

Outcome: TypeAlias = Encoded | Floats | EncoderFailed
"""What became of one item: its row, or why there is none."""


def forward(
    encoder: Encoder,
    key: BatchKey,
    payloads: Sequence[Any],
    *,
    on_out_of_memory: Callable[[int], None] = lambda batch: None,
) -> list[Outcome]:
    """One outcome a payload, in order.

    payloads: each uint8 [H, W, 3] for an ImageKey, int64 [context_length] for a TextKey; all of equal shape.
    on_out_of_memory: told of every batch size there was no room for, before its halves are tried.
    """
    outcome = _try_forward(encoder, key, payloads)
    if not isinstance(outcome, EncoderFailed):
        return outcome
    # Outside the except block, and with the tracebacks gone, so that the failed attempt's tensors are free by now.
    if isinstance(outcome, OutOfMemory):
        on_out_of_memory(len(payloads))
    if len(payloads) == 1:
        return [outcome]
    middle = len(payloads) // 2
    halves = payloads[:middle], payloads[middle:]
    return [each for half in halves for each in forward(encoder, key, half, on_out_of_memory=on_out_of_memory)]


def _try_forward(encoder: Encoder, key: BatchKey, payloads: Sequence[Any]) -> list[Outcome] | EncoderFailed:
    try:
        stacked = payloads[0][None] if len(payloads) == 1 else np.stack(payloads)
        rows = encoder.encode(stacked, key.outputs) if isinstance(key, ImageKey) else encoder.encode_text(stacked)
        if len(rows) != len(payloads):
            raise EncoderFailed(f"{key.model} gave {len(rows)} rows for {len(payloads)} inputs.", model=key.model)
        if isinstance(rows, Encoded):
            return [rows.row(index) for index in range(len(payloads))]
        return list(rows)
    except EncoderFailed as error:
        _log.warning("a forward of %d failed: %s", len(payloads), error, exc_info=len(payloads) == 1)
        return _without_frames(error)
    except Exception as error:
        _log.error("a forward of %d failed: %s", len(payloads), key.model, exc_info=len(payloads) == 1)
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
