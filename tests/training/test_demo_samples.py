"""The pictures that the page offers are there, small and free to pass on; the demo encoders know the drawings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders import ImageSize
from encoders.images.decode import decode
from training.demo.picture import see
from training.demo.samples import DRAWINGS, LIST, PHOTOGRAPHS, SAMPLES, Drawing, write

ENTRIES: list[dict[str, Any]] = json.loads((SAMPLES / LIST).read_text())
each_drawing = pytest.mark.parametrize("drawing", DRAWINGS, ids=lambda drawing: drawing.file)


def test_the_list_and_the_pictures_are_what_the_command_makes(tmp_path: Path) -> None:
    """Drawings pixel by pixel; a JPEG's bytes depend on the library that writes it."""
    write(tmp_path)
    assert (tmp_path / LIST).read_text() == (SAMPLES / LIST).read_text()
    for entry in ENTRIES:
        made, shipped = (np.asarray(decode((folder / entry["file"]).read_bytes())) for folder in (tmp_path, SAMPLES))
        np.testing.assert_allclose(made, shipped, atol=0 if entry["drawing"] else 8)


def test_every_picture_is_listed_once() -> None:
    files = [entry["file"] for entry in ENTRIES]
    assert sorted([*files, LIST, "LICENCES.md"]) == sorted(path.name for path in SAMPLES.iterdir())
    assert [entry["drawing"] for entry in ENTRIES] == [True] * len(DRAWINGS) + [False] * len(PHOTOGRAPHS)
    for entry in ENTRIES:
        assert entry.keys() == {"file", "name", "texts", "drawing"}
        assert len(entry["texts"]) > 1


def test_they_are_small() -> None:
    for entry in ENTRIES:
        path = SAMPLES / entry["file"]
        assert path.stat().st_size < 25_000
        assert 96 <= min(decode(path.read_bytes()).size) <= max(decode(path.read_bytes()).size) <= 384
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) < 160_000


def test_every_photograph_has_its_licence() -> None:
    said = (SAMPLES / "LICENCES.md").read_text()
    for photograph in PHOTOGRAPHS:
        (row,) = (line for line in said.splitlines() if line.startswith(f"| `{photograph.file}` |"))
        assert f"`{photograph.source}`" in row
        assert "CC0" in row or "public domain" in row


@each_drawing
def test_demo_vit_knows_what_a_drawing_shows_and_what_it_does_not(drawing: Drawing) -> None:
    texts = [str(text) for text in ENTRIES[DRAWINGS.index(drawing)]["texts"]]
    seen = see("demo:vit", (SAMPLES / drawing.file).read_bytes(), texts, ImageSize(96, 96))
    *shown, absent = seen.cosine
    assert min(shown) > absent + 0.05
