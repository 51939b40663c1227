"""`visiontower search`: a text or an image finds what it should, and what cannot be searched is said in one line."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from service.cli.main import main
from service.cli.tables import Match, matches_table
from service.cli.thumbnails import can_show, thumbnail
from tests.support.paths import ROOT
from tests.support.serving import noise
from training.demo.world import Subject, render, sample_scene

FORMATS = (".parquet", ".npy", ".safetensors")
DRAWINGS = {
    "blue-star": Subject("star", "blue"),
    "green-ring": Subject("ring", "green"),
    "house": Subject("house", None),
    "red-circle": Subject("circle", "red"),
    "yellow-square": Subject("square", "yellow"),
}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings, and what `embed` wrote of them in each format."""
    folder = tmp_path_factory.mktemp("drawings")
    (folder / "photos").mkdir()
    for seed, (name, subject) in enumerate(DRAWINGS.items()):
        scene = sample_scene(np.random.default_rng(seed), subjects=[subject])
        Image.fromarray(render(scene, 192)).save(folder / "photos" / f"{name}.png")
    for suffix in FORMATS:
        main(["embed", str(folder / "photos"), "-o", str(folder / f"out{suffix}"), "--dtype", "float16"])
    return folder


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of noise, and what the fake encoder wrote of them."""
    folder = tmp_path_factory.mktemp("fakes")
    (folder / "photos").mkdir()
    for seed in range(6):
        (folder / "photos" / f"{seed}.png").write_bytes(noise(seed))
    main(["embed", str(folder / "photos"), "-o", str(folder / "out.parquet"), "--model", "fake:vit"])
    return folder


def found(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["search", *argv, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of a refusal."""
    capsys.readouterr()
    assert main(["search", *argv]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    assert line.startswith("visiontower search: ")
    return line


def with_metadata(path: Path, out: Path, **about: str | None) -> Path:
    """The same table with other parameters; None takes one away."""
    table = pq.read_table(path)
    kept = {**{key.decode(): value.decode() for key, value in table.schema.metadata.items()}, **about}
    pq.write_table(table.replace_schema_metadata({key: value for key, value in kept.items() if value is not None}), out)
    return out


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_red_circle_is_found_first(suffix: str, drawings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = found(capsys, str(drawings / f"out{suffix}"), "a red circle", "-k", "3")
    assert Path(answer["matches"][0]["path"]).stem == "red-circle"
    assert [match["rank"] for match in answer["matches"]] == [1, 2, 3]
    scores = [match["score"] for match in answer["matches"]]
    assert scores == sorted(scores, reverse=True)
    assert (answer["model"], answer["query"]) == ("demo:vit", {"text": "a red circle"})
    assert (answer["rows"], answer["vectors"], answer["truncated"]) == (5, 5, False)
    assert answer["seconds"].keys() == {"load", "query", "scan"}


def test_an_image_finds_itself(drawings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(drawings / "photos" / "house.png")
    answer = found(capsys, str(drawings / "out.parquet"), path)
    assert answer["query"] == {"image": path}
    assert answer["matches"][0]["path"] == path
    assert answer["matches"][0]["score"] == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize(
    "flags", [["--resolution", "64"], ["--exact-pixels"], ["--normalize", "--output", "both"], ["--dtype", "float16"]]
)
def test_the_query_is_embedded_as_the_images_were(
    flags: Sequence[str], fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At another size, or resized otherwise, an image has another vector, which is not quite its own."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(3):
        (photos / f"{seed}.png").write_bytes(noise(seed, (301, 203)))
    out = str(tmp_path / "out.parquet")
    main(["embed", str(photos), "-o", out, "--model", "fake:vit", *flags])
    answer = found(capsys, out, str(photos / "1.png"), "-k", "1")
    assert answer["matches"][0]["path"] == str(photos / "1.png")
    assert answer["matches"][0]["score"] == pytest.approx(1, abs=1e-6)


def test_the_page_s_program_finds_what_the_command_finds(
    drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = re.findall(
        r"### NumPy\n\n```python\n(.*?)```", (ROOT / "docs" / "search.md").read_text(), flags=re.DOTALL
    )
    out = shutil.copy(drawings / "out.parquet", tmp_path / "photos.parquet")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(program, "docs/search.md", "exec"), names)
    answer = found(capsys, str(out), names["best"][0])
    assert names["best"] == [match["path"] for match in answer["matches"]]


def test_the_table_shows_paths_and_scores(fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["search", str(fakes / "out.parquet"), str(fakes / "photos" / "3.png"), "-k", "2"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows if row.split("│")[1].strip()] == ["1", "2"]
    assert "+1.0000" in rows[0]
    assert "6 vectors compared in" in shown.out
    assert "▀" not in shown.out, "it is no terminal"
    assert shown.err == ""


def test_a_long_text_is_cut_and_said_so(fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After 16 bytes in the fake."""
    capsys.readouterr()
    assert main(["search", str(fakes / "out.parquet"), "seventeen bytes and more"]) == 0
    assert "The query was cut" in " ".join(capsys.readouterr().out.split())


def test_a_folder_of_shards_is_searched_and_failed_rows_are_counted(
    fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(fakes / "out.parquet")
    nothing = table.slice(0, 1).set_column(
        table.schema.get_field_index("pooled"), table.schema.field("pooled"), pa.nulls(1, table["pooled"].type)
    )
    for number, part in enumerate((table.slice(0, 2), nothing, table.slice(2))):
        errors = pa.array([None if len(part) != 1 else "NotAnImage"] * len(part), pa.string())
        pq.write_table(part.append_column("error", errors), tmp_path / f"part-{number:05}.parquet")
    answer = found(capsys, str(tmp_path), str(fakes / "photos" / "4.png"), "-k", "1000")
    assert (answer["rows"], answer["vectors"], len(answer["matches"])) == (7, 6, 6)
    assert answer["matches"][0] == {**answer["matches"][0], "path": str(fakes / "photos" / "4.png"), "row": 5}
    main(["search", str(tmp_path), "a cat"])
    assert "1 rows have none" in capsys.readouterr().out


def test_a_file_is_an_image_and_the_rest_a_text_unless_it_is_said(
    fakes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(fakes / "out.parquet")
    (tmp_path / "cat").write_bytes(noise(2))
    (tmp_path / "dog").mkdir()
    monkeypatch.chdir(tmp_path)
    assert found(capsys, out, "cat")["query"] == {"image": "cat"}
    assert found(capsys, out, "cat", "--text")["query"] == {"text": "cat"}
    assert found(capsys, out, "dog")["query"] == {"text": "dog"}
    assert found(capsys, out, "x" * 4000)["query"] == {"text": "x" * 4000}
    assert found(capsys, out, "horse.jpg", "--text")["query"] == {"text": "horse.jpg"}
    assert "horse.jpg is not there. If it is meant as a text, add --text." in said(capsys, out, "horse.jpg")
    assert "horse: No such file" in said(capsys, out, "horse", "--image")
    assert "dog: Is a directory" in said(capsys, out, "dog", "--image")
    (tmp_path / "note").write_text("text")
    assert "This is text" in said(capsys, out, "note")


def test_other_weights_are_refused_by_the_difference(
    fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = with_metadata(fakes / "out.parquet", tmp_path / "other.parquet", revision="c0ffee")
    line = said(capsys, str(other), "a cat")
    assert "written with revision c0ffee of fake:vit, and here it has revision fake" in line
    assert "Embed the images again" in line


def test_a_table_that_names_no_encoder_needs_one(
    fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = str(with_metadata(fakes / "out.parquet", tmp_path / "bare.parquet", model=None))
    assert "name it with --model" in said(capsys, bare, "a cat")
    image = str(fakes / "photos" / "2.png")
    assert found(capsys, bare, image, "--model", "fake:vit")["matches"][0]["path"] == image
    assert "64 numbers, and the vectors of" in said(capsys, bare, "a cat", "--model", "demo:vit")
    assert "is of fake:vit, not of demo:vit" in said(capsys, str(fakes / "out.parquet"), "a cat", "--model", "demo:vit")


def test_an_encoder_without_a_text_half_takes_images_only(
    fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.parquet")
    main(["embed", str(fakes / "photos"), "-o", out, "--model", "timm:resnet18@random", "--resolution", "64"])
    assert "has no text tower" in said(capsys, out, "a cat")


def test_tokens_and_what_is_not_there_are_refused(
    fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.npy")
    main(["embed", str(fakes / "photos"), "-o", out, "--model", "fake:vit", "--output", "tokens"])
    assert "write it again with --output pooled" in said(capsys, out, "a cat")
    assert "nowhere.npy is not there" in said(capsys, str(tmp_path / "nowhere.npy"), "a cat")
    assert "no column 'clip'" in said(capsys, str(fakes / "out.parquet"), "a cat", "--column", "clip")


@pytest.mark.parametrize("k", ["0", "-1", "1001", "many", "9" * 5000])
def test_k_is_bounded(k: str, fakes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["search", str(fakes / "out.parquet"), "a cat", f"-k={k}"])
    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("is not a number from 1 to 1000")
    assert len(last) < 200


def test_interrupted_it_ends_with_130_and_no_traceback(fakes: Path, tmp_path: Path) -> None:
    """Ctrl-C while the query, a pipe that nobody writes to, is being read."""
    pipe = tmp_path / "query.png"
    os.mkfifo(pipe)
    line = [sys.executable, "-m", "service.cli", "search", str(fakes / "out.parquet"), str(pipe), "--image"]
    running = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with pipe.open("wb"):  # waits for the reader
        running.send_signal(signal.SIGINT)
        shown, rest = running.communicate(timeout=60)
    assert (running.returncode, shown, rest) == (130, "", "")


def test_a_thumbnail_is_the_picture_in_half_blocks(tmp_path: Path) -> None:
    """Red above blue, three times as high as wide."""
    picture = Image.new("RGB", (100, 300), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 150, 100, 300))
    picture.save(tmp_path / "picture.png")
    drawn = thumbnail(tmp_path / "picture.png")
    assert drawn is not None
    lines = drawn.plain.split("\n")
    assert (len(lines), {len(line) for line in lines}) == (8, {5})
    colours = [(span.style.color.triplet, span.style.bgcolor.triplet) for span in drawn.spans]  # type: ignore[union-attr]
    assert colours[0] == ((255, 0, 0), (255, 0, 0))
    assert colours[-1] == ((0, 0, 255), (0, 0, 255))


def test_a_picture_that_is_gone_or_unreadable_is_a_dash(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("text")
    assert thumbnail(tmp_path / "bad.png") is None
    assert thumbnail(tmp_path / "nowhere.png") is None
    assert thumbnail(tmp_path) is None
    console = Console(file=io.StringIO(), width=80)
    console.print(matches_table([Match(0.5, "a\x1b[31m\n.png", None)], has_pictures=True))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "│ -" in shown
    assert "\x1b" not in shown
    assert "a\\x1b[31m\\n.png" in shown


def test_thumbnails_need_a_terminal_with_colours() -> None:
    assert can_show(Console(force_terminal=True, color_system="truecolor"))
    assert can_show(Console(force_terminal=True, color_system="256"))
    assert not can_show(Console(force_terminal=True, color_system="truecolor", no_color=True))
    assert not can_show(Console(force_terminal=True, color_system=None))
    assert not can_show(Console(force_terminal=False, color_system="truecolor"))
