"""The flags that say what is embedded."""

import argparse
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.bulk.errors import BulkError
from service.bulk.items import Cell
from service.cli.main import main
from service.cli.sources import add_source_flags, inputs_from
from tests.service.bulk.sources.gallery import (
    PICTURES,
    contents,
    folder_of,
    ids,
    items_of,
    parquet_of,
    table_of,
    tar_of,
)
from tests.support.serving import noise

TAGS = [["a"], [], None, ["b", "c"], ["d"]]


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_source_flags(parser)
    return parser.parse_args(words)


def test_flags_become_inputs(tmp_path: Path) -> None:
    folder_of(tmp_path / "in")
    (tmp_path / "x.parquet").write_bytes(parquet_of(table_of(a=["x"] * 11, b=[1] * 11)))
    (tmp_path / "texts").write_text("one\n")
    (tmp_path / "list").write_text(f"{tmp_path}/in/04.jpg\n")
    words = ["--id-column", "name", "--columns", "b,a", "--image-column", "image", "--texts", f"{tmp_path}/texts"]
    found = inputs_from(parsed(f"{tmp_path}/x.parquet", *words, "--list", f"{tmp_path}/list"))
    assert ids(found) == [*PICTURES, f"{tmp_path}/in/04.jpg", "one"]
    assert contents(found) == [*PICTURES.values(), PICTURES["04.jpg"], "one"]
    assert found.columns.names == ["b", "a"]
    carried = next(items_of(found)).columns
    assert carried == {"b": Cell(pa.array([1]), 0), "a": Cell(pa.array(["x"]), 0)}
    (last,) = items_of(inputs_from(parsed(f"{tmp_path}/x.parquet", "--text-column", "a", "--trust-paths")), 10)
    assert last.text == "x"


def test_columns_may_have_spaces_around_their_names(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(parquet_of(table_of(a=["x"] * 11, b=[1] * 11)))
    words = ["--columns", " b, a ,", "--image-column", "image"]
    assert inputs_from(parsed(f"{tmp_path}/x.parquet", *words)).columns.names == ["b", "a"]


def test_a_misspelt_member_of_tars_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of({"0.png": noise(0), "0.txt": b"zero"}))
    embedded(tmp_path / "out.parquet", tmp_path / "x.tar", "--columns", "txt,jsno")
    assert "No sample of the tars has a member .jsno." in capsys.readouterr().err


def test_nothing_named_is_said() -> None:
    with pytest.raises(BulkError, match="There is nothing to embed"):
        inputs_from(parsed())


def embedded(out: Path, *words: str | Path) -> pa.Table:
    """The rows that `visiontower embed` writes."""
    assert main(["embed", *map(str, words), "-o", str(out), "--model", "fake:vit"]) == 0
    return pq.read_table(out)


def test_the_same_pictures_of_a_folder_a_table_and_a_tar_give_the_same_vectors(tmp_path: Path) -> None:
    pictures = {f"{number}.png": noise(number) for number in range(5)}
    prices = pa.array([0, 1, None, 3, 4], pa.int16())
    rows = {"picture": list(pictures.values()), "sku": list(pictures), "price": prices, "tags": TAGS}
    pq.write_table(pa.table(rows), tmp_path / "goods.parquet", row_group_size=2)
    words = {f"{name[0]}.txt": f"picture {name[0]}".encode() for name in pictures}
    (tmp_path / "goods.tar").write_bytes(tar_of(sorted([*pictures.items(), *words.items()])))
    folder = folder_of(tmp_path / "goods", pictures)

    of_folder = embedded(tmp_path / "folder.parquet", folder)
    of_table = embedded(tmp_path / "table", tmp_path / "goods.parquet", "--id-column", "sku", "--columns", "price,tags")
    of_tar = embedded(tmp_path / "tar/", tmp_path / "goods.tar", "--columns", "txt")

    assert of_folder["pooled"].null_count == 0
    assert of_folder["pooled"].to_pylist() == of_table["pooled"].to_pylist() == of_tar["pooled"].to_pylist()
    assert of_folder["id"].to_pylist() == [str(folder / name) for name in pictures]
    assert of_table["id"].to_pylist() == [*pictures]
    assert of_table.select(["price", "tags"]).to_pydict() == {"price": prices.to_pylist(), "tags": TAGS}
    assert of_table["price"].type == pa.int16()
    assert of_tar.select(["id", "txt"]).to_pydict() == {
        "id": [*"01234"], "txt": [f"picture {number}" for number in range(5)]
    }  # fmt: skip


def test_images_and_texts_of_several_sources_are_in_one_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The columns that one of them carries are null in the others; flags may stand between the names."""
    pq.write_table(pa.table({"image": [noise(0), None], "word": ["a", "b"]}), tmp_path / "x.parquet")
    folder_of(tmp_path / "in", {"1.png": noise(1)})
    (tmp_path / "texts").write_text("a cat\n\n")
    words = ["embed", f"{tmp_path}/x.parquet", "--columns", "word", f"{tmp_path}/in", "--texts", f"{tmp_path}/texts"]
    assert main([*words, "-o", f"{tmp_path}/out.parquet", "--model", "fake:vit"]) == 1
    assert f"{tmp_path}/x.parquet#1: There is no image: column image is null." in capsys.readouterr().err
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == [
        f"{tmp_path}/x.parquet#0",
        f"{tmp_path}/x.parquet#1",
        f"{tmp_path}/in/1.png",
        "a cat",
        "",
    ]
    assert table["word"].to_pylist() == ["a", "b", None, None, None]
    assert table["pooled"].is_null().to_pylist() == [False, True, False, False, False]
    alone = embedded(tmp_path / "alone.parquet", tmp_path / "in/1.png")
    np.testing.assert_array_equal(alone["pooled"][0].as_py(), table["pooled"][2].as_py())


def test_interrupted_while_a_server_does_not_answer_it_ends(tmp_path: Path) -> None:
    """Though its threads wait for the server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        (tmp_path / "list").write_text(f"http://{host}:{port}/cat.png\n")
        line = [sys.executable, "-m", "service.cli", "embed", "--list", f"{tmp_path}/list", "-o", f"{tmp_path}/out.npy"]
        running = subprocess.Popen([*line, "--model", "fake:vit"], stderr=subprocess.PIPE, text=True)
        with server.accept()[0]:
            running.send_signal(signal.SIGINT)
            _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert f"kept in {tmp_path}/out.npy.parts" in said


@pytest.mark.parametrize("size", ["1", "4096"])
def test_batches_of_texts_of_any_size_have_room(tmp_path: Path, size: str) -> None:
    (tmp_path / "texts").write_text("".join(f"{number}\n" for number in range(300)))
    table = embedded(tmp_path / "out.parquet", "--texts", tmp_path / "texts", "--batch-size", size)
    assert table["pooled"].null_count == 0
    assert len(table) == 300


def test_tokens_of_texts_are_refused_before_anything_is_embedded(tmp_path: Path) -> None:
    folder_of(tmp_path / "in")
    (tmp_path / "texts").write_text("one\n")
    out = tmp_path / "out.parquet"
    words = ["embed", f"{tmp_path}/in", "--texts", f"{tmp_path}/texts", "--output", "tokens", "-o", str(out)]
    assert main(words) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--device", "foo"], "'foo' is not a device: use auto, cpu"), (["--metrics-port", "99999"], "from 0 to 65535")],
)
def test_what_this_machine_has_not_is_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(tmp_path / "in")
    assert main(["embed", f"{tmp_path}/in", "-o", f"{tmp_path}/out.parquet", *words]) == 2
    captured = capsys.readouterr().err
    assert said in captured
    assert captured.count("\n") == 1


def test_the_name_of_an_item_does_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"id": ["\x1b[2J\n" + "x" * 10_000], "image": [b"no image"]}), tmp_path / "x.parquet")
    assert main(["embed", f"{tmp_path}/x.parquet", "--id-column", "id", "-o", f"{tmp_path}/out.parquet"]) == 1
    line = next(line for line in capsys.readouterr().err.splitlines() if "2J" in line)
    assert line.startswith("\\x1b[2J\\nxxx")
    assert len(line) < 500
