"""The shipped demo models are as good as their report says, on drawings that neither training nor the report saw."""

import json
import math
from functools import cache
from typing import Any

import pytest

from encoders.adapters.demo.saved import NAMES
from encoders.adapters.demo.vocabulary import WEIGHTS
from training.demo.evaluate import DEFINITIONS, TestDrawings, TestSet, counts, draw_tests, measure

# The report's drawings come from seed 1.
FRESH = TestSet(seed=3, singles=300, held_out=120, two_objects=120, retrieval=120)
# What the demo models were made to reach; everything else is reported only.
AIMS = {
    "shape_colour_seen": 0.90,
    "shape_colour_held_out": 0.90,
    "things": 0.90,
    "pointing": 0.85,
}
# What was not reached; a better model must be taken off this list.
SHORT_OF_AIM = {("vit", "shape_colour_held_out")}
GUARDED = (*AIMS, "subjects", "pointing_held_out", "image_to_text_r5", "text_to_image_r5")


def reported(name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((WEIGHTS / "report.json").read_text(encoding="utf-8"))
    figures: dict[str, Any] = report["models"][name]
    return figures


@cache
def fresh_drawings() -> TestDrawings:
    return draw_tests(FRESH)


@cache
def fresh_figures(name: str) -> dict[str, Any]:
    return measure(name, fresh_drawings())


def floor(share: float, count: int) -> float:
    """Three standard errors of a share measured on `count` drawings, and one drawing, below what was reported."""
    return share - 3 * math.sqrt(share * (1 - share) / count) - 1 / count


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("figure", GUARDED)
def test_fresh_drawings_are_understood_as_reported(name: str, figure: str) -> None:
    number = counts(fresh_drawings())[figure.replace("_r5", "_r1")]
    assert fresh_figures(name)[figure] >= floor(reported(name)[figure], number)


def test_the_report_reaches_its_aims_but_for_what_is_listed() -> None:
    short = {(name, figure) for name in NAMES for figure, aim in AIMS.items() if reported(name)[figure] < aim}
    assert short == SHORT_OF_AIM


@pytest.mark.parametrize("name", NAMES)
def test_the_heat_map_points_far_better_than_chance(name: str) -> None:
    figures = fresh_figures(name)
    assert figures["pointing"] > 3 * figures["pointing_chance"]


def test_the_report_is_about_the_files_that_ship() -> None:
    for name in NAMES:
        assert reported(name)["file_bytes"] == (WEIGHTS / f"{name}.safetensors").stat().st_size
    assert all(set(DEFINITIONS) <= set(reported(name)) for name in NAMES)


def test_the_files_are_small() -> None:
    sizes = [(WEIGHTS / f"{name}.safetensors").stat().st_size for name in NAMES]
    assert max(sizes) <= 10_000_000
    assert sum(sizes) <= 25_000_000
