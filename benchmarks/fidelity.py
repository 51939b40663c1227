"""How far each fast path is from the reference (Pillow, float32), on the bench's photographs. No server."""

from dataclasses import dataclass

import numpy as np

from benchmarks.works import Vectors, Work
from encoders import load, pixels_of
from encoders.contract.encoder import Encoder, Placement
from encoders.contract.values import Pixels

_FLOAT32, _BFLOAT16 = Placement(dtype="float32"), Placement(dtype="bfloat16")
_OPENVINO = Placement(dtype="bfloat16", runtime="openvino")
_PATHS = {
    "exact pixels, float32": (True, _FLOAT32),
    "fast pixels, float32": (False, _FLOAT32),
    "exact pixels, bfloat16": (True, _BFLOAT16),
    "fast pixels, bfloat16": (False, _BFLOAT16),
    "fast pixels, bfloat16 in OpenVINO": (False, _OPENVINO),
}
_BATCH = 8


@dataclass(frozen=True)
class Fidelity:
    """Of one path. pixel: the greatest difference of a value of 255. Cosines of pooled vectors to the reference."""

    name: str
    pixel: int
    lowest: float
    median: float

    def __str__(self) -> str:
        cosine = f"cosine {self.lowest:.5f} or more, median {self.median:.5f}"
        return f"{self.name}: pixels within {self.pixel} of 255, {cosine}"


def measure(work: Work) -> str:
    """A line a path. The reference is open_clip's own transform and model."""
    encoders = {place: load(work.encoder_id, place) for place in (_FLOAT32, _BFLOAT16, _OPENVINO)}
    plain = _prepared(encoders[_FLOAT32], work, exact=True)
    lines = [work.name]
    for name, (exact, place) in _PATHS.items():
        pixels = _prepared(encoders[place], work, exact=exact)
        cosines = (_vectors(encoders[place], pixels) * work.references).sum(axis=1)
        off = int(np.abs(pixels.astype(int) - plain.astype(int)).max())
        lines.append(f"  {Fidelity(name, off, float(cosines.min()), float(np.median(cosines)))}")
    return "\n".join(lines)


def _prepared(encoder: Encoder, work: Work, *, exact: bool) -> Pixels:
    return np.stack([pixels_of(encoder, jpeg, exact=exact) for jpeg in work.pictures])


def _vectors(encoder: Encoder, pixels: Pixels) -> Vectors:
    outputs = encoder.spec.outputs(pooled=True)
    batches = np.split(pixels, range(_BATCH, len(pixels), _BATCH))
    rows = [np.asarray(encoder.encode(batch, outputs).pooled, np.float32) for batch in batches]
    vectors: Vectors = np.concatenate(rows)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
