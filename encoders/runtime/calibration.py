"""Forwards of pictures in float32 that int8 takes its ranges from and is held to: the user's, or drawn ones."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from encoders.contract.encoder import Placement
from encoders.contract.errors import ImageError, Int8Refused
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Pixels
from encoders.images.decode import decode
from encoders.images.preprocess import preprocess
from encoders.images.resample import resize
from encoders.runtime.failures import running
from encoders.runtime.int8 import Observed, observe
from encoders.runtime.placed_towers import PlacedTowers
from encoders.runtime.tower import FINAL, Features, TextTower, Tower

LEAST_COSINE = 0.99
"""To float32, of the pooled vector and of the tokens of each picture that is held back; below it int8 is refused."""

PICTURES = 32
"""As many are read of a folder, or drawn."""
_HELD_BACK = 4
"""One in so many is not seen: it is what the vectors are compared on."""
_PARTS = 4
"""Forwards of either kind: all in one would take more memory."""
_SIDE = 256
_SMALLEST, _LARGEST = 4, 96
_NOISE = 6.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """observed: of most pictures. architecture: as the spec's, of these ranges too. The rest are held back."""

    observed: Observed
    architecture: str
    _held_back: Sequence[Tensor]
    _wanted: list[Features]

    @classmethod
    def of(cls, spec: EncoderSpec, tower: Tower, text: TextTower | None, placement: Placement) -> "Trial":
        """By the towers in float32, in which they are left. Raises Int8Refused and EncoderFailed."""
        _log.info("%s takes its ranges for int8 from pictures", spec.id)
        plain = PlacedTowers(spec, tower, text, device=placement.device, dtype="float32")
        pixels = torch.from_numpy(np.stack([_preprocessed(each, spec) for each in pictures(placement.calibration)]))
        is_seen = torch.arange(len(pixels)) % _HELD_BACK > 0
        held_back = pixels[~is_seen].chunk(_PARTS)
        with running(spec.id):
            forwards = [partial(plain.run, some, FINAL) for some in pixels[is_seen].chunk(_PARTS)]
            observed = observe(tower, forwards, images=int(is_seen.sum()))
            wanted = [plain.run(some, FINAL) for some in held_back]
        digest = hashlib.sha256(f"{spec.architecture} int8 ".encode() + pixels.numpy().tobytes())
        return cls(observed, digest.hexdigest()[:12], held_back, wanted)

    def cosine(self, towers: PlacedTowers) -> float:
        """The least to float32, of the pictures held back. Raises Int8Refused if it is too small, and EncoderFailed."""
        least = 1.0
        with running(towers.spec.id):
            for some, wanted in zip(self._held_back, self._wanted, strict=True):
                given = towers.run(some, FINAL)
                for ours, theirs in ((given.pooled, wanted.pooled), (given.tokens, wanted.tokens)):
                    if ours is not None and theirs is not None:
                        least = min(least, float(_cosines(ours, theirs).min()))
        if not least >= LEAST_COSINE:  # nor NaN
            raise Int8Refused(
                f"{towers.spec.id} in int8 is at cosine {least:.4f} to float32, and {LEAST_COSINE} is the least "
                "allowed. Name a folder of pictures like those to come as the calibration, or use the dtype auto.",
                model=towers.spec.id,
                cosine=least,
            )
        return least


def _cosines(ours: Tensor, theirs: Tensor) -> Tensor:
    """Of each picture."""
    return F.cosine_similarity(ours.float().flatten(1), theirs.flatten(1))


def _preprocessed(image: Image.Image, spec: EncoderSpec) -> Pixels:
    return preprocess(image, spec.preprocessing, spec.image_size, resize=resize)


def pictures(folder: Path | None) -> Iterator[Image.Image]:
    """At most PICTURES, RGB, one after the other: of the folder's files evenly, or drawn.

    Raises Int8Refused at its end if the folder has too few.
    """
    number = 0
    for number, image in enumerate(_drawn() if folder is None else islice(_read(folder), PICTURES), 1):  # noqa: B007
        yield image
    if number < PICTURES // 4:
        raise Int8Refused(
            f"int8 takes its ranges from pictures like those to come, and {folder} has {number} that can be read: "
            f"it needs {PICTURES // 4}, and uses {PICTURES}. Without a folder it draws some.",
        )


def _read(folder: Path) -> Iterator[Image.Image]:
    """Those files that are pictures, so that the first few come from all over the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    step = max(1, len(files) // PICTURES)
    for file in chain.from_iterable(files[start::step] for start in range(step)):
        try:
            yield decode(file.read_bytes())
        except (ImageError, OSError) as error:
            _log.warning("%s is not used for the ranges of int8: %s", file, error)


def _drawn() -> Iterator[Image.Image]:
    """Dead leaves: discs of all sizes, one over the other.

    Edges and contrasts are spread as in photographs (Lee, Mumford and Huang 2001).
    """
    rng = np.random.default_rng(0)
    for _ in range(PICTURES):
        image = Image.new("RGB", (_SIDE, _SIDE))
        draw = ImageDraw.Draw(image)
        tint = rng.integers(256, size=3)
        sizes = (_SMALLEST**-2 - rng.random(1500) * (_SMALLEST**-2 - _LARGEST**-2)) ** -0.5  # density: size ** -3
        for size, (x, y) in zip(sizes, rng.uniform(-_LARGEST, _SIDE + _LARGEST, (len(sizes), 2)), strict=True):
            colour = tuple(int(each) for each in (rng.integers(256, size=3) + tint) // 2)
            draw.ellipse((x - size, y - size, x + size, y + size), fill=colour)
        noise = rng.normal(0, _NOISE, (_SIDE, _SIDE, 3))
        yield Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
