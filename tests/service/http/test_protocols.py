"""Protocols stand beside each other: a made-up one is served without touching anything but the table."""

import asyncio
import json
from typing import Any

import pytest

from encoders.adapters.fake import FakeEncoder
from encoders.contract.errors import VisiontowerError
from service.engine.scoring import Prompts
from service.engine.values import EmbedRequest, EmbedResult
from service.http.app import create_app
from service.http.protocol import Answer, Asked, Incoming, Protocol, Route
from service.http.protocols import PROTOCOLS
from service.settings import Settings
from tests.support.serving import Gate, backend_of, client_of, image_bytes, noise, serving

pytestmark = pytest.mark.anyio

# The made-up protocol: PUT nothing but a picture; the vector comes back as words, and errors as `oh no: ...`.


def read_words(incoming: Incoming) -> Asked:
    loud = incoming.query == b"loud"
    return Asked(EmbedRequest([incoming.body], output="pooled"), reply=loud)


def write_words(result: EmbedResult, loud: bool) -> Answer:
    (item,) = result.items
    if isinstance(item, VisiontowerError):
        raise item
    assert item.pooled is not None
    words = " ".join(f"{value:.3f}" for value in item.pooled)
    return Answer(f"{words}{'!' * loud}".encode(), "text/words", headers={"x-words": str(len(item.pooled))})


def write_sorry(error: Exception) -> Answer:
    return Answer(f"oh no: {type(error).__name__}".encode(), "text/words", status=418)


WORDS = Protocol("words", (Route("/words", read_words, write_words),), write_sorry)


async def test_a_protocol_is_a_place_in_the_table() -> None:
    settings = Settings(model=("fake:vit",))
    app = create_app(settings, backend=backend_of(), protocols=(*PROTOCOLS.values(), WORDS))
    picture = noise(3)
    async with client_of(app) as client:
        spoken = await client.post("/words?loud", content=picture)
        native = await client.post("/embed?output=pooled", content=picture, headers={"content-type": "image/png"})
        refused = await client.post("/words", content=b"no picture")
        wrong_method = await client.get("/words")
        schema = (await client.get("/openapi.json")).json()
        metrics = (await client.get("/metrics")).text
    vector = native.json()["data"][0]["pooled"]["data"]
    assert spoken.text == " ".join(f"{value:.3f}" for value in vector) + "!"
    assert (spoken.headers["content-type"], spoken.headers["x-words"]) == ("text/words", "6")
    assert (refused.status_code, refused.text) == (418, "oh no: NotAnImage")
    assert wrong_method.status_code == 405
    assert "post" in schema["paths"]["/words"]
    assert 'visiontower_requests_total{protocol="words",route="/words",status="418"} 1.0' in metrics


async def test_overload_and_deadlines_come_in_the_protocol_s_own_form() -> None:
    gate = Gate()
    settings = Settings(model=("fake:vit",), queue_images=1, max_images=1, request_timeout_s=0.2)
    app = create_app(settings, backend=backend_of(FakeEncoder(before=gate)), protocols=(WORDS,))
    async with client_of(app) as client:
        gate.close()
        held = asyncio.create_task(client.post("/words", content=image_bytes()))
        await gate.someone_inside()
        refused = await client.post("/words", content=image_bytes())
        late = await held
        gate.is_open.set()
        native = await client.post("/embed", content=image_bytes())
        metrics = (await client.get("/metrics")).text
    assert (refused.text, late.text) == ("oh no: Overloaded", "oh no: DeadlineExceeded")
    assert native.status_code == 404, "it is not served"
    assert 'visiontower_rejected_total{reason="overloaded"} 1.0' in metrics
    assert json.loads(native.text)["status"] == 404


@pytest.mark.parametrize(
    ("path", "body", "form"),
    [
        ("/v1/embeddings", {"input": "boom"}, {"message", "type", "param", "code"}),
        ("/v2/embed", {"texts": ["boom"]}, {"message"}),
        (
            "/v2/models/fake:vit/infer",
            {"inputs": [{"name": "texts", "datatype": "BYTES", "shape": [1], "data": ["boom"]}]},
            {"error"},
        ),
        ("/embed", {"texts": ["boom"]}, {"type", "title", "status", "request_id"}),
    ],
    ids=["openai", "cohere", "open-inference", "native"],
)
async def test_what_nobody_foresaw_comes_in_the_protocol_s_own_form(
    path: str,
    body: dict[str, Any],
    form: set[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def surprise(*_: object, **__: object) -> None:
        raise RuntimeError("secret")

    async with serving() as client:
        monkeypatch.setattr(Prompts, "vectors", surprise)
        answer = await client.post(path, json=body)
    assert answer.status_code == 500
    found = answer.json()
    assert set(found["error"] if path == "/v1/embeddings" else found) == form
    assert "secret" not in answer.text
    assert "secret" in caplog.text
    assert answer.headers["x-request-id"]


async def test_a_wrong_method_is_told_which_is_right_and_not_at_length() -> None:
    async with serving() as client:
        refused = await client.request("X" * 3000, "/v1/embeddings")
    assert refused.status_code == 405
    assert refused.headers["allow"] == "POST"
    assert len(refused.text) < 500


async def test_an_unknown_path_is_refused_by_the_protocol_that_is_nearest_to_it() -> None:
    def write_near(error: Exception) -> Answer:
        return Answer(b"near", "text/words", status=418)

    wide = Protocol("wide", (), write_sorry, under=("/made",))
    near = Protocol("near", (), write_near, under=("/made/up",))
    for protocols in ((wide, near), (near, wide)):
        app = create_app(Settings(model=("fake:vit",)), backend=backend_of(), protocols=protocols)
        async with client_of(app) as client:
            assert (await client.get("/made/up/here?%ff")).text == "near"
            assert (await client.get("/made/elsewhere")).text == "oh no: NoSuchRoute"
            assert (await client.get("/nowhere")).headers["content-type"] == "application/problem+json"
