"""Writing ViT-L/14-336's tokens: as half-precision safetensors against the same numbers as JSON. No server."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np

from encoders.contract.values import Encoded, Grid
from service.engine.postprocess import embedding
from service.engine.values import EmbedRequest, EmbedResult, Timing
from service.http.protocol import Answer
from service.http.protocols.native.answers import write_embed
from service.http.protocols.native.requests import EmbedReply

R = TypeVar("R")
_ROUNDS = 30


@dataclass(frozen=True)
class Tokens:
    """Milliseconds, medians, and bytes of one image's answer. finish: cut, checked and cast, before either format."""

    finish_ms: float
    safetensors_ms: float
    json_ms: float
    safetensors_bytes: int
    json_bytes: int

    def __str__(self) -> str:
        return (
            f"tokens [576, 1024], float16: safetensors {self.safetensors_ms:.3f} ms, {self.safetensors_bytes:,} bytes; "
            f"JSON floats {self.json_ms:.2f} ms, {self.json_bytes:,} bytes: {self.json_ms / self.safetensors_ms:.0f} "
            f"times. Before either, cut, check and cast from float32: {self.finish_ms:.2f} ms"
        )


def measure() -> Tokens:
    """On normal random numbers, as a final norm gives them."""
    values = np.random.default_rng(0).standard_normal((577, 1024), np.float32)
    row = Encoded(Grid(24, 24), prefix_tokens=1, tokens=values)
    request = EmbedRequest((), dtype="float16")
    finish_s, finished = _timed(lambda: embedding(row, request, model="bench"))
    result = EmbedResult("bench", [finished], Timing(), tokens=576, values=values.size)
    binary_s, binary = _timed(lambda: write_embed(result, EmbedReply("safetensors", "float")))
    json_s, text = _timed(lambda: write_embed(result, EmbedReply("json", "float")))
    return Tokens(1000 * finish_s, 1000 * binary_s, 1000 * json_s, _size(binary), _size(text))


def _size(answer: Answer) -> int:
    return len(answer.content)


def _timed(function: Callable[[], R]) -> tuple[float, R]:
    """Median seconds, and what it gave last."""
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - started)
    return median(seconds), result
