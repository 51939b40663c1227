"""Measures the shipped demo models on drawings that training never saw.

Knows the tasks, their definitions and the report; loads the saved fp16 files, so the figures are those of what ships.
Test scenes come from their own stream of seeds and, but for the task that asks for them, from the same distribution as
the training scenes.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional

from encoders.adapters.demo import saved
from encoders.adapters.demo.vocabulary import WEIGHTS, tokenizer
from training.demo import dense
from training.demo.pool import TEST_STREAM, Pool, PoolSpec, draw
from training.demo.saving import IMAGE_SIZE
from training.demo.world import DRAWN_THINGS, HELD_OUT, PAIRS, SUBJECTS, Subject, caption, cell_cover, on_object

DEFINITIONS: dict[str, str] = {
    "shape_colour_seen": "Zero-shot accuracy on single shapes whose (shape, colour) was in training, among all 64 "
    'pairs, held-out ones included; the class text is the bare caption ("a red circle").',
    "shape_colour_held_out": "The same on the 8 pairs that were never drawn and never named in training, among all 64.",
    "things": "Zero-shot accuracy on single drawn things, among the 12 things.",
    "subjects": "Zero-shot accuracy over the seen pairs and the things together, among all 76 (64 pairs, 12 things).",
    "pointing": "Two-object scenes, one heat map for each object's caption: the share whose largest cell lies on the "
    "named object, that is, the object's box covers more of the cell than the other's box, and at least a quarter of "
    "the cell or more than of any other cell. Compared on the model's own grid, nothing upsampled.",
    "pointing_held_out": "The same for two held-out pairs in one scene.",
    "pointing_chance": "Mean share of the grid's cells that would count as a hit in the scenes of `pointing`.",
    "image_to_text_r1": "Retrieval among scenes of one or two objects, no two of the same content: the image's own "
    "caption is the nearest. A tie counts as a miss.",
    "image_to_text_r5": "The image's own caption is among the 5 nearest.",
    "text_to_image_r1": "The caption's own image is the nearest.",
    "text_to_image_r5": "The caption's own image is among the 5 nearest.",
}


@dataclass(frozen=True)
class TestSet:
    """How many drawings each task gets, and the seed they come from."""

    __test__ = False  # not a pytest class

    seed: int
    singles: int
    held_out: int
    two_objects: int
    retrieval: int


REPORTED = TestSet(seed=1, singles=1500, held_out=500, two_objects=500, retrieval=500)


def _pool(tests: TestSet, offset: int, count: int, **kind: Any) -> Pool:
    return draw(PoolSpec(IMAGE_SIZE, count, 10 * tests.seed + offset, stream=TEST_STREAM, **kind))


@dataclass(frozen=True)
class TestDrawings:
    """The drawings of a test set, drawn once and shown to every model."""

    __test__ = False

    singles: Pool
    held_out: Pool
    pairs: Pool
    held_out_pairs: Pool
    retrieval: Pool


def draw_tests(tests: TestSet) -> TestDrawings:
    """Draws a test set; the same set gives the same drawings."""
    mixed = _pool(tests, 4, 2 * tests.retrieval)
    contents = [frozenset(subjects) for subjects in _named(mixed)]
    first = [row for row, content in enumerate(contents) if content not in contents[:row]][: tests.retrieval]
    return TestDrawings(
        singles=_pool(tests, 0, tests.singles, objects=1),
        held_out=_pool(tests, 1, tests.held_out, which="held-out", objects=1),
        pairs=_pool(tests, 2, tests.two_objects, objects=2),
        held_out_pairs=_pool(tests, 3, tests.held_out // 2, which="held-out", objects=2),
        retrieval=Pool(mixed.images[first], mixed.subjects[first], mixed.boxes[first]),
    )


def _named(pool: Pool) -> list[tuple[Subject, ...]]:
    return [tuple(SUBJECTS[number] for number in row if number >= 0) for row in pool.subjects]


class Judge:
    """A saved model with what the tasks need of it."""

    def __init__(self, name: str, folder: Path = WEIGHTS) -> None:
        self.model: CLIP
        self.model, preprocessing = saved.load(name, folder)
        self.mean = torch.tensor(preprocessing["mean"]).view(3, 1, 1)
        self.std = torch.tensor(preprocessing["std"]).view(3, 1, 1)
        self.encode = tokenizer()

    @torch.inference_mode()
    def images(self, pool: Pool) -> tuple[Tensor, Tensor]:
        """Normalised pooled [N, D], and dense [N, rows, cols, D]."""
        pooled, cells = [], []
        for start in range(0, len(pool), 100):
            pixels = torch.from_numpy(pool.images[start : start + 100]).permute(0, 3, 1, 2).float() / 255
            whole, parts = dense.features(self.model.visual, (pixels - self.mean) / self.std)
            pooled.append(functional.normalize(whole, dim=-1))
            cells.append(parts)
        return torch.cat(pooled), torch.cat(cells)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Normalised text embeddings [N, D]."""
        return functional.normalize(self.model.encode_text(self.encode(list(texts))), dim=-1)


def zero_shot(judge: Judge, pool: Pool, subjects: Sequence[Subject]) -> float:
    """Accuracy on those scenes of the pool whose first subject is one of `subjects`, among `subjects`."""
    number = {SUBJECTS.index(subject): k for k, subject in enumerate(subjects)}
    mine = np.array([row for row, first in enumerate(pool.subjects[:, 0]) if int(first) in number])
    right = torch.tensor([number[int(first)] for first in pool.subjects[mine, 0]])
    pooled, _ = judge.images(Pool(pool.images[mine], pool.subjects[mine], pool.boxes[mine]))
    classes = judge.texts([caption([subject]) for subject in subjects])
    return float((pooled @ classes.T).argmax(dim=-1).eq(right).float().mean())


def pointing(judge: Judge, pool: Pool) -> tuple[float, float, tuple[int, int]]:
    """Share of hits, share expected of a random cell, and the grid. See DEFINITIONS["pointing"]."""
    _, cells = judge.images(pool)
    grid = (cells.shape[1], cells.shape[2])
    hits = on_object(cell_cover(pool.boxes, grid))  # [N, 2, rows, cols]
    named = _named(pool)
    struck: list[NDArray[np.bool_]] = []
    for slot in range(2):
        text = judge.texts([caption([subjects[slot]]) for subjects in named])
        best = dense.points(cells, text).flatten(1).argmax(dim=-1).numpy()
        struck.append(hits[:, slot].reshape(len(named), -1)[np.arange(len(named)), best])
    return float(np.mean(struck)), float(hits.mean()), grid


def retrieval(judge: Judge, pool: Pool) -> dict[str, float]:
    """Recall at 1 and 5, both ways. Every caption belongs to one image."""
    pooled, _ = judge.images(pool)
    cosines = pooled @ judge.texts([caption(subjects) for subjects in _named(pool)]).T
    figures: dict[str, float] = {}
    for way, scores in (("image_to_text", cosines), ("text_to_image", cosines.T)):
        # Equal scores (two captions on one point of the space) count as ahead: no luck in the figure.
        own = scores.diagonal()[:, None]
        ahead = (scores >= own - 1e-6).sum(dim=-1) - 1
        for k in (1, 5):
            figures[f"{way}_r{k}"] = float((ahead < k).float().mean())
    return figures


def measure(name: str, drawings: TestDrawings, folder: Path = WEIGHTS) -> dict[str, Any]:
    """Every figure of one model."""
    judge = Judge(name, folder)
    share, chance, grid = pointing(judge, drawings.pairs)
    seen_singles = drawings.singles
    pair_rows = [row for row, subjects in enumerate(_named(seen_singles)) if subjects[0].colour is not None]
    shapes = Pool(seen_singles.images[pair_rows], seen_singles.subjects[pair_rows], seen_singles.boxes[pair_rows])
    return {
        "shape_colour_seen": zero_shot(judge, shapes, PAIRS),
        "shape_colour_held_out": zero_shot(judge, drawings.held_out, PAIRS),
        "things": zero_shot(judge, seen_singles, DRAWN_THINGS),
        "subjects": zero_shot(judge, seen_singles, SUBJECTS),
        "pointing": share,
        "pointing_held_out": pointing(judge, drawings.held_out_pairs)[0],
        "pointing_chance": chance,
        **retrieval(judge, drawings.retrieval),
        "grid": list(grid),
        "parameters": sum(parameter.numel() for parameter in judge.model.parameters()),
        "file_bytes": (folder / f"{name}.safetensors").stat().st_size,
    }


def counts(drawings: TestDrawings) -> dict[str, int]:
    """How many images, or for pointing how many heat maps, each figure rests on."""
    shapes = sum(subjects[0].colour is not None for subjects in _named(drawings.singles))
    return {
        "shape_colour_seen": shapes,
        "shape_colour_held_out": len(drawings.held_out),
        "things": len(drawings.singles) - shapes,
        "subjects": len(drawings.singles),
        "pointing": 2 * len(drawings.pairs),
        "pointing_held_out": 2 * len(drawings.held_out_pairs),
        "image_to_text_r1": len(drawings.retrieval),
        "text_to_image_r1": len(drawings.retrieval),
    }


def table(figures: dict[str, dict[str, Any]], numbers: dict[str, int]) -> str:
    """The figures as text, at most 80 columns wide."""
    names = list(figures)
    lines = [f"{'':<24}{'n':>6}" + "".join(f"{name:>11}" for name in names)]
    for key in DEFINITIONS:
        cells = "".join(f"{figures[name][key]:>11.3f}" for name in names)
        lines.append(f"{key.replace('_', ' '):<24}{numbers.get(key, ''):>6}{cells}")
    lines.append(f"{'grid':<30}" + "".join(f"{'x'.join(map(str, figures[name]['grid'])):>11}" for name in names))
    lines.append(f"{'file, MB':<30}" + "".join(f"{figures[name]['file_bytes'] / 1e6:>11.2f}" for name in names))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command line: `python -m training.demo.evaluate --help`."""
    parser = argparse.ArgumentParser(
        prog="python -m training.demo.evaluate",
        description="Measure the demo models on drawings that training never saw; print a table and write report.json "
        "beside the weights. All names are measured if none is given; others keep their figures in the report.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(saved.NAMES)}")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of NAME.json and NAME.safetensors")
    parser.add_argument("--quick", action="store_true", help="a fifth of the drawings, and no report")
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.names) - set(saved.NAMES)
    if unknown:
        parser.error(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(saved.NAMES)}")
    tests = TestSet(seed=2, singles=300, held_out=100, two_objects=100, retrieval=100) if chosen.quick else REPORTED
    drawings = draw_tests(tests)
    figures = {name: measure(name, drawings, chosen.weights) for name in chosen.names or saved.NAMES}
    print(table(figures, counts(drawings)))
    if not chosen.quick:
        _write_report(chosen.weights / "report.json", tests, drawings, figures)


def _write_report(path: Path, tests: TestSet, drawings: TestDrawings, figures: dict[str, dict[str, Any]]) -> None:
    known = json.loads(path.read_text(encoding="utf-8")).get("models", {}) if path.exists() else {}
    models = {**known, **figures}
    report = {
        "resolution": [IMAGE_SIZE, IMAGE_SIZE],
        "test_seed": tests.seed,
        "test_stream": TEST_STREAM,
        "weights": "the fp16 files beside this report, computed in float32",
        "held_out_pairs": sorted(subject.words for subject in HELD_OUT),
        "counts": counts(drawings),
        "definitions": DEFINITIONS,
        "models": {name: models[name] for name in saved.NAMES if name in models},
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
