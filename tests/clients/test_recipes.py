"""The programs of docs/recipes.md, as they stand there, against a live server: they get the vectors of /embed."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from packaging.requirements import Requirement
from PIL import Image
from safetensors.numpy import load, load_file

from tests.support.paths import ROOT
from tests.support.process import served
from training.demo.world import Subject, render, sample_scene

PYTHON = ROOT / "build" / "clients" / ".venv" / "bin" / "python"
SERVER = "127.0.0.1:8000"
"""As the page has it."""
PHOTOS = {"blue-star.jpg": Subject("star", "blue"), "house.jpg": Subject("house", None)}
PHOTOS |= {"red-circle.jpg": Subject("circle", "red")}
TEXTS = ["a red circle", "a house"]
LEFT = """
import json, numpy
left = {name: numpy.asarray(globals()[name]).tolist() for name in ("images", "texts", "best") if name in globals()}
open("left.json", "w").write(json.dumps(left))
"""
"""Runs behind a recipe in Python, and keeps the variables that the page speaks of."""

Vectors = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Recipe:
    """A program of the page, under its heading."""

    name: str
    language: str
    code: str

    @property
    def packages(self) -> set[str]:
        """What the program says is to be installed."""
        lines = re.findall(r"^# pip install (.+)$", self.code, flags=re.MULTILINE)
        return {name.strip('"') for line in lines for name in line.split()}


@cache
def recipes() -> dict[str, Recipe]:
    """By the heading that each stands under."""
    found = {}
    for part in re.split(r"^##+ ", (ROOT / "docs" / "recipes.md").read_text(), flags=re.MULTILINE)[1:]:
        name = part.splitlines()[0]
        for language, code in re.findall(r"```(\w+)\n(.*?)```", part, flags=re.DOTALL):
            assert name not in found, f"{name} has two programs"
            found[name] = Recipe(name, language, code)
    return found


PYTHON_RECIPES = [recipe.name for recipe in recipes().values() if recipe.language == "python"]


@dataclass(frozen=True)
class Here:
    """Where recipes run: a folder with photographs, and a server that gives `images` and `texts` for them."""

    folder: Path
    address: str
    images: Vectors
    texts: Vectors

    def run(self, recipe: Recipe, *command: str | Path) -> str:
        """What the program prints. It can reach nothing but the server."""
        code = recipe.code.replace(SERVER, self.address)
        nowhere = {f"{scheme}_PROXY": "http://127.0.0.1:9" for scheme in ("HTTP", "HTTPS", "ALL")}
        ours = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")  # the clients share much that is slow to compile
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        environment |= {**nowhere, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        program = code + LEFT if recipe.language == "python" else code
        done = subprocess.run(
            command, input=program, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{recipe.name}, in the environment of `make clients`:\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "photos").mkdir()
    for seed, (name, subject) in enumerate(sorted(PHOTOS.items())):
        scene = sample_scene(np.random.default_rng(seed), subjects=[subject])
        Image.fromarray(render(scene, 192)).save(folder / "photos" / name, quality=95)
    files = [("image", (folder / "photos" / name).read_bytes()) for name in sorted(PHOTOS)]
    options = {"output": "pooled", "normalize": "true", "format": "safetensors"}
    # In bfloat16 an image's numbers depend on how many share its forward.
    with served("--model", "demo:vit", "--dtype", "float32") as address:
        answer = httpx.post(f"{address}/embed", params=options, files=files, data={"text": TEXTS}, trust_env=False)
        vectors = load(answer.raise_for_status().content)
        yield Here(folder, address.removeprefix("http://"), vectors["pooled"], vectors["texts"])


def assert_same(found: object, expected: Vectors) -> None:
    """Up to half precision, which some recipes ask for."""
    vectors = np.asarray(found, np.float64)
    assert vectors.shape == expected.shape
    np.testing.assert_allclose(vectors, expected, atol=1e-3)


def test_every_package_that_a_recipe_names_is_pinned() -> None:
    lines = (ROOT / "tests" / "clients" / "requirements.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(str(each.specifier).startswith("==") for each in pinned)
    named = {name for recipe in recipes().values() for name in recipe.packages}
    assert len(named) > 8
    assert named <= {f"{each.name}[{','.join(each.extras)}]" if each.extras else each.name for each in pinned}


@pytest.mark.slow
@pytest.mark.parametrize("name", PYTHON_RECIPES)
def test_a_recipe_in_python_gets_the_vectors_of_embed_or_finds_what_they_find(here: Here, name: str) -> None:
    assert PYTHON.exists(), "the clients have an environment of their own: make clients"
    (here.folder / "left.json").unlink(missing_ok=True)
    here.run(recipes()[name], PYTHON, "-")
    left = json.loads((here.folder / "left.json").read_text())
    assert "best" in left or {"images", "texts"} <= left.keys()
    assert_same(left.get("images", here.images), here.images)
    assert_same(left.get("texts", here.texts), here.texts)
    assert left.get("best", ["red-circle.jpg", "house.jpg"]) == ["red-circle.jpg", "house.jpg"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")
def test_curl_prints_the_vectors_and_keeps_them_in_a_file(here: Here) -> None:
    image, text = json.loads(here.run(recipes()["curl"], "sh"))["data"]
    kept = load_file(here.folder / "vectors.safetensors")
    house = sorted(PHOTOS).index("house.jpg")
    for vectors in ([image["pooled"]["data"]], kept["pooled"]):
        assert_same(vectors, here.images[house : house + 1])
    for vectors in ([text["pooled"]["data"]], kept["texts"]):
        assert_same(vectors, here.texts[1:])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("node"), reason="no Node here")
def test_a_replay_of_immich_s_requests_gets_the_vectors_of_embed(here: Here) -> None:
    printed = json.loads(here.run(recipes()["Node"], "node", "--input-type=module", "-"))
    assert_same(printed["image"], here.images[sorted(PHOTOS).index("red-circle.jpg")])
    assert_same(printed["text"], here.texts[0])
