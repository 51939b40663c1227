"""Forwards begun one behind the other on the stub card. Prints rows as JSON, or ends with what went wrong.

Usage: overlap.py DTYPE ID...
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from encoders.adapters.registry import load
from encoders.contract.encoder import Forward, Placement
from encoders.contract.errors import EncoderFailed, OutOfMemory
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.runtime.device_memory import CudaMemory
from encoders.runtime.torch_encoder import TorchEncoder

BATCH = 4


def rows(memory: CudaMemory, encoder_id: str, dtype: str) -> list[dict[str, object]]:
    encoder = load(encoder_id, Placement("cuda", dtype))
    assert isinstance(encoder, TorchEncoder)
    spec = encoder.spec
    kinds = [Outputs(pooled=True), Outputs(tokens=TokenKind.HIDDEN), Outputs(tokens=TokenKind.HIDDEN, layer=1)]
    kinds += [Outputs(tokens=TokenKind.DENSE)] * spec.dense
    found: list[dict[str, object]] = []
    for size in (spec.image_size, ImageSize(spec.image_size.height * 2, spec.image_size.width)):
        for outputs in kinds:
            pixels = np.zeros((BATCH, *size, 3), np.uint8)
            begun, peaks, kept = [], [], []
            for _ in range(3):
                before = memory.figures().allocated
                with memory.reading() as reading:
                    begun.append(begin_without_waiting(encoder, pixels, outputs))
                peaks.append(reading.peak)
                kept.append(memory.figures().allocated - before)
            ended = [forward.wait() for forward in begun]
            arrays = [np.asarray(encoded.pooled if outputs.pooled else encoded.tokens) for encoded in ended]
            found.append(
                {
                    "what": f"{encoder_id} {size} {outputs}",
                    "peaks": peaks,
                    "kept": kept,
                    "arrays": [(len(array), str(array.dtype)) for array in arrays],
                }
            )
    return found


def begin_without_waiting(encoder: TorchEncoder, pixels: Any, outputs: Outputs) -> Forward:
    """With torch told to raise on every call that it knows to wait for the card."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward = encoder.begin(pixels, outputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not forward.is_done
    return forward


def errors(encoder_id: str, dtype: str) -> dict[str, str]:
    """What a failure in either step is raised as; it is torch's own that are made to fail."""
    encoder = load(encoder_id, Placement("cuda", dtype))
    assert isinstance(encoder, TorchEncoder)
    pixels = np.zeros((BATCH, *encoder.spec.image_size, 3), np.uint8)
    named = {}

    def fail(error: Exception) -> Callable[..., Any]:
        def failing(*args: object) -> None:
            raise error

        return failing

    forward = begin_without_waiting(encoder, pixels, Outputs(pooled=True))
    synchronize, pin_memory = torch.cuda.Event.synchronize, torch.Tensor.pin_memory
    torch.cuda.Event.synchronize = fail(torch.AcceleratorError("an illegal memory access"))  # type: ignore[method-assign]
    try:
        forward.wait()
    except EncoderFailed as error:
        named["waiting"] = type(error).__name__
    torch.cuda.Event.synchronize = synchronize  # type: ignore[method-assign]
    torch.Tensor.pin_memory = fail(torch.OutOfMemoryError("no pinned memory"))  # type: ignore[method-assign]
    try:
        encoder.begin(pixels, Outputs(pooled=True))
    except OutOfMemory as error:
        named["beginning"] = type(error).__name__
    torch.Tensor.pin_memory = pin_memory  # type: ignore[method-assign]
    return named


if __name__ == "__main__":
    _, dtype, *ids = sys.argv
    card = CudaMemory("cuda")
    found = [row for each in ids for row in rows(card, each, dtype)]
    print(json.dumps({"rows": found, "errors": errors(ids[0], dtype)}))
