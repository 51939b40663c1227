"""Similarity, classification, plans, models and readiness through the client."""

from pathlib import Path

import httpx
import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from tests.client.support import client, client_of
from tests.support.serving import app_of, noise
from visiontower_client import AsyncClient, BadImage, InvalidRequest, Label, Ready, UnknownModel, VisiontowerError

pytestmark = pytest.mark.anyio
PICTURES = [noise(seed) for seed in range(5)]
TEXTS = ["a cat", "a dog", "a bird"]


async def test_similarity_is_that_of_the_route() -> None:
    app = app_of()
    async with (
        client_of(app) as own,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as plain,
    ):
        found = await own.similarity(PICTURES, TEXTS, templates=["a photo of {}", "{}"], heatmap=True, batch=2)
        fields = {"text": TEXTS, "template": ["a photo of {}", "{}"], "heatmap": "true"}
        files = [("image", picture) for picture in PICTURES]
        theirs = (await plain.post("/similarity", files=files, data=fields)).json()
    for name in ("cosine", "logits", "probabilities"):
        np.testing.assert_array_equal(getattr(found, name), np.array(theirs[name], np.float32))
    heatmaps = np.stack([each for each in found.heatmaps if each is not None])
    np.testing.assert_array_equal(heatmaps, np.array(theirs["heatmap"], np.float32))
    assert (found.model, found.activation, found.logit_scale) == ("fake:vit", "softmax", 100.0)
    assert found.errors == {}


async def test_similarity_knows_the_server_s_templates() -> None:
    async with client() as own:
        named = await own.similarity(PICTURES[0], "cat", templates="photo")
        spelt = await own.similarity(PICTURES[0], ["cat"], templates=["a photo of a {}."])
    np.testing.assert_array_equal(named.cosine, spelt.cosine)


@pytest.mark.parametrize("batch", [1, 2, 16])
async def test_rows_of_bad_images_are_no_numbers(batch: int, tmp_path: Path) -> None:
    inputs = [PICTURES[0], b"no image", tmp_path / "gone.png", PICTURES[1]]
    async with client() as own:
        found = await own.similarity(inputs, TEXTS, errors="return", heatmap=True, batch=batch)
        good = await own.similarity(PICTURES[:2], TEXTS)
        with pytest.raises(BadImage, match="input 1"):
            await own.similarity(inputs, TEXTS, batch=batch)
        with pytest.raises(BadImage, match="input 0"):
            await own.similarity([b"no image"], TEXTS, errors="return")
    assert {index: error.slug for index, error in found.errors.items()} == {1: "not-an-image", 2: "image-unreadable"}
    assert np.isnan(found.cosine[[1, 2]]).all()
    np.testing.assert_array_equal(found.cosine[[0, 3]], good.cosine)
    assert [heatmap is None for heatmap in found.heatmaps] == [False, True, True, False]


async def test_only_images_are_compared_with_texts() -> None:
    async with client() as own:
        with pytest.raises(TypeError, match=r"only images go here: pass a pathlib\.Path"):
            await own.similarity(["cat.jpg"], TEXTS)
        with pytest.raises(InvalidRequest) as none:
            await own.similarity(PICTURES, [])
        with pytest.raises(ValueError, match="no image"):
            await own.similarity([], TEXTS)
        with pytest.raises(TypeError, match="text 1 is PosixPath, and no str"):
            await own.similarity(PICTURES, ["a", Path("cat.jpg")])  # type: ignore[list-item]  # as nobody should
        with pytest.raises(TypeError, match="label 0 is bytes"):
            await own.classify(PICTURES, [b"cat"])  # type: ignore[list-item]  # as nobody should
    assert none.value.slug == "no-texts"


def entries(labels: list[dict[str, object]], number: int) -> list[dict[str, object]]:
    return [{"index": index, "labels": labels} for index in range(number)]


async def test_classify_speaks_the_contract() -> None:
    """As the service answers POST /classify: fields and entries."""
    sent: list[httpx.Request] = []
    one: dict[str, object] = {"label": "cat", "index": 1, "probability": 0.75, "cosine": 0.25}

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        problem = {"type": "/problems/not-an-image", "title": "x", "status": 415, "detail": "text"}
        data = [*entries([one], 1), {"index": 1, "error": problem}]
        return httpx.Response(207, json={"object": "classification", "model": "m", "data": data, "labels": 3})

    async with AsyncClient("http://service", transport=httpx.MockTransport(answer)) as own:
        found = await own.classify(
            PICTURES[:2], ["dog", "cat", "bird"], top_k=1, templates="openai", model="m", errors="return"
        )
        with pytest.raises(BadImage, match="input 1"):
            await own.classify(PICTURES[:2], "animals")
    assert found[0] == [Label("cat", 1, 0.75, 0.25)]
    assert isinstance(found[1], BadImage)
    assert dict(sent[0].url.params) == {"model": "m", "top_k": "1", "truncate": "true"}
    content = sent[0].content
    assert content.count(b'name="label"\r\n') == 3
    assert b'name="template"\r\n\r\nopenai\r\n' in content
    assert b'name="labels"\r\n\r\nanimals\r\n' in sent[1].content


async def test_classify_is_what_similarity_says(tmp_path: Path) -> None:
    (tmp_path / "animals.txt").write_text("\n".join(TEXTS))
    async with client(labels=(f"animals={tmp_path / 'animals.txt'}",)) as own:
        if not await serves_classify(own):
            pytest.skip("this service has no /classify")
        found = await own.classify(PICTURES, TEXTS, top_k=2, templates=["{}"], batch=2)
        named = await own.classify(PICTURES, "animals", top_k=2, templates=["{}"])
        mixed = await own.classify([PICTURES[0], b"no image"], "animals", top_k=2, templates=["{}"], errors="return")
        scores = await own.similarity(PICTURES, TEXTS)
    assert found == named
    assert mixed[0] == found[0]
    assert isinstance(mixed[1], BadImage)
    for labels, row in zip(found, scores.probabilities, strict=True):
        assert [label.index for label in labels] == list(np.argsort(-row)[:2])
        np.testing.assert_allclose([label.probability for label in labels], np.sort(row)[::-1][:2], rtol=1e-5)


async def serves_classify(own: AsyncClient) -> bool:
    try:
        await own.classify(PICTURES[:1], TEXTS)
    except VisiontowerError as error:
        return "POST /classify is not served there" not in str(error)
    return True


async def test_a_plan_and_a_table_of_plans() -> None:
    async with client() as own:
        one = await own.vram("fake:vit", resolution=64, batch=4)
        table = await own.vram(resolution=[32, "32x64"], batch=[1, 2], dtype="float32")
    assert (one["resolution"], one["batch"]) == ([64, 64], 4)
    assert [(row["resolution"], row["batch"]) for row in table["data"]] == [
        ([32, 32], 1), ([32, 32], 2), ([32, 64], 1), ([32, 64], 2)
    ]  # fmt: skip


async def test_models_and_one_whose_id_has_slashes() -> None:
    slashed = "fake:a/b@c"
    async with client(FakeEncoder(), FakeEncoder(fake_spec(slashed))) as own:
        assert [model["id"] for model in await own.models()] == ["fake:vit", slashed]
        assert (await own.model(slashed))["image_size"] == [32, 32]
        assert (await own.embed(PICTURES, model=slashed)).shape == (5, 6)
        with pytest.raises(UnknownModel):
            await own.model("fake:none")


async def test_ready_is_true_or_false_in_an_if() -> None:
    app = app_of()
    async with client_of(app) as own:
        ready = await own.ready()
        assert ready
        assert await own.ready("fake:vit")
        with pytest.raises(UnknownModel):
            await own.ready("nobody")
        await app.state.engine.drain()
        draining = await own.ready()
    assert ready == Ready(True, None, {"fake:vit": {"state": "ready"}})
    assert not draining
    assert draining.reason
