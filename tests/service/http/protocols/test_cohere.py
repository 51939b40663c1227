"""Cohere's protocol: what its SDK sends, each form of the vectors, and the same numbers as /embed."""

import asyncio
import base64
from typing import Any

import httpx
import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from tests.support.serving import Gate, noise, serving

pytestmark = pytest.mark.anyio

URI = f"data:image/png;base64,{base64.b64encode(noise(1)).decode()}"
OTHER = f"data:image/png;base64,{base64.b64encode(noise(2)).decode()}"
BROKEN = f"data:image/png;base64,{base64.b64encode(noise(1)[:60]).decode()}"
FORMS = ["float", "int8", "uint8", "binary", "ubinary", "base64"]


def text(content: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": content}]}


def image(uri: str) -> dict[str, Any]:
    return {"content": [{"type": "image_url", "image_url": {"url": uri}}]}


async def ask(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v2/embed", json={"model": "fake:vit", "input_type": "search_document", **body})


async def answered(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await ask(client, **body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def native(client: httpx.AsyncClient, **body: Any) -> list[Any]:
    answer = await client.post("/embed", json={"output": "pooled", "normalize": True, **body})
    assert answer.status_code == 200, answer.text
    return [entry["pooled"]["data"] for entry in answer.json()["data"]]


def refusal(answer: httpx.Response, status: int, *said: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    assert set(answer.json()) == {"message"}
    message = answer.json()["message"]
    assert len(message) < 500
    for each in said:
        assert each in message


async def test_vectors_are_those_of_embed_to_the_bit() -> None:
    async with serving() as client:
        of_texts = await answered(client, texts=["a cat", "a dog"], embedding_types=["float"])
        of_images = await answered(client, images=[URI, OTHER], input_type="image")
        of_inputs = await answered(client, inputs=[text("a cat"), image(URI), image(OTHER), text("a dog")])
        own_image, own_other, own_cat, own_dog = await native(client, images=[URI, OTHER], texts=["a cat", "a dog"])
    assert of_texts["embeddings"] == {"float": [own_cat, own_dog]}
    assert of_images["embeddings"] == {"float": [own_image, own_other]}
    assert of_inputs["embeddings"] == {"float": [own_cat, own_image, own_other, own_dog]}
    assert np.linalg.norm(np.array(own_cat)) == pytest.approx(1, abs=1e-6)


async def test_an_answer_is_of_cohere_s_form() -> None:
    async with serving() as client:
        answer = await answered(client, inputs=[text("cat"), image(URI)])
        again = await answered(client, texts=["cat"])
    assert answer["response_type"] == "embeddings_by_type"
    assert answer["texts"] == ["cat"]
    assert answer["meta"] == {
        "api_version": {"version": "2"},
        "billed_units": {"images": 1, "image_tokens": 16, "input_tokens": 3},
    }
    assert answer["id"] != again["id"]
    assert again["meta"]["billed_units"] == {"input_tokens": 3}


async def test_every_form_holds_the_same_vectors() -> None:
    """binary and ubinary as Cohere and sentence-transformers define them; int8 and uint8 as /embed."""
    encoder = FakeEncoder(fake_spec(embed_dim=20, pooled_size=20))
    async with serving(encoder) as client:
        found = (await answered(client, inputs=[text("a"), image(URI)], embedding_types=FORMS))["embeddings"]
        eight_bits = {
            dtype: await native(client, images=[URI], texts=["a"], dtype=dtype) for dtype in ("int8", "uint8")
        }
        bits = await native(client, images=[URI], texts=["a"], dtype="binary")
    vectors = np.array(found["float"], np.float32)
    assert set(found) == set(FORMS)
    assert vectors.shape == (2, 20)
    assert [np.frombuffer(base64.b64decode(row), "<f4").tolist() for row in found["base64"]] == vectors.tolist()
    packed = np.packbits(vectors > 0, axis=1)
    assert packed.shape == (2, 3)
    assert found["ubinary"] == packed.tolist() == bits[::-1]
    assert found["binary"] == (packed.astype(int) - 128).tolist()
    for dtype, own in eight_bits.items():
        assert found[dtype] == own[::-1]
    assert np.array(found["uint8"]).tolist() == (np.array(found["int8"]) + 128).tolist()


async def test_many_numbers_come_as_few_do() -> None:
    """An answer that is written in pieces."""
    encoder = FakeEncoder(fake_spec(embed_dim=9000, pooled_size=9000))
    async with serving(encoder) as client:
        found = (await answered(client, images=[URI, OTHER], embedding_types=["float", "base64"]))["embeddings"]
    rows = [np.frombuffer(base64.b64decode(row), "<f4").tolist() for row in found["base64"]]
    assert rows == np.array(found["float"], np.float32).tolist()


async def test_texts_that_were_cut_are_warned_of_or_refused() -> None:
    async with serving() as client:
        cut = await answered(client, inputs=[image(URI), text("short"), text("long " * 20)])
        short = await answered(client, texts=["short"])
        refused = await ask(client, texts=["long " * 20], truncate="NONE")
        start = await ask(client, texts=["short"], truncate="START")
    assert cut["meta"]["warnings"] == ["cut to the model's context length: inputs[2]"]
    assert "warnings" not in short["meta"]
    refusal(refused, 422, "16 tokens")
    refusal(start, 422, "END or NONE")


async def test_dimensions_are_the_model_s_or_refused() -> None:
    async with serving() as client:
        assert await answered(client, images=[URI], output_dimension=6)
        refused = await ask(client, images=[URI], output_dimension=3)
        of_text = await ask(client, texts=["a"], output_dimension=256)
    refusal(refused, 422, "6 numbers", "not of 3")
    refusal(of_text, 422, "6 numbers", "not of 256")


async def test_a_resolution_may_be_asked_for() -> None:
    async with serving() as client:
        found = await answered(client, images=[URI], resolution="64x32")
        assert found["embeddings"]["float"] == await native(client, images=[URI], resolution="64x32")
        refusal(await ask(client, texts=["a"], resolution=64), 422, "resolution")


ODD: dict[str, tuple[dict[str, Any], int, str]] = {
    "nothing": ({}, 400, "none"),
    "two kinds": ({"texts": ["a"], "images": [URI]}, 400, "texts and images"),
    "no texts": ({"texts": []}, 400, "empty"),
    "no images": ({"images": []}, 400, "empty"),
    "no inputs": ({"inputs": []}, 400, "empty"),
    "one text": ({"texts": "a"}, 400, "a string"),
    "a number": ({"texts": ["a", 3]}, 400, "texts[1]"),
    "an input without content": ({"inputs": [text("a"), {}]}, 400, "inputs[1]"),
    "an input that is a string": ({"inputs": ["a"]}, 400, "inputs[0]"),
    "an empty input": ({"inputs": [{"content": []}]}, 400, "inputs[0]"),
    "a text and an image in one": (
        {"inputs": [text("a"), {"content": text("a")["content"] + image(URI)["content"]}]}, 400, "inputs[1]",
    ),
    "an unknown part": ({"inputs": [{"content": [{"type": "audio", "audio": "x"}]}]}, 400, "inputs[0]"),
    "a part of another type": ({"inputs": [{"content": [{"type": "text", "text": 3}]}]}, 400, "inputs[0]"),
    "a broken image among good ones": ({"images": [URI, BROKEN, OTHER]}, 422, "images[1]: The PNG image"),
    "an image that is a text": ({"images": ["a cat"]}, 422, "images[0]"),
    "a broken image among inputs": ({"inputs": [text("a"), image(BROKEN)]}, 422, "inputs[1]"),
    "an unknown form": ({"texts": ["a"], "embedding_types": ["float", "int4"]}, 422, "embedding_types"),
    "no form": ({"texts": ["a"], "embedding_types": []}, 422, "the list should have at least 1 item, not 0"),
    "an unknown input type": ({"texts": ["a"], "input_type": "song"}, 422, "input_type"),
    "an unknown option": ({"texts": ["a"], "max_tokens": 3}, 422, "max_tokens"),
    "an unknown model": ({"texts": ["a"], "model": "embed-v4.0"}, 404, "fake:vit"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "status", "said"), ODD.values(), ids=ODD)
async def test_bad_input_is_named(body: dict[str, Any], status: int, said: str) -> None:
    async with serving() as client:
        refusal(await ask(client, **body), status, said)
        assert (await ask(client, texts=["a"])).status_code == 200


async def test_a_text_to_an_encoder_without_texts_is_refused() -> None:
    encoder = FakeEncoder(fake_spec("fake:cnn", embed_dim=None, scoring=None, dense=False))
    async with serving(encoder) as client:
        refusal(await ask(client, texts=["a"], model="fake:cnn"), 422, "no text tower")
        assert (await ask(client, images=[URI], model="fake:cnn")).status_code == 200


async def test_too_many_and_too_long() -> None:
    async with serving(max_images=2, max_texts=2, max_text_chars=100, max_json_values=30) as client:
        refusal(await ask(client, images=[URI] * 3), 413, "3 images")
        refusal(await ask(client, texts=["a"] * 3), 413, "3 prompts")
        refusal(await ask(client, texts=["a"] * 9 + [7]), 413, "10 images and texts")
        refusal(await ask(client, texts=["a", "x" * 101]), 422, "texts[1]", "101 characters")
        refusal(await ask(client, images=[URI] * 2, embedding_types=FORMS), 413, "limit")
        assert await answered(client, images=[URI] * 2, embedding_types=["float", "float", "int8"])


async def test_overload_comes_in_cohere_s_form_with_the_header_that_its_client_waits_by() -> None:
    gate = Gate()
    async with serving(FakeEncoder(before=gate), queue_images=1, max_images=1) as client:
        gate.close()
        held = asyncio.create_task(ask(client, images=[URI]))
        await gate.someone_inside()
        refused = await ask(client, images=[URI])
        gate.is_open.set()
        assert (await held).status_code == 200
        metrics = (await client.get("/metrics")).text
    refusal(refused, 503, "try again")
    assert int(refused.headers["retry-after"]) >= 1
    assert 'requests_total{protocol="cohere",route="/v2/embed",status="503"} 1.0' in metrics


async def test_other_bodies_and_methods_are_refused_in_its_form() -> None:
    async with serving() as client:
        refusal(await client.get("/v2/embed"), 405, "GET")
        refusal(await client.post("/v2/embed", content=b"{", headers={"content-type": "application/json"}), 400)
        refusal(await client.post("/v2/embed", data={"texts": "a"}), 415, "send application/json")


async def test_it_can_be_switched_off() -> None:
    async with serving(protocols=("native", "openai")) as client:
        answer = await ask(client, texts=["a"])
        own = await native(client, texts=["a"])
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(own) == 1
