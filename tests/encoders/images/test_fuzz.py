"""Damaged files of every format become an image or an ImageError: never another error, never much time or memory."""

import subprocess
import sys

import pytest

from encoders.images.decode import FORMATS, load_plugins
from encoders.images.signatures import format_of
from tests.encoders.images.files import seeds
from tests.encoders.images.fuzz import damaged, outcomes
from tests.support.paths import ROOT


def test_the_seeds_are_of_every_format_that_is_read() -> None:
    assert {format_of(file) for file in seeds().values()} == {*FORMATS, *load_plugins()}


def test_a_mutation_is_the_same_in_every_run() -> None:
    files = seeds()
    assert [damaged(number, files) for number in range(50)] == [damaged(number, files) for number in range(50)]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow remarks on what it reads around
def test_damage_anywhere_is_an_image_or_an_image_error() -> None:
    found = outcomes(range(3_000))
    assert found["image"] > 300
    assert found["UndecodableImage"] > 300


@pytest.mark.slow
@pytest.mark.parametrize("first", [130_000])
def test_damage_takes_little_memory_and_never_hangs(first: int) -> None:
    """In a process of its own, which ends with a trace if a decode hangs. Pillow's memory is not Python's."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.encoders.images.fuzz", str(first), "6000"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    grown_mib, count, *_ = done.stdout.split()
    assert int(count) == 6_000
    assert int(grown_mib) < 500
