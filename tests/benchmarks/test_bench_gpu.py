"""The bench of forwards on a card, run on the CPU with small models, and its arithmetic. No speed."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmarks import gpu, variants
from benchmarks.card import Card, datasheet, median_seconds
from benchmarks.gpu import Plan, Row, kept, measure, summary, tables
from benchmarks.images import Kind, pictures
from benchmarks.variants import VARIANTS, Variant
from encoders.adapters.registry import load
from encoders.contract.encoder import Placement
from encoders.runtime.torch_encoder import TorchEncoder

CARD = Card("abc", "2.15.0", "a CPU", 2, "NVIDIA L4", "570.1", "91000", "bfloat16", peak=100.0, datasheet=121.0)
FAST = Plan(Placement(), variants=("eager", "channels_last", "folded"), batches=(1, 5), seconds=0.001)
ROW = Row(
    "demo:vit", "96x96", 0.5, "eager", 8, images_per_s=100.0, of_peak=0.4, of_datasheet=0.3, peak_bytes=1, cosine=1.0
)


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return pictures(Kind("few", 3, (96, 128)), tmp_path_factory.mktemp("images"))


def measured(model: str, plan: Plan, jpegs: list[bytes]) -> list[Row]:
    return list(measure(model, plan, CARD, jpegs, say=lambda what: None))


def resnet() -> TorchEncoder:
    encoder = load("demo:resnet")
    assert isinstance(encoder, TorchEncoder)
    return encoder


# Measuring.


@pytest.fixture(scope="module")
def of_resnet(jpegs: list[bytes]) -> list[Row]:
    return measured("demo:resnet", FAST, jpegs)


def test_there_is_a_complete_row_for_every_variant_and_batch(of_resnet: list[Row]) -> None:
    assert [(row.variant, row.batch) for row in of_resnet] == FAST.points
    for row in of_resnet:
        assert (row.model, row.resolution, row.error) == ("demo:resnet", "96x96", "")
        assert min(row.images_per_s, row.forward_ms, row.first_s, row.gflop_per_image) > 0
        assert row.forward_ms == pytest.approx(1000 * row.batch / row.images_per_s)


def test_shares_are_of_what_the_card_can_do(of_resnet: list[Row]) -> None:
    for row in of_resnet:
        assert row.tflop_per_s == pytest.approx(row.images_per_s * row.gflop_per_image / 1000)
        assert row.of_peak == pytest.approx(row.tflop_per_s / 100.0)
        assert row.of_datasheet == pytest.approx(row.tflop_per_s / 121.0)


def test_every_variant_answers_as_eager_does(of_resnet: list[Row]) -> None:
    """The batch norms are trained, so that one left out or folded into another convolution would show."""
    assert all(row.cosine > 0.99999 for row in of_resnet)


def test_bfloat16_is_held_against_float32(jpegs: list[bytes]) -> None:
    plan = Plan(Placement(dtype="bfloat16"), variants=("eager",), batches=(3,), seconds=0.001)
    (row,) = measured("demo:vit", plan, jpegs)
    assert row.is_equal
    assert row.cosine < 0.9999999


def test_a_variant_that_answers_otherwise_is_seen(monkeypatch: pytest.MonkeyPatch, jpegs: list[bytes]) -> None:
    def without_norms(encoder: TorchEncoder) -> TorchEncoder:
        other = resnet()
        for norm in other.tower.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_running_stats()
        return other

    monkeypatch.setitem(VARIANTS, "broken", Variant(change=without_norms))
    (row,) = measured("demo:resnet", replace(FAST, variants=("broken",), batches=(1,)), jpegs)
    assert row.images_per_s > 0
    assert not row.is_equal


def test_a_vector_that_is_not_a_number_is_like_nothing(monkeypatch: pytest.MonkeyPatch, jpegs: list[bytes]) -> None:
    nothing = Variant(start=lambda encoder, pixels: lambda: variants.eager(encoder, pixels)() * torch.nan)
    monkeypatch.setitem(VARIANTS, "nothing", nothing)
    (row,) = measured("demo:vit", replace(FAST, variants=("nothing",), batches=(1,)), jpegs)
    assert row.cosine == 0.0


def test_a_variant_that_fails_is_a_row_with_its_reason(jpegs: list[bytes]) -> None:
    plan = replace(FAST, variants=("folded", "cudagraphs", "eager"), batches=(1,))
    folded, cudagraphs, eager = measured("demo:vit", plan, jpegs)
    assert folded.error == "ValueError: no batch norm stands behind a convolution"
    assert cudagraphs.error == "ValueError: CUDA graphs need a CUDA device"
    assert (folded.images_per_s, folded.is_equal) == (0.0, False)
    assert not eager.error
    assert eager.images_per_s > 0


@pytest.mark.parametrize(
    ("model", "reason"),
    [("demo:none", "EncoderIdError: There is no"), ("fake:small", "ValueError: it does not run on torch")],
)
def test_a_model_that_does_not_load_has_its_reason_in_every_row(model: str, reason: str, jpegs: list[bytes]) -> None:
    rows = measured(model, FAST, jpegs)
    assert [(row.variant, row.batch) for row in rows] == FAST.points
    assert all(row.error.startswith(reason) for row in rows)


def test_what_caused_a_failure_is_told_with_it(monkeypatch: pytest.MonkeyPatch, jpegs: list[bytes]) -> None:
    def fails(encoder: TorchEncoder) -> TorchEncoder:
        raise RuntimeError("above\nand more") from OSError("below")

    monkeypatch.setitem(VARIANTS, "failing", Variant(change=fails))
    (row,) = measured("demo:vit", replace(FAST, variants=("failing",), batches=(1,)), jpegs)
    assert row.error == "RuntimeError: above (OSError: below)"


def test_folding_leaves_no_batch_norm_and_the_encoder_as_it_was() -> None:
    encoder = resnet()
    changed = VARIANTS["folded"].change(encoder)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in tower.modules()) for tower in (encoder.tower, changed.tower)]
    assert norms[0] > 0
    assert norms[1] == 0


def test_a_run_is_repeated_a_few_times_however_long_it_takes() -> None:
    runs: list[None] = []
    assert median_seconds(lambda: runs.append(None), device="cpu", seconds=0.0) >= 0
    assert len(runs) == 3 + 3 + 3  # the first ones, those that settle how many, those that count


def test_only_the_largest_batch_is_compiled_unless_all_are_asked_for() -> None:
    plan = Plan(Placement(), variants=("eager", "compile"), batches=(1, 8))
    assert plan.points == [("eager", 1), ("eager", 8), ("compile", 8)]
    assert replace(plan, compile_all=True).points[2:] == [("compile", 1), ("compile", 8)]


@pytest.mark.parametrize(
    ("device", "figure"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 836),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 757),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA RTX A1000", None),
        ("cpu", None),
    ],
)
def test_the_datasheet_is_known_by_the_cards_name(device: str, figure: float | None) -> None:
    assert datasheet(device, "bfloat16") == figure
    assert datasheet(device, "float32") is None


# Showing.


def shown(*rows: Row) -> str:
    console = Console(width=gpu._WIDTH, file=StringIO())
    for table in tables(rows):
        console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_what_differs_is_marked_and_not_praised() -> None:
    wrong = replace(ROW, variant="channels_last", images_per_s=900.0, cosine=0.9989)
    assert "differs" in shown(ROW, wrong)
    assert "9.00" not in shown(ROW, wrong)
    assert summary([ROW, wrong]) == [
        "Fastest: demo:vit eager at batch 8, 100 images/s: 40.0% of the measured peak, 30.0% of the datasheet's"
    ]


def test_speed_is_told_against_eager_at_the_same_batch() -> None:
    compiled = replace(ROW, variant="compile", images_per_s=150.0)
    assert "1.50" in shown(replace(ROW, batch=1, images_per_s=1.0), ROW, compiled)


def test_what_failed_is_told_once_with_its_batches() -> None:
    failed = [replace(ROW, batch=batch, error="OutOfMemory: no", cosine=0.0) for batch in (32, 128)]
    assert summary(failed) == ["Not measured: demo:vit eager at batch 32, 128: OutOfMemory: no"]
    assert shown(*failed) == ""


def test_the_table_fits_with_the_longest_names_and_figures() -> None:
    longest = replace(
        ROW,
        model="openclip:convnext_base_w@random",
        variant="channels_last",
        batch=1024,
        images_per_s=123456.0,
        tflop_per_s=1234.0,
        of_peak=1.0,
        of_datasheet=1.0,
        peak_bytes=123_456_000_000,
        first_s=1234.5,
    )
    assert "…" not in shown(longest, replace(longest, variant="max-autotune", cosine=-0.5))


# The command.


def test_each_row_is_on_disk_before_the_next_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "new" / "gpu.csv"

    def rows() -> Iterator[Row]:
        yield ROW
        (row,) = csv.DictReader(file.read_text().splitlines())
        assert (row["device"], row["peak"], row["model"], row["cosine"]) == ("NVIDIA L4", "100.0", "demo:vit", "1.0")
        yield ROW

    assert list(kept(rows(), CARD, file)) == [ROW, ROW]


def test_the_command_writes_its_rows_and_prints_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = "--device cpu --dtype float32 --model demo:resnet --variant eager,folded --batch 2 --batch 1 --seconds 0.001"
    assert gpu.main([*line.split(), "--out", "here/gpu.csv"]) == 0
    said = json.loads(Path("here/gpu.json").read_text())
    found = [(row["variant"], row["batch"], row["error"]) for row in said["forwards"]]
    assert found == [("eager", 1, ""), ("eager", 2, ""), ("folded", 1, ""), ("folded", 2, "")]
    assert len(list(csv.DictReader(Path("here/gpu.csv").read_text().splitlines()))) == 4
    assert said["card"]["peak"] > 0
    assert said["uploads"] == []
    printed = capsys.readouterr().out
    assert "no datasheet figure known" in printed
    assert "demo:resnet, 96x96" in printed
    assert "Fastest: demo:resnet" in printed


def test_a_device_that_is_not_there_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "tpu"]) == 2
    assert capsys.readouterr().err.startswith("benchmarks.gpu: 'tpu' is not a device")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--variant", "eager,quick"], "quick: known are eager, channels_last"),
        (["--batch", "8,0"], "a batch has one image or more"),
        (["--out", "gpu.json"], "must end in .csv"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu.main(flags)
    assert complaint in capsys.readouterr().err
