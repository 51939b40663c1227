"""The memory benchmarks: their arithmetic, and the one for a real card on a card that computes nothing."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import folklore, vram
from benchmarks.folklore import Claim
from benchmarks.vram import QUICK, Forward, Grid, Largest, Machine, Rows, largest_that_runs, outside, summary
from encoders.memory.device import Figures
from encoders.memory.prediction import MIB
from tests.support.cudastub import on_stub_card
from tests.support.paths import ROOT

SMALL = ("timm:vit_base_patch32_224@random", "timm:resnet50@random")
"""In place of those of a quick run, which take longer to make than to run on a card that computes nothing."""
MACHINE = Machine("Card", "570.1", "2.11.0", "91000", "expandable_segments:True", context=300 * MIB)
FORWARD = Forward(
    model="openclip:RN50@random",
    dtype="float16",
    resolution="224x224",
    batch=32,
    run="first",
    requested_predicted=100 * MIB,
    requested=100 * MIB,
    allocated_predicted=100 * MIB,
    allocated=100 * MIB,
    reserved_predicted=120 * MIB,
    reserved=120 * MIB,
    outside=300 * MIB,
)


def said(rows: Sequence[Forward | Largest]) -> str:
    return "\n".join(summary(rows, context=300 * MIB))


def test_the_folklore_in_the_documents_is_what_the_command_prints() -> None:
    """If this fails, put what `python -m benchmarks.folklore` prints between the two markers."""
    page = (ROOT / "docs" / "memory.md").read_text()
    shown = page.split("<!-- folklore -->\n")[1].split("<!-- /folklore -->")[0]
    assert shown.strip() == folklore.table(folklore.claims())


@pytest.mark.parametrize(
    ("actual", "verdict"),
    [
        (4.0, "true"),
        (4.39, "true"),
        (3.61, "true"),
        (4.5, "false: 1.1 times too low"),
        (2.0, "false: 2 times too high"),
        (16.0, "false: 4 times too low"),
    ],
)
def test_a_claim_is_true_within_a_tenth_of_what_it_says(actual: float, verdict: str) -> None:
    assert Claim("four", 4, actual, str(actual)).verdict == verdict


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_the_largest_batch_that_runs_is_found_from_any_guess(largest: int, guess: int) -> None:
    assert largest_that_runs(lambda batch: batch <= largest, guess=guess) == largest


def test_a_good_guess_needs_few_runs() -> None:
    tried: list[int] = []

    def runs(batch: int) -> bool:
        tried.append(batch)
        return batch <= 105

    assert largest_that_runs(runs, guess=100) == 105
    assert len(tried) <= 6


def test_outside_is_what_neither_is_free_nor_torchs() -> None:
    assert outside(Figures(total=1000, free=600, allocated=50, reserved=100)) == 300


def test_the_grid_counts_its_shapes_and_searches() -> None:
    grid = Grid(models=("a", "b"), dtypes=("float16",), sizes=3, batches=(1, 2), free=1)
    assert grid.points == 2 * (3 * 2 + 1)


def test_every_row_is_on_disk_as_soon_as_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        rows = Rows(file, Forward, MACHINE)
        rows.add(FORWARD)
        (row,) = csv.DictReader(path.read_text().splitlines())
        assert (row["device"], row["torch"], row["model"], row["batch"]) == ("Card", "2.11.0", FORWARD.model, "32")
        rows.add(FORWARD)
        assert len(path.read_text().splitlines()) == 3


def test_the_summary_counts_what_is_close_and_names_the_worst() -> None:
    rows = [
        FORWARD,
        replace(FORWARD, batch=64, allocated=104 * MIB),
        replace(FORWARD, batch=128, allocated=80 * MIB),
        replace(FORWARD, batch=7, run="third", allocated=106 * MIB),
    ]
    assert "first run: 2 of 3 points over 64 MiB are within 5%; the worst is 0.800 of what was predicted" in said(rows)
    assert "third run: 0 of 1 points over 64 MiB are within 5%; the worst is 1.060" in said(rows)
    assert "openclip:RN50@random float16 224x224 batch 128, first run" in said(rows)


def test_small_points_are_not_judged() -> None:
    small = replace(FORWARD, allocated_predicted=64 * MIB - 1, allocated=MIB)
    assert "first run: no point over 64 MiB" in said([small])


def test_the_summary_names_what_took_more_of_the_card_than_planned() -> None:
    over = replace(FORWARD, batch=9, reserved=123 * MIB)
    assert "none of 1 forwards took more than predicted" in said([FORWARD])
    assert "1 of 2 forwards took more than predicted, at most 3 MiB more" in said([FORWARD, over])


def test_what_failed_is_named_and_not_measured() -> None:
    failed = replace(FORWARD, allocated=0, error="OutOfMemoryError('...')")
    assert "first run: 1 of 1 points" in said([FORWARD, failed])
    assert "Failed: openclip:RN50@random float16 224x224 batch 32, first run: OutOfMemoryError" in said([failed])


def test_the_summary_has_the_context_and_the_largest_batches() -> None:
    largest = Largest("openclip:RN50@random", "float16", "224x224", 256 * MIB, predicted=40, ran=42)
    assert "Context before the first tensor: 300 MiB; 512 MiB are allowed" in said([largest])
    assert "Largest batch in 256 MiB: openclip:RN50@random float16 224x224: 40 predicted, 42 ran" in said([largest])


def test_without_counters_to_compare_with_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert vram.main(["--device", "cpu"]) == 2
    assert capsys.readouterr().err == "benchmarks.vram: 'cpu' has no counters to compare with: use cuda or cuda:N.\n"


class Run(NamedTuple):
    """What a run printed, and the rows of its two files."""

    printed: str
    forwards: list[dict[str, str]]
    largest: list[dict[str, str]]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A quick run on the stub card."""
    out = tmp_path_factory.mktemp("results") / "deep" / "vram.csv"
    printed = on_stub_card(tmp_path_factory, "vram_benchmark", str(out), *SMALL, memory_gb=8)
    files = (out, out.with_suffix(".batches.csv"))
    return Run(printed, *(list(csv.DictReader(path.read_text().splitlines())) for path in files))


@pytest.mark.slow
def test_a_run_measures_the_first_and_the_third_forward_of_every_shape(quick: Run) -> None:
    _, forwards, largest = quick
    shapes = {(row["model"], row["resolution"], row["batch"]) for row in forwards}
    assert len(shapes) == len(SMALL) * QUICK.sizes * len(QUICK.batches)
    assert [row["run"] for row in forwards] == ["first", "third"] * len(shapes)
    assert [row["model"] for row in largest] == list(SMALL)
    assert not any(row["error"] for row in forwards)


@pytest.mark.slow
def test_torchs_own_counters_agree_with_the_plan_to_the_byte(quick: Run) -> None:
    """Where tensors outweigh the workspace; its kernels have none of their own on this card."""
    printed, forwards, _ = quick
    large = [row for row in forwards if int(row["requested_predicted"]) > 64 * MIB]
    assert len(large) >= 4
    assert all(row["requested"] == row["requested_predicted"] for row in large)
    assert f"first run: {len(large) // 2} of {len(large) // 2} points over 64 MiB are within 5%" in printed


@pytest.mark.slow
def test_the_largest_batches_found_are_near_the_predicted(quick: Run) -> None:
    for row in quick.largest:
        assert 0.8 <= int(row["predicted"]) / int(row["ran"]) <= 1.2
