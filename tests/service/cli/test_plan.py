"""`visiontower plan`: what it says of a cluster, and where each figure comes from."""

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from encoders.adapters.registry import blueprint
from encoders.memory.prediction import MIB
from service.cli import main as cli
from service.cli.arguments import ArgumentError
from service.cli.main import main
from service.cli.plan import forward_on, planned
from service.cli.plan_tables import amounts
from service.scaling.cards import Card
from service.scaling.measured import BYTES_A_PIXEL, ENGINE_S, WRITE_S
from service.sizes import parse_count, show_bytes
from tests.support.serving import image_bytes

FLAGS = ("--images", "1e9", "--model", "fake:vit", "--gpu", "h100")
SLOW = ("--pace", "100")
"""A card that is the wall."""


@pytest.fixture(autouse=True)
def _80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(*argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["plan", *FLAGS, *argv]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def answered(*argv: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(shown(*argv, "--json", capsys=capsys))
    return answer


def paces(answer: dict[str, Any]) -> dict[str, float]:
    return {stage["name"]: stage["images_per_second"] for stage in answer["stages"]}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for side in (40, 80):
        (folder / f"{side}.jpg").write_bytes(image_bytes(size=(side, side), image_format="JPEG"))
    return folder


@pytest.mark.parametrize(
    ("text", "count"),
    [("250000", 250_000), ("250,000", 250_000), ("10M", 10**7), ("1.1m", 1_100_000), ("1e9", 10**9), ("2B", 2 * 10**9)],
)
def test_counts_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "many", "1e16", "1e-3", "10 MB", "nan"])
def test_what_is_no_count_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="expected for example 250000, 10M or 1e9"):
        parse_count(text)


def test_help_fits_80_columns_and_its_examples_parse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--help"])
    text = capsys.readouterr().out
    examples = [line for line in text.replace("\\\n", "").splitlines() if line.startswith("  visiontower plan ")]
    assert ended.value.code == 0
    assert max(map(len, text.splitlines())) <= 80
    assert len(examples) >= 4
    for line in examples:
        cli.parser().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("argv", [(), ("--output", "both", "--storage-gbit", "123.5", "--price", "1234567")])
def test_the_answer_fits_80_columns(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    answer = shown(*argv, capsys=capsys)
    assert max(map(len, answer.splitlines())) <= 80
    assert "…" not in answer


def test_a_newcomer_sees_clusters_from_one_card_to_a_hundred(capsys: pytest.CaptureFixture[str]) -> None:
    clusters = answered(*SLOW, capsys=capsys)["clusters"]
    assert [(each["gpus"], each["machines"]) for each in clusters] == [
        (1, 1), (2, 1), (5, 1), (10, 2), (20, 3), (50, 7), (100, 13)
    ]  # fmt: skip
    assert [each["images_per_second"] for each in clusters] == [100, 200, 500, 1000, 2000, 5000, 10_000]
    assert {each["wall"] for each in clusters} == {"forward"}


def test_hours_cards_and_price_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--images", "36M", *SLOW, "--gpus", "20", "--gpus-per-machine", "4", "--price", "2.5")
    (cluster,) = answered(*flags, capsys=capsys)["clusters"]
    assert cluster == {
        "gpus": 20,
        "machines": 5,
        "images_per_second": 2000,
        "hours": 5.0,
        "gpu_hours": 100.0,
        "price": 250.0,
        "wall": "forward",
    }
    (row,) = [line.split() for line in shown(*flags, capsys=capsys).splitlines() if line.strip().startswith("20 ")]
    assert row == ["20", "5", "2,000", "5.00", "100", "250", "forward"]


def test_as_many_cards_as_the_hours_take(capsys: pytest.CaptureFixture[str]) -> None:
    (cluster,) = answered("--images", "36M", *SLOW, "--hours", "5", capsys=capsys)["clusters"]
    assert (cluster["gpus"], cluster["hours"]) == (20, 5.0)
    (cluster,) = answered("--images", "36M", *SLOW, "--hours", "4.9", capsys=capsys)["clusters"]
    assert cluster["gpus"] == 21


def test_the_forward_is_the_encoder_s_flops_by_a_part_of_the_peak(capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered("--utilisation", "0.25", "--resolution", "64", capsys=capsys)
    assert answer["image"]["flops"] == 64_000  # fake:vit takes 1000 a token
    assert paces(answer)["forward"] == pytest.approx(0.25 * 989e12 / 64_000)
    assert answer["gpu"] == {"name": "h100", "tflops": 989, "memory_bytes": 80 * 10**9}


def test_the_other_stages_are_what_a_card_has_by_what_an_image_takes(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--cores-per-gpu", "6", "--engines-per-gpu", "3", "--gbit-per-gpu", "8", "--image-bytes", "50kB")
    answer = answered(*flags, "--storage-gbit", "80", capsys=capsys)
    row = answer["image"]["write_bytes"]
    decode = answer["image"]["decode_s"]
    assert paces(answer) == pytest.approx(
        {
            "read": 1e9 / 50_000,
            "cores": 6 / (decode + ENGINE_S + WRITE_S * row),
            "engine": 3 / ENGINE_S,
            "forward": answer["stages"][3]["images_per_second"],
            "write": 1e9 / row,
            "storage": 1e10 / (50_000 + row),
        }
    )
    assert answer["read_bytes"] == 10**9 * 50_000
    assert answer["at_rest_bytes"] == 10**9 * row


def test_what_keeps_a_card_busy_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    busy = answered("--pace", "5000", "--image-bytes", "50kB", capsys=capsys)["busy_gpu"]
    assert busy["engines"] == math.ceil(5000 * ENGINE_S)
    assert busy["bytes_per_second"] == 5000 * 50_000
    flags = ("--pace", "5000", "--image-bytes", "50kB")
    assert f"{busy['cores']:.2f} cores, {busy['engines']} engines and 2.00 Gbit/s." in shown(*flags, capsys=capsys)


@pytest.mark.parametrize(("output", "dtype"), [("pooled", "float32"), ("tokens", "float16"), ("both", "float16")])
def test_a_row_has_the_bytes_that_embed_says(
    output: str, dtype: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--model", "fake:vit", "--output", output, "--dtype", dtype)
    row = answered(*asked, capsys=capsys)["image"]["write_bytes"]
    assert main(["embed", str(photos), "-o", str(tmp_path / "out"), *asked, "--device", "cpu", "--dry-run"]) == 0
    assert f" {show_bytes(row)} a row" in capsys.readouterr().out


def test_larger_files_of_a_larger_size_are_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (answered("--image-size", size, capsys=capsys) for size in ("800x600", "600x800"))
    assert one == other
    assert one["image"]["read_bytes"] == pytest.approx(BYTES_A_PIXEL * 800 * 600)
    assert one["image"]["decode_s"] > answered(capsys=capsys)["image"]["decode_s"]


def test_a_sample_takes_the_place_of_what_is_assumed_of_pictures(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = answered("--sample", str(photos), capsys=capsys)
    sizes = [path.stat().st_size for path in photos.iterdir()]
    assert answer["image"]["read_bytes"] == sum(sizes) / 2
    assert answer["image"]["decode_s"] > 0
    assert any(f"of 2 in {photos} on this machine" in each for each in answer["measured"])
    assert not any("picture" in each or "file" in each for each in answer["assumed"])


def test_what_is_given_is_not_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {
        "--gpus-per-machine": "4",
        "--cores-per-gpu": "24",
        "--engines-per-gpu": "2",
        "--gbit-per-gpu": "25",
        "--storage-gbit": "400",
        "--utilisation": "0.5",
        "--image-size": "800x600",
        "--image-bytes": "100kB",
    }
    assumed = "\n".join(answered(capsys=capsys)["assumed"])
    assert all(f"({flag})" in assumed for flag in flags)
    answer = answered(*(word for pair in flags.items() for word in pair), capsys=capsys)
    assert len(answer["given"]) == len(flags)
    assert not any("--" in each for each in answer["assumed"])
    assert not any("--utilisation" in each for each in answered(*SLOW, capsys=capsys)["assumed"])


def test_the_ends_of_a_range_are_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Given:" in shown("--price", "1e9", "--cores-per-gpu", "1e-9", capsys=capsys)


def test_the_kinds_of_figures_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    answer = shown("--price", "2", capsys=capsys)
    for kind in ("Worked out:", "Data sheet:", "Measured:", "Given:", "Assumed:", "Not counted:"):
        assert f"\n{kind} " in answer
    assert "Given:" not in shown(capsys=capsys)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--images", "some"], "--images: 'some' is not a whole number"),
        (["--model", "nowhere:x"], "Unknown scheme"),
        (["--resolution", "33"], "32x32 or 40x40"),
        (["--resolution", "big"], "--resolution: 'big'"),
        (["--gpu", "v100"], "--gpu: 'v100' is not known: choose one of t4, "),
        (["--gpus", "0"], "--gpus: '0' is not a whole number from 1"),
        (["--gpus", "1,"], "--gpus: '' is not a whole number"),
        (["--hours", "1.1e9"], "--hours: '1.1e9' is not a number from 1e-9 to 1e9"),
        (["--hours", "0"], "--hours: '0' is not a number from 1e-9 to 1e9"),
        (["--hours", "1e-9"], "--hours: it takes more than 1,000,000 cards"),
        (["--pace", "1e300"], "--pace: '1e300'"),
        (["--gpus", "1", "--hours", "1"], "--gpus and --hours do not go together"),
        (["--hours", "1", "--storage-gbit", "1"], "--hours: with any number of cards it takes "),
        (["--gpus-per-machine", "1.5"], "--gpus-per-machine: '1.5'"),
        (["--cores-per-gpu", "none"], "--cores-per-gpu: 'none'"),
        (["--engines-per-gpu", "0"], "--engines-per-gpu: '0'"),
        (["--gbit-per-gpu", "inf"], "--gbit-per-gpu: 'inf'"),
        (["--storage-gbit", "0"], "--storage-gbit: '0'"),
        (["--price", "free"], "--price: 'free'"),
        (["--utilisation", "40"], "--utilisation: 40 is more than the whole"),
        (["--pace", "-3"], "--pace: '-3'"),
        (["--pace", "3", "--utilisation", "0.4"], "--utilisation and --pace do not go together"),
        (["--image-size", "0x5"], "--image-size: a picture has 1 pixel"),
        (["--image-size", "large"], "--image-size: 'large' is no size: expected WxH"),
        (["--image-bytes", "0"], "--image-bytes: a file has 1 byte"),
        (["--image-bytes", "heavy"], "--image-bytes: 'heavy'"),
        (["--sample", "nowhere"], "--sample: nowhere is not there"),
        (["--sample", ".", "--image-size", "5x5"], "--sample and --image-size do not go together"),
        (["--sample", ".", "--image-bytes", "5"], "--sample and --image-bytes do not go together"),
    ],
)
def test_an_error_is_one_line_and_status_2(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *FLAGS, *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("visiontower plan: ")
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert captured.out == ""


def test_a_sample_without_an_image_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert main(["plan", *FLAGS, "--sample", str(tmp_path)]) == 2
    assert "--sample: none of 1 pictures could be decoded: " in capsys.readouterr().err


def test_an_encoder_that_the_card_does_not_hold_is_refused() -> None:
    drawn = blueprint("fake:vit")
    size, outputs, card = drawn.spec.image_size, drawn.spec.outputs(pooled=True), Card("small", 1, 1024 * MIB)
    assert forward_on(card, 1, drawn, size, outputs).max_batch
    expected = r"does not fit: a forward of one image takes 558.7 MiB, and an engine on a small has 512 MiB\. Choose"
    with pytest.raises(ArgumentError, match=expected):
        forward_on(card, 2, drawn, size, outputs)


def test_a_batch_that_the_card_does_not_hold_is_said() -> None:
    plan = planned(cli.parser().parse_args(["plan", *FLAGS]))
    assert "--batch-size" not in amounts(plan)
    few = replace(plan, forward=replace(plan.forward, max_batch=7))
    assert "up to 7 images fit. Run `embed` with --batch-size 7 or less." in amounts(few)
