"""JPEG photographs to send: crops of those in scikit-image's package. Made once, kept in a folder."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

_PHOTOGRAPHS = (
    "astronaut",
    "coffee",
    "chelsea",
    "rocket",
    "retina",
    "hubble_deep_field",
    "immunohistochemistry",
)
"""Colour pictures of scikit-image's wheel; its others would have to be downloaded."""


@dataclass(frozen=True)
class Kind:
    """What a set of pictures is like. short: range of the shorter side in pixels; the longer one is 4/3 of it.

    noise: standard deviation of what is added to every value, of 255.
    """

    name: str
    count: int
    short: tuple[int, int]
    noise: float = 0.0


PHOTOGRAPHS = Kind("photographs", 64, (440, 520))
"""Around 640x480."""
THUMBNAILS = Kind("thumbnails", 128, (96, 128))
LARGE = Kind("12mp", 16, (3024, 3024), noise=4.0)
"""4032x3024. Enlarged crops are smooth; the noise is the sensor's, without which their files would be too easy."""


def pictures(kind: Kind, folder: Path) -> list[bytes]:
    """The set's JPEG files, all different, in a fixed order; made in `folder` unless they are there."""
    files = [folder / kind.name / f"{index:03}.jpg" for index in range(kind.count)]
    if not all(file.is_file() for file in files):
        files[0].parent.mkdir(parents=True, exist_ok=True)
        for file, jpeg in zip(files, _made(kind), strict=True):
            file.write_bytes(jpeg)
    return [file.read_bytes() for file in files]


def _made(kind: Kind) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    sources = [_source(name) for name in _PHOTOGRAPHS]
    for index in range(kind.count):
        yield _jpeg(_crop(sources[index % len(sources)], kind, rng), kind, rng)


def _source(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")


def _crop(source: Image.Image, kind: Kind, rng: np.random.Generator) -> Image.Image:
    """A part of half to all of the source's height or width, three in four of them landscape, some mirrored."""
    short = int(rng.integers(kind.short[0], kind.short[1] + 1))
    width, height = (short * 4 // 3, short) if rng.random() < 0.75 else (short, short * 4 // 3)
    scale = min(source.width / width, source.height / height) * rng.uniform(0.5, 1.0)
    left = rng.uniform(0, source.width - scale * width)
    top = rng.uniform(0, source.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    crop = source.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def _jpeg(image: Image.Image, kind: Kind, rng: np.random.Generator) -> bytes:
    if kind.noise:
        values = np.asarray(image, np.float32)
        noisy = values + kind.noise * rng.standard_normal(values.shape, np.float32)
        image = Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
