"""The programs of docs/search.md, as they stand there: they find what `visiontower search` finds."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.cli.main import main
from tests.clients.programs import in_python, programs
from training.demo.world import render, sample_scene

PAGE = "search.md"
PHOTOS = 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """As the page has it: a Parquet file and a Lance dataset of `photos/`, whose second file is no image."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        Path("photos").mkdir()
        for seed in range(PHOTOS):
            scene = sample_scene(np.random.default_rng(seed))
            Image.fromarray(render(scene, 96)).save(f"photos/{seed:02}.jpg", quality=95)
        Path("photos/01.jpg").write_bytes(b"no image")
        for name in ("photos.parquet", "photos.lance"):
            main(["embed", "photos/", "-o", name, "--dtype", "float16"])
        yield folder


@pytest.fixture
def found(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The five nearest to the first photograph."""
    assert main(["search", "photos.parquet", "photos/00.jpg", "-k", "5", "--json"]) == 0
    return [match["path"] for match in json.loads(capsys.readouterr().out)["matches"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", in_python(PAGE))
def test_a_program_finds_what_search_finds(folder: Path, found: list[str], name: str) -> None:
    assert found[0] == "photos/00.jpg"
    assert programs(PAGE)[name].left(folder) == {"best": found}


def test_there_is_a_program_for_each_kind_of_index() -> None:
    assert in_python(PAGE) == ["NumPy", "FAISS", "DuckDB", "LanceDB", "Qdrant"]
