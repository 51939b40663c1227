"""The programs of docs/recipes.md, as they stand there, against a live server: they get the vectors of /embed."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from packaging.requirements import Requirement
from PIL import Image
from safetensors.numpy import load, load_file

from tests.clients.programs import Program, in_python, programs
from tests.support.paths import ROOT
from tests.support.process import served
from training.demo.world import Subject, render, sample_scene

PAGE = "recipes.md"
SERVER = "127.0.0.1:8000"
"""As the page has it."""
IMMICH = "ViT-B-32__openai"
"""The model that the page asks for as Immich does. Its weights are not here: the tests serve a smaller one."""
IMMICH_SERVED = "ViT-S-32-alt__random"
PHOTOS = {"blue-star.jpg": Subject("star", "blue"), "house.jpg": Subject("house", None)}
PHOTOS |= {"red-circle.jpg": Subject("circle", "red")}
TEXTS = ["a red circle", "a house"]
Vectors = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Here:
    """Where recipes run: a folder with photographs, and a server."""

    folder: Path
    address: str

    def embed(self, photos: Sequence[str], texts: Sequence[str], **options: str) -> dict[str, Vectors]:
        """What /embed gives: `images` and `texts`."""
        files = [("image", (self.folder / "photos" / photo).read_bytes()) for photo in photos]
        options |= {"output": "pooled", "normalize": "true", "format": "safetensors"}
        url = f"http://{self.address}/embed"
        answer = httpx.post(url, params=options, files=files, data={"text": texts}, timeout=60, trust_env=False)
        vectors = load(answer.raise_for_status().content)
        return {"images": vectors["pooled"], "texts": vectors["texts"]}

    def there(self, name: str) -> Program:
        """The program of the page, for the server that is here."""
        recipe = programs(PAGE)[name]
        return replace(recipe, code=recipe.code.replace(SERVER, self.address))


def encoder_id(immich: str) -> str:
    return f"openclip:{immich.replace('__', '@')}"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "photos").mkdir()
    for seed, (name, subject) in enumerate(sorted(PHOTOS.items())):
        scene = sample_scene(np.random.default_rng(seed), subjects=[subject])
        Image.fromarray(render(scene, 192)).save(folder / "photos" / name, quality=95)
    # In bfloat16 an image's numbers depend on how many share its forward.
    models = ("--model", "demo:vit", "--model", encoder_id(IMMICH_SERVED))
    with served(*models, "--dtype", "float32") as address:
        yield Here(folder, address.removeprefix("http://"))


def assert_same(found: object, expected: Vectors, recipe: Program) -> None:
    """Up to the precision asked for. The last bits depend on how many images or texts share a forward."""
    vectors = np.asarray(found, np.float64)
    assert vectors.shape == expected.shape
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-3 if "float16" in recipe.code else 1e-6)


def test_every_package_that_a_program_names_is_pinned() -> None:
    lines = (ROOT / "tests" / "clients" / "requirements.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(str(each.specifier).startswith("==") for each in pinned)
    named = {name for page in (PAGE, "search.md") for program in programs(page).values() for name in program.packages}
    assert len(named) > 12
    assert named <= {f"{each.name}[{','.join(each.extras)}]" if each.extras else each.name for each in pinned}


@pytest.mark.slow
@pytest.mark.parametrize("name", in_python(PAGE))
def test_a_recipe_in_python_gets_the_vectors_of_embed_or_finds_what_they_find(here: Here, name: str) -> None:
    recipe = here.there(name)
    left = recipe.left(here.folder)
    best = left.pop("best", None)
    assert best == ["red-circle.jpg", "house.jpg"] or left.keys() == {"images", "texts"}
    for kind, expected in here.embed(sorted(PHOTOS), TEXTS).items():
        if kind in left:
            assert_same(left[kind], expected, recipe)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")
def test_curl_prints_the_vectors_and_keeps_them_in_a_file(here: Here) -> None:
    recipe = here.there("curl")
    image, text = json.loads(recipe.run(here.folder, "sh"))["data"]
    kept = load_file(here.folder / "vectors.safetensors")
    expected = here.embed(["house.jpg"], ["a house"])
    for images in ([image["pooled"]["data"]], kept["pooled"]):
        assert_same(images, expected["images"], recipe)
    for texts in ([text["pooled"]["data"]], kept["texts"]):
        assert_same(texts, expected["texts"], recipe)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("node"), reason="no Node here")
def test_a_replay_of_immich_s_requests_gets_the_vectors_of_embed(here: Here) -> None:
    recipe = here.there("Node")
    assert IMMICH in recipe.code
    recipe = replace(recipe, code=recipe.code.replace(IMMICH, IMMICH_SERVED))
    printed = json.loads(recipe.run(here.folder, "node", "--input-type=module", "-"))
    expected = here.embed(["red-circle.jpg"], ["a red circle"], model=encoder_id(IMMICH_SERVED))
    assert_same([printed["image"]], expected["images"], recipe)
    assert_same([printed["text"]], expected["texts"], recipe)
