"""The flags that say what is embedded."""

import argparse
from pathlib import Path

import pytest

from service.bulk.resume import BulkError
from service.cli.sources import add_source_flags, inputs_from
from tests.service.bulk.sources.gallery import PICTURES, contents, folder_of, ids, parquet_of, table_of


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
    assert next(found.items(0)).columns == {"b": 1, "a": "x"}
    (last,) = inputs_from(parsed(f"{tmp_path}/x.parquet", "--text-column", "a", "--trust-paths")).items(10)
    assert last.text == "x"


def test_nothing_named_is_said() -> None:
    with pytest.raises(BulkError, match="There is nothing to embed"):
        inputs_from(parsed())
