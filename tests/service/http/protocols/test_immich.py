"""Immich's two calls: its clip tasks get the vectors of /embed, all else is refused so that it fails over."""

import asyncio
import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from tests.support.serving import Gate, app_of, client_of, image_bytes, noise, serving

pytestmark = pytest.mark.anyio
MODEL, NAME = "openclip:ViT-B-32@openai", "ViT-B-32__openai"
PICTURE = noise(1, (64, 40))


def clip(model: str = MODEL) -> FakeEncoder:
    return FakeEncoder(fake_spec(model))


def visual(name: str = NAME) -> dict[str, Any]:
    """Without options, as Immich sends it."""
    return {"clip": {"visual": {"modelName": name}}}


def textual(name: str = NAME, **options: str) -> dict[str, Any]:
    return {"clip": {"textual": {"modelName": name, "options": {}, **options}}}


async def predict(
    client: httpx.AsyncClient, entries: Any, *, image: bytes | None = None, text: str | None = None
) -> httpx.Response:
    """As Node's FormData sends it: fields without a file's name, the image as a blob."""
    parts: list[tuple[str, Any]] = [("entries", (None, entries if isinstance(entries, str) else json.dumps(entries)))]
    if image is not None:
        parts.append(("image", ("blob", image, "application/octet-stream")))
    if text is not None:
        parts.append(("text", (None, text.encode())))
    return await client.post("/predict", files=parts)


async def native(client: httpx.AsyncClient, **sent: Any) -> list[float]:
    answer = await client.post("/embed", json={"model": MODEL, "output": "pooled", "normalize": True, **sent})
    vector: list[float] = answer.json()["data"][0]["pooled"]["data"]
    return vector


def refusal(response: httpx.Response, status: int) -> str:
    """The answer is a refusal in the form of Immich's own server; gives its text."""
    assert response.status_code == status, response.text
    ((name, text),) = response.json().items()
    assert name == "detail"
    assert len(text) < 600
    return str(text)


async def test_ping_answers_pong_while_requests_can_be_answered() -> None:
    app = app_of(clip())
    async with client_of(app) as client:
        well = await client.get("/ping")
        app.state.engine.admission.close()
        draining = await client.get("/ping")
    assert (well.status_code, well.text) == (200, "pong")
    assert "draining" in refusal(draining, 503)


async def test_an_image_s_vector_is_that_of_embed_as_a_text() -> None:
    async with serving(clip()) as client:
        answer = await predict(client, visual(), image=PICTURE)
        expected = await native(client, images=[base64.b64encode(PICTURE).decode()])
    assert answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert isinstance(found.pop("clip"), str)
    assert found == {"imageHeight": 40, "imageWidth": 64}
    vector = json.loads(answer.json()["clip"])
    assert vector == expected
    np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-6)


async def test_a_text_s_vector_is_that_of_embed_as_a_text() -> None:
    async with serving(clip()) as client:
        answer = await predict(client, textual(language="de"), text="ein roter Würfel")
        expected = await native(client, texts=["ein roter Würfel"])
    ((name, vector),) = answer.json().items()
    assert (name, json.loads(vector)) == ("clip", expected)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
async def test_the_size_is_that_of_the_image_itself(image_format: str) -> None:
    async with serving(clip()) as client:
        answer = await predict(client, visual(), image=image_bytes(size=(50, 34), image_format=image_format))
    assert (answer.json()["imageHeight"], answer.json()["imageWidth"]) == (34, 50)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("ViT-B-32__openai", "openclip:ViT-B-32@openai"),
        ("ViT-B-32::openai", "openclip:ViT-B-32@openai"),
        ("immich-app/ViT-B-32__openai", "openclip:ViT-B-32@openai"),
        ("ViT-SO400M-16-SigLIP2-384__webli", "openclip:ViT-SO400M-16-SigLIP2-384@webli"),
        ("nllb-clip-base-siglip__v1", "openclip:nllb-clip-base-siglip@v1"),
        ("ViT-B-32__laion2b-s34b-b79k", "openclip:ViT-B-32@laion2b_s34b_b79k"),
        (
            "XLM-Roberta-Large-ViT-H-14__frozen_laion5b_s13b_b90k",
            "openclip:xlm-roberta-large-ViT-H-14@frozen_laion5b_s13b_b90k",
        ),
        ("ViT-B-32__openai", "openclip:ViT-B-32@/weights/openai.safetensors"),
        ("ViT-B-32__openai", "openclip:ViT-B-32@/weights/openai.pt?quick_gelu=true"),
    ],
)
async def test_immich_s_names_are_those_of_openclip(name: str, model: str) -> None:
    """Also where it is not the first one served."""
    async with serving(FakeEncoder(fake_spec("fake:vit", pooled_size=4, embed_dim=4)), clip(model)) as client:
        image = await predict(client, visual(name), image=PICTURE)
        text = await predict(client, textual(name), text="a cat")
    assert len(json.loads(image.json()["clip"])) == len(json.loads(text.json()["clip"])) == 6


@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-32__laion2b_e16",
        "ViT-B-32-quickgelu__openai",
        "ViT-L-14__openai",
        "XLM-Roberta-Large-Vit-B-32",
        "",
        "__",
        "ViT-B-32__",
        "x" * 5000,
    ],
)
async def test_a_model_that_is_not_served_is_refused(name: str) -> None:
    """One with no other's weights: its vectors would go into the same column."""
    async with serving(clip(), FakeEncoder(fake_spec("fake:vit"))) as client:
        assert "is not served here" in refusal(await predict(client, visual(name), image=PICTURE), 404)
        assert "is not served here" in refusal(await predict(client, textual(name), text="a"), 404)


@pytest.mark.parametrize(
    "entries",
    [
        {"facial-recognition": {"detection": {"modelName": "buffalo_l"}, "recognition": {"modelName": "buffalo_l"}}},
        {"ocr": {"detection": {"modelName": "PP-OCRv5"}, "recognition": {"modelName": "PP-OCRv5"}}},
        {**visual(), "ocr": {}},
    ],
    ids=["faces", "text recognition", "clip and another"],
)
async def test_faces_and_text_recognition_are_refused_so_that_immich_asks_its_next_url(entries: Any) -> None:
    async with serving(clip()) as client:
        said = refusal(await predict(client, entries, image=PICTURE), 422)
    assert "faces and text recognition are not served here" in said
    assert "next of its machine-learning URLs" in said


@pytest.mark.parametrize(
    ("entries", "status", "says"),
    [
        ("", 400, "not valid JSON"),
        ("[]", 400, "must be an object"),
        ("[" * 5000, 400, "not valid JSON"),
        ("{}", 422, "one clip task"),
        ('{"clip": []}', 422, "one clip task"),
        ('{"clip": {}}', 422, "one clip task"),
        ('{"clip": {"visual": {}, "textual": {}}}', 422, "one clip task"),
        ('{"clip": {"audio": {}}}', 422, "one clip task"),
        ('{"clip": {"visual": []}}', 422, "'visual' must be an object"),
        ('{"clip": {"visual": {}}}', 422, "'modelName' must be a text"),
        ('{"clip": {"visual": {"modelName": 7}}}', 422, "'modelName' must be a text"),
        ("{" + ",".join(f'"{"x" * 500}{i}": 1' for i in range(99)) + "}", 422, "not served here"),
    ],
)
async def test_entries_that_make_no_sense_are_refused(entries: str, status: int, says: str) -> None:
    async with serving(clip()) as client:
        assert says in refusal(await predict(client, entries, image=PICTURE, text="a"), status)


@pytest.mark.parametrize(
    ("entries", "sent", "status", "says"),
    [
        (visual(), {}, 400, "no part 'image'"),
        (textual(), {}, 400, "no part 'text'"),
        (visual(), {"text": "a"}, 400, "no part 'image'"),
        (textual(), {"image": PICTURE}, 400, "no part 'text'"),
        (visual(), {"image": b""}, 422, "empty"),
        (visual(), {"image": b"no image"}, 415, ""),
        (visual(), {"image": PICTURE[:60]}, 422, ""),
        (textual(), {"text": "x" * 5000}, 422, "over 4096"),
    ],
)
async def test_an_image_or_text_that_cannot_be_used_is_refused(
    entries: Any, sent: dict[str, Any], status: int, says: str
) -> None:
    async with serving(clip()) as client:
        assert says in refusal(await predict(client, entries, **sent), status)


async def test_another_body_than_a_form_is_refused() -> None:
    part = ("image", ("blob", PICTURE))
    async with serving(clip()) as client:
        as_json = refusal(await client.post("/predict", json=visual()), 415)
        assert as_json == "Content-Type 'application/json' is not read here: send multipart/form-data."
        assert "multipart/form-data" in refusal(await client.post("/predict", content=b""), 415)
        assert "no part 'entries'" in refusal(await client.post("/predict", files=[part]), 400)
        assert "two parts 'image'" in refusal(await client.post("/predict", files=[part, part]), 400)
        assert refusal(await client.get("/predict"), 405)
        assert refusal(await client.post("/ping"), 405)


async def test_overload_is_a_503() -> None:
    gate = Gate()
    encoder = clip()
    encoder.before = gate
    async with serving(encoder, queue_images=1, max_images=1) as client:
        gate.close()
        held = asyncio.create_task(predict(client, visual(), image=PICTURE))
        await gate.someone_inside()
        refused = await predict(client, visual(), image=PICTURE)
        gate.is_open.set()
        answered = await held
    refusal(refused, 503)
    assert int(refused.headers["retry-after"]) >= 1
    assert answered.status_code == 200


async def test_many_at_once_get_their_own_vectors() -> None:
    images = [noise(seed) for seed in range(8)]
    async with serving(clip()) as client:
        answers = await asyncio.gather(*(predict(client, visual(), image=image) for image in images))
        for image, answer in zip(images, answers, strict=True):
            expected = await native(client, images=[base64.b64encode(image).decode()])
            assert json.loads(answer.json()["clip"]) == expected
