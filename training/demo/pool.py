"""Drawn scenes as arrays: pixels, subjects and boxes, drawn once and kept on disk.

Knows seeds and files. Scene i depends only on (stream, seed, i), so neither order nor number of processes matters.
"""

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.demo.world import SUBJECTS, Which, render, sample_scene

# Streams keep training and test drawings apart whatever their seeds are.
TRAIN_STREAM = 1
TEST_STREAM = 2
_CHUNK = 500


@dataclass(frozen=True)
class Pool:
    """Scenes as arrays.

    images: uint8 [N, size, size, 3], RGB.
    subjects: int64 [N, 2], indices into world.SUBJECTS; -1 where there is no second object.
    boxes: float32 [N, 2, 4], (left, top, right, bottom) as fractions of the image; NaN where there is no object.
    """

    images: NDArray[np.uint8]
    subjects: NDArray[np.int64]
    boxes: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class PoolSpec:
    """What identifies a pool: drawing it twice gives the same arrays."""

    size: int
    count: int
    seed: int
    stream: int = TRAIN_STREAM
    which: Which = "seen"
    objects: int | None = None


def draw(spec: PoolSpec, start: int = 0, stop: int | None = None) -> Pool:
    """Draws scenes start..stop of the pool (all of it by default)."""
    numbers = range(start, spec.count if stop is None else stop)
    index = {subject: k for k, subject in enumerate(SUBJECTS)}
    images = np.empty((len(numbers), spec.size, spec.size, 3), np.uint8)
    subjects = np.full((len(numbers), 2), -1, np.int64)
    boxes = np.full((len(numbers), 2, 4), np.nan, np.float32)
    for row, number in enumerate(numbers):
        rng = np.random.default_rng([spec.stream, spec.seed, number])
        scene = sample_scene(rng, which=spec.which, count=spec.objects)
        images[row] = render(scene, spec.size)
        for slot, placed in enumerate(scene.objects):
            subjects[row, slot] = index[placed.subject]
            boxes[row, slot] = placed.box
    return Pool(images, subjects, boxes)


def _draw_chunk(task: tuple[PoolSpec, int, int]) -> Pool:
    return draw(*task)


def _chunks(spec: PoolSpec) -> Iterator[tuple[PoolSpec, int, int]]:
    for start in range(0, spec.count, _CHUNK):
        yield spec, start, min(start + _CHUNK, spec.count)


def kept_pool(spec: PoolSpec, folder: Path) -> Pool:
    """The pool from `folder`, drawn there first if it is missing; the images are memory-mapped."""
    stem = f"pool-{spec.stream}-{spec.which}-{spec.objects or 'any'}-{spec.size}-{spec.count}-{spec.seed}"
    images_path, rest_path = folder / f"{stem}.npy", folder / f"{stem}.npz"
    if not rest_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _write(spec, images_path, rest_path)
    with np.load(rest_path) as rest:
        return Pool(np.load(images_path, mmap_mode="r"), rest["subjects"], rest["boxes"])


def _write(spec: PoolSpec, images_path: Path, rest_path: Path) -> None:
    """Draws with all cores; the small file is written last and marks the pool as whole."""
    images = np.lib.format.open_memmap(
        images_path, mode="w+", dtype=np.uint8, shape=(spec.count, spec.size, spec.size, 3)
    )
    subjects, boxes, row = [], [], 0
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=spec.count, desc="drawing", unit="scene", mininterval=1))
        if spec.count > 2 * _CHUNK:
            workers = stack.enter_context(multiprocessing.get_context("spawn").Pool())
            parts: Iterable[Pool] = workers.imap(_draw_chunk, _chunks(spec))
        else:
            parts = map(_draw_chunk, _chunks(spec))
        for part in parts:
            images[row : row + len(part)] = part.images
            row += len(part)
            subjects.append(part.subjects)
            boxes.append(part.boxes)
            bar.update(len(part))
    images.flush()
    partial = rest_path.with_suffix(".partial.npz")
    np.savez(partial, subjects=np.concatenate(subjects), boxes=np.concatenate(boxes))
    os.replace(partial, rest_path)
