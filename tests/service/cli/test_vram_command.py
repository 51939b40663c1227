"""`visiontower vram` and the amounts of memory it reads and writes."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.adapters.registry import blueprint
from encoders.contract.values import ImageSize, TokenKind
from encoders.memory.prediction import CUDA, MIB, predict
from encoders.runtime.blueprint import TorchBlueprint
from service.cli import main as cli
from service.cli.main import main
from service.sizes import parse_bytes, show_bytes

GIB = 2**30
ROW = {
    "resolution",
    "grid",
    "batch",
    "dtype",
    "weights_bytes",
    "io_bytes",
    "activation_bytes",
    "overhead_bytes",
    "total_bytes",
    "tokens",
    "flops",
    "max_batch",
    "max_resolution",
}


@pytest.fixture(autouse=True)
def _80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(*argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["vram", *argv]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def answered(*argv: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(shown(*argv, "--json", capsys=capsys))
    return answer


def sentence(*argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    (fit,) = answered(*argv, capsys=capsys)["fits"]
    return str(fit["because"])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("24GiB", 24 * GIB),
        pytest.param("1" + "0" * 400, 10**400, id="more than a float"),
        ("24 gib", 24 * GIB),
        ("24G", 24 * GIB),
        ("24GB", 24 * 10**9),
        ("1.5GiB", 3 * GIB // 2),
        ("512MiB", 512 * MIB),
        ("64k", 65536),
        ("2T", 2048 * GIB),
        ("12345678901", 12345678901),
        ("7B", 7),
        ("0", 0),
        (4096, 4096),
    ],
)
def test_amounts_of_memory_are_read_as_people_write_them(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "24 GiBs", "24,5GiB", "1e9", "24XB", "half", "2 4GiB"])
def test_what_is_no_amount_of_memory_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="expected for example 24GiB"):
        parse_bytes(text)


@given(st.integers(0, 2**52))
def test_what_is_shown_is_read_as_the_same_to_a_twentieth_of_its_unit(count: int) -> None:
    text = show_bytes(count)
    number, unit = text.split(" ")
    assert abs(parse_bytes(text) - count) <= 0.051 * parse_bytes(f"1{unit}")
    assert 0 <= float(number) < 1024 or unit == "TiB"


def test_help_fits_80_columns_and_its_examples_parse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["vram", "--help"])
    text = capsys.readouterr().out
    examples = [line for line in text.splitlines() if line.startswith("  visiontower vram ")]
    assert ended.value.code == 0
    assert max(map(len, text.splitlines())) <= 80
    assert len(examples) >= 4
    for line in examples:
        cli.parser().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("argv", [(), ("--gpu", "24GiB", "--beside", "1GiB")])
def test_the_table_fits_80_columns(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    table = shown(
        "fake:a-name-of-usual-length@random", "--batch", "1,8,5000", "--resolution", "32,512", *argv, capsys=capsys
    )
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in table


def test_a_newcomer_sees_the_native_size_and_larger_ones(capsys: pytest.CaptureFixture[str]) -> None:
    plan = answered("demo:vit", capsys=capsys)["plan"]
    assert [(row["resolution"], row["batch"]) for row in plan] == [
        ([side, side], batch) for side in (96, 144, 192) for batch in (1, 8, 32)
    ]
    assert {row["dtype"] for row in plan} == {"bfloat16"}


def test_rows_have_the_names_of_the_contract_and_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    for row in answered("demo:convnext", "--gpu", "24GiB", capsys=capsys)["plan"]:
        assert row.keys() == ROW
        parts = ("weights_bytes", "io_bytes", "activation_bytes", "overhead_bytes")
        assert row["total_bytes"] == sum(row[part] for part in parts)


def test_a_row_is_what_the_blueprint_costs(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--resolution", "96x144", "--batch", "5", "--dtype", "float16", "--output", "both", "--layer", "-2")
    (row,) = answered("demo:vit", *flags, capsys=capsys)["plan"]
    drawn = blueprint("demo:vit", dtype="float16")
    outputs = drawn.spec.outputs(tokens=TokenKind.HIDDEN, pooled=True, layer=-2)
    cost = drawn.cost(ImageSize(96, 144), outputs, device="cuda")
    expected = predict(cost, 5, weights_bytes=drawn.spec.weights_bytes, overhead=CUDA)
    assert (row["resolution"], row["grid"], row["tokens"]) == ([96, 144], [6, 9], 5 * 54)
    assert row["total_bytes"] == expected.total_bytes
    assert row["flops"] == expected.flops


def test_a_cpu_has_no_context_and_computes_in_float32(capsys: pytest.CaptureFixture[str]) -> None:
    plan = answered("demo:vit", "--device", "cpu", capsys=capsys)["plan"]
    assert {(row["dtype"], row["overhead_bytes"]) for row in plan} == {("float32", 0)}


def test_without_a_card_nothing_is_said_of_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered("demo:vit", capsys=capsys)
    assert "fits" not in answer
    assert {(row["max_batch"], row["max_resolution"]) for row in answer["plan"]} == {(None, None)}


def test_what_is_beside_is_taken_off_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    beside = answered("fake:vit", "--gpu", "24GiB", "--beside", "23GiB", capsys=capsys)["plan"]
    alone = answered("fake:vit", "--gpu", "1GiB", capsys=capsys)["plan"]
    assert beside == alone


def test_yes_it_fits_with_this_batch_up_to_this_size(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--gpu", "24GiB", "--beside", "4GiB", "--resolution", "64")
    answer = answered("fake:vit", *flags, capsys=capsys)
    said = answer["fits"][0]["because"]
    most = answer["plan"][0]["max_batch"]
    assert said.startswith(f"Yes, in float32: 24 GiB less 4 GiB hold image batches of up to {most:,} at 64x64.")
    assert said.endswith("The largest resolution is 512x512 (it takes no larger) at batch 1, 8 and 32.")
    table = shown("fake:vit", *flags, capsys=capsys)
    assert " ".join(table.split()).endswith(said)


def test_no_it_needs_so_much_more(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = answered("fake:vit", "--resolution", "256", "--batch", "32", capsys=capsys)["plan"]
    room = row["total_bytes"] - 3 * MIB
    said = sentence("fake:vit", "--resolution", "256", "--batch", "32", "--gpu", str(room), capsys=capsys)
    assert said.startswith("No, in float32: ")
    assert "A batch of 32 at 256x256 needs 3 MiB more." in said
    assert "The largest resolution is " in said


def test_partly_where_only_the_smaller_sizes_fit(capsys: pytest.CaptureFixture[str]) -> None:
    small, large = (
        answered("fake:vit", "--resolution", side, "--batch", "32", capsys=capsys)["plan"][0]["total_bytes"]
        for side in ("96", "256")
    )
    between = str((small + large) // 2)
    said = sentence("fake:vit", "--resolution", "96,256", "--batch", "32", "--gpu", between, capsys=capsys)
    assert said.startswith("Partly, in float32")
    assert "at 256x256 needs" in said


def test_where_not_even_the_weights_fit_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    said = sentence("fake:vit", "--gpu", "24GiB", "--beside", "23.9GiB", capsys=capsys)
    assert said.startswith("No, in float32: 24 GiB less 23.9 GiB are too few. Weights and context alone take 512 MiB.")
    assert said.endswith("No resolution fits at batch 1, 8 and 32.")


def test_what_does_not_fit_is_marked_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--resolution", "512", "--batch", "1,32")
    one, many = (row["total_bytes"] for row in answered("fake:vit", *flags, capsys=capsys)["plan"])
    table = shown("fake:vit", *flags, "--gpu", str((one + many) // 2), capsys=capsys)
    assert f" {one / MIB:,.0f} " in table
    assert f">{many / MIB:,.0f} " in table


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["nowhere:x"], "Unknown scheme"),
        (["vit"], "not an encoder id"),
        (["openclip:RN51@random"], "Did you mean RN50"),
        (["fake:vit", "--resolution", "33"], "32x32 or 40x40"),
        (["fake:vit", "--resolution", "32,big"], "'big'"),
        (["fake:vit", "--layer", "4"], "0 to 3"),
        (["fake:vit", "--batch", "0"], "--batch: '0'"),
        (["fake:vit", "--batch", "1,many"], "'many'"),
        (["fake:vit", "--dtype", "int4"], "--dtype: 'int4'"),
        (["fake:vit", "--gpu", "lots"], "--gpu: 'lots' is not an amount of memory"),
        (["fake:vit", "--gpu", "1GiB", "--beside", "x"], "--beside: 'x'"),
        (["fake:vit", "--gpu", "1GiB", "--beside", "2GiB"], "--beside 2GiB is more than --gpu 1GiB"),
        (["fake:vit", "--beside", "2GiB"], "say with --gpu how large it is"),
        (["fake:vit", "--plot", "plan.gif"], "plan.gif must end in .png, .svg or .pdf"),
    ],
)
def test_an_error_is_one_line_and_status_2(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vram", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("visiontower vram: ")
    assert captured.err.count("\n") == 1
    assert named in captured.err
    assert captured.out == ""


def test_a_forward_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def look(*_: object, **__: object) -> None:
        raise RuntimeError("cannot be called on meta tensors")

    monkeypatch.setattr(TorchBlueprint, "run", look)
    assert main(["vram", "demo:vit"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "visiontower vram: The forward of demo:vit failed. (RuntimeError: cannot be called on meta tensors)\n"
    )


def test_a_plot_without_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["vram", "fake:vit", "--plot", str(tmp_path / "plan.png")]) == 2
    assert (
        capsys.readouterr().err == "visiontower vram: --plot: it takes matplotlib: pip install 'visiontower[plot]'.\n"
    )


def test_a_plot_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["vram", "fake:vit", "--plot", str(tmp_path / "file" / "plan.png")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
@pytest.mark.parametrize(
    "argv", [(), ("--gpu", "1GiB", "--beside", "512MiB"), ("--gpu", "24GiB"), ("--resolution", "32", "--batch", "1")]
)
def test_the_suffix_chooses_the_kind_of_picture(
    suffix: str, start: bytes, argv: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deep" / f"plan{suffix}"
    shown("fake:vit", "--plot", str(path), *argv, capsys=capsys)
    assert path.read_bytes().startswith(start)


def test_a_picture_names_each_batch_the_card_and_what_is_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    path = tmp_path / "plan.svg"
    flags = ("--gpu", "3GiB", "--beside", "2GiB", "--resolution", "32,64x128", "--dtype", "float32,bfloat16")
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # letters as letters, not as paths
        shown("demo:convnext", *flags, "--plot", str(path), capsys=capsys)
    picture = path.read_text()
    for text in ("demo:convnext", "batch 1", "batch 32", "the card:", "3 GiB", "beside 2 GiB:", "64x128", "float32"):
        assert text in picture
