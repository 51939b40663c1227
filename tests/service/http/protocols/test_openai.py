"""OpenAI's protocol: what its SDK and those who speak like it send, and the same numbers as /embed."""

import asyncio
import base64
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.adapters.fake import FakeEncoder, fake_spec
from service.http.protocols import PROTOCOLS
from service.http.protocols.openai import PROTOCOL
from tests.support.serving import Gate, noise, serving

pytestmark = pytest.mark.anyio

RAW = base64.b64encode(noise(1)).decode()
URI = f"data:image/png;base64,{RAW}"
OTHER = f"data:image/png;base64,{base64.b64encode(noise(2)).decode()}"
BROKEN = f"data:image/png;base64,{base64.b64encode(noise(1)[:60]).decode()}"


def image_only() -> FakeEncoder:
    return FakeEncoder(fake_spec("fake:cnn", embed_dim=None, scoring=None, dense=False))


async def ask(client: httpx.AsyncClient, given: Any, **options: Any) -> httpx.Response:
    return await client.post("/v1/embeddings", json={"input": given, **options})


async def vectors(client: httpx.AsyncClient, given: Any, **options: Any) -> list[Any]:
    answer = await ask(client, given, **options)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [entry["index"] for entry in data] == list(range(len(data)))
    assert {entry["object"] for entry in data} == {"embedding"}
    return [entry["embedding"] for entry in data]


async def native(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await client.post("/embed", json={"output": "pooled", "normalize": True, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def decoded(embedding: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(embedding), "<f4")


def as_float32(embedding: Any) -> Any:
    """The numbers that JSON gave, as what they stand for."""
    return np.array(embedding, np.float32).tolist()


def refusal(answer: httpx.Response, status: int, code: str, param: str | None) -> str:
    """The answer is this error in OpenAI's form; gives its message."""
    assert answer.headers["content-type"] == "application/json", answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    message: str = error["message"]
    assert 0 < len(message) < 500
    return message


# Numbers.


async def test_vectors_are_those_of_embed_to_the_bit_in_either_encoding_and_in_mixed_order() -> None:
    given = ["a cat", URI, {"image": OTHER}, {"text": "a dog"}]
    async with serving() as client:
        as_numbers = await vectors(client, given)
        as_base64 = await vectors(client, given, encoding_format="base64")
        own = await native(client, images=[URI, OTHER], texts=["a cat", "a dog"])
    image, other, cat, dog = (entry["pooled"]["data"] for entry in own["data"])
    assert as_numbers == [cat, image, other, dog]
    assert [decoded(each).tolist() for each in as_base64] == [as_float32(each) for each in as_numbers]
    assert len({tuple(each) for each in as_numbers}) == 4


async def test_vectors_have_length_one_unless_that_is_turned_off() -> None:
    async with serving() as client:
        unit = await vectors(client, ["a", URI])
        plain = await vectors(client, ["a", URI], normalize=False)
        own = await native(client, images=[URI], texts=["a"], normalize=False)
    assert np.linalg.norm(np.array(unit), axis=1) == pytest.approx(1, abs=1e-6)
    assert plain == [own["data"][1]["pooled"]["data"], own["data"][0]["pooled"]["data"]]


async def test_usage_is_in_tokens_of_texts_and_images() -> None:
    async with serving() as client:
        answer = (await ask(client, ["cat", URI])).json()
        own = await native(client, images=[URI], texts=["cat"])
    used = own["usage"]["tokens"] + own["usage"]["text_tokens"]
    assert (own["usage"]["tokens"], own["usage"]["text_tokens"]) == (16, 3)
    assert answer["usage"] == {"prompt_tokens": used, "total_tokens": used}
    assert (answer["object"], answer["model"]) == ("list", "fake:vit")
    assert "truncated" not in answer


async def test_texts_that_were_cut_are_named_by_their_place_in_the_input() -> None:
    async with serving() as client:
        answer = await ask(client, [URI, "short", "long " * 20])
        refused = await ask(client, ["long " * 20], truncate=False)
    assert answer.json()["truncated"] == [2]
    assert "16 tokens" in refusal(refused, 422, "text-too-long", "input")


async def test_a_single_item_needs_no_list() -> None:
    async with serving() as client:
        listed = await vectors(client, ["a cat", URI])
        alone = [*await vectors(client, "a cat"), *await vectors(client, {"image": RAW})]
    assert alone == listed


IMAGES = {
    "a data: URI": URI,
    "a data: URI in capitals, behind a blank": " DATA:IMAGE/PNG;BASE64," + RAW,
    "Jina's image": {"image": RAW},
    "Jina's image, a data: URI": {"image": URI},
    "LlamaIndex's bytes": {"bytes": RAW},
    "Jina's url": {"url": URI},
    "a chat message's part": {"type": "image_url", "image_url": {"url": URI, "detail": "low"}},
    "a flat part": {"type": "image_url", "image_url": URI},
}


@pytest.mark.parametrize("item", IMAGES.values(), ids=IMAGES)
async def test_forms_of_images(item: Any) -> None:
    async with serving() as client:
        assert await vectors(client, [item]) == await vectors(client, [URI])


async def test_with_modality_image_every_string_is_an_image() -> None:
    async with serving() as client:
        assert await vectors(client, [RAW, URI], modality="image") == await vectors(client, [URI, URI])
        text = await ask(client, ["a cat!"], modality="image")
        url = await ask(client, ["https://example.org/cat.png"], modality="image")
    refusal(text, 422, "invalid-base64", "input[0]")
    refusal(url, 422, "image-url-refused", "input[0]")


async def test_other_strings_are_texts_urls_and_base64_too() -> None:
    """Nothing is fetched that was not called an image."""
    texts = ["https://example.org/cat.png", RAW[:200], "data:,hello"]
    async with serving() as client:
        own = await native(client, texts=texts)
        assert await vectors(client, texts) == [entry["pooled"]["data"] for entry in own["data"]]
        assert await vectors(client, [{"type": "text", "text": URI[:300]}]) != await vectors(client, [URI])


async def test_an_image_s_tokens_are_a_multi_vector_with_its_shape() -> None:
    async with serving() as client:
        nested = (await ask(client, [URI, OTHER], output="tokens")).json()["data"]
        flat = (await ask(client, [URI], output="tokens", encoding_format="base64")).json()["data"]
        own = await native(client, images=[URI, OTHER], output="tokens")
        refused = await ask(client, [URI, "a cat"], output="tokens")
    assert [entry["embedding"] for entry in nested] == [entry["tokens"]["data"] for entry in own["data"]]
    assert [entry["shape"] for entry in nested] == [[16, 12]] * 2
    assert decoded(flat[0]["embedding"]).reshape(flat[0]["shape"]).tolist() == as_float32(nested[0]["embedding"])
    refusal(refused, 422, "invalid-option", "output")


async def test_many_numbers_come_as_few_do() -> None:
    """An answer that is written in pieces."""
    spec = fake_spec(hidden_size=3000)
    async with serving(FakeEncoder(spec)) as client:
        (nested,) = await vectors(client, [URI], output="tokens")
        (flat,) = await vectors(client, [URI], output="tokens", encoding_format="base64")
    assert np.array(nested).shape == (16, 3000)
    assert decoded(flat).reshape(16, 3000).tolist() == as_float32(nested)


async def test_our_options_go_beside_openai_s() -> None:
    async with serving() as client:
        given = await vectors(client, [URI], resolution="64x32", user="me", dimensions=None)
        own = await native(client, images=[URI], resolution="64x32")
        tokens = await vectors(client, [URI], output="tokens", layer=-2, prefix=True)
        own_tokens = await native(client, images=[URI], output="tokens", layer=-2, prefix=True)
    assert given == [own["data"][0]["pooled"]["data"]]
    assert tokens == [own_tokens["data"][0]["tokens"]["data"]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint8", "binary"])
async def test_base64_holds_float32_whatever_the_dtype(dtype: str) -> None:
    """As the SDK reads it; what the dtype can say, float32 can."""
    async with serving() as client:
        as_numbers = await vectors(client, ["a", URI], dtype=dtype)
        as_base64 = await vectors(client, ["a", URI], dtype=dtype, encoding_format="base64")
        own = await native(client, images=[URI], texts=["a"], dtype=dtype)
    assert as_numbers == [own["data"][1]["pooled"]["data"], own["data"][0]["pooled"]["data"]]
    assert [decoded(each).tolist() for each in as_base64] == [as_float32(each) for each in as_numbers]


@pytest.mark.parametrize("dimensions", [0, 6, None])
async def test_all_dimensions_are_given(dimensions: int | None) -> None:
    async with serving() as client:
        assert await vectors(client, ["a", URI], dimensions=dimensions) == await vectors(client, ["a", URI])
        assert len((await vectors(client, [URI], output="tokens", dimensions=12))[0]) == 16


@pytest.mark.parametrize(
    ("given", "options"), [("a", {}), (URI, {}), (URI, {"output": "tokens"})], ids=["a text", "an image", "tokens"]
)
async def test_other_dimensions_are_refused_before_anything_runs(given: str, options: dict[str, Any]) -> None:
    encoder = FakeEncoder()
    async with serving(encoder) as client:
        before = len(encoder.batches)
        answer = await ask(client, given, dimensions=7, **options)
        assert len(encoder.batches) == before
    assert "not of 7" in refusal(answer, 422, "width-not-offered", "dimensions")


# Bad input.


@pytest.mark.parametrize("given", [[1, 2, 3], [[1, 2], [3]], [[1], "a"]], ids=str)
async def test_token_ids_are_refused_with_the_hint_that_helps(given: Any) -> None:
    async with serving() as client:
        answer = await ask(client, given)
    param = "input" if given[0] == 1 else "input[0]"
    assert "check_embedding_ctx_length=False" in refusal(answer, 400, "invalid-body", param)


ODD = {
    "null": (None, "input"),
    "an empty list": ([], "input"),
    "a number": (3, "input"),
    "a truth": (["a", True], "input[1]"),
    "a null among texts": (["a", None], "input[1]"),
    "a list in a list": (["a", ["b"]], "input[1]"),
    "an empty object": (["a", {}], "input[1]"),
    "an unknown object": (["a", {"audio": "x"}], "input[1]"),
    "two in one": (["a", {"text": "a", "image": RAW}], "input[1]"),
    "no string": (["a", {"image": 3}], "input[1]"),
    "a part without a url": (["a", {"type": "image_url", "image_url": {"link": URI}}], "input[1]"),
}


@pytest.mark.parametrize(("given", "param"), ODD.values(), ids=ODD)
async def test_what_is_neither_text_nor_image_is_named(given: Any, param: str) -> None:
    async with serving() as client:
        answer = await ask(client, given)
    refusal(answer, 400, "invalid-body", param)


async def test_a_bad_image_among_good_ones_refuses_the_request_and_is_named() -> None:
    async with serving() as client:
        answer = await ask(client, ["a", URI, "b", BROKEN, URI])
        alone = await ask(client, BROKEN)
        good = await vectors(client, ["a", URI])
    assert refusal(answer, 422, "undecodable-image", "input[3]").startswith("input[3]: The PNG image")
    refusal(alone, 422, "undecodable-image", "input")
    assert len(good) == 2


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"colour": "red"}, "colour"),
    "encoding_format": ({"encoding_format": "hex"}, "encoding_format"),
    "dimensions": ({"dimensions": -1}, "dimensions"),
    "modality": ({"modality": "audio"}, "modality"),
    "both": ({"output": "both"}, "output"),
    "a nest": ({"layer": [[[[1]]]]}, "layer"),
    "about images": ({"resolution": "32"}, "resolution"),
    "about tokens": ({"layer": 1}, "layer"),
}


@pytest.mark.parametrize(("options", "param"), OPTIONS.values(), ids=OPTIONS)
async def test_options_that_cannot_be_are_named(options: dict[str, Any], param: str) -> None:
    async with serving() as client:
        answer = await ask(client, "a cat", **options)
    refusal(answer, 422, "invalid-option", param)


async def test_a_deep_nest_is_refused_like_a_shallow_one() -> None:
    async with serving() as client:
        for name in ("input", "layer"):
            body = b'{"%b": %b}' % (name.encode(), b"[" * 900 + b"]" * 900)
            answer = await client.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
            assert answer.status_code in (400, 422), answer.text
            assert len(answer.text) < 1000


async def test_bodies_that_cannot_be_read() -> None:
    async with serving() as client:
        broken = await client.post("/v1/embeddings", content=b"{", headers={"content-type": "application/json"})
        listed = await client.post("/v1/embeddings", json=["a"])
        form = await client.post("/v1/embeddings", data={"input": "a"})
    refusal(broken, 400, "invalid-body", None)
    refusal(listed, 400, "invalid-body", None)
    assert "send application/json" in refusal(form, 415, "unsupported-media-type", None)


async def test_an_unknown_model_is_openai_s_own_error() -> None:
    async with serving() as client:
        asked = await ask(client, "a", model="text-embedding-3-small")
        looked_up = await client.get("/v1/models/openai/clip")
    assert "fake:vit" in refusal(asked, 404, "model_not_found", "model")
    refusal(looked_up, 404, "model_not_found", "model")


async def test_a_text_to_an_encoder_without_texts_is_refused() -> None:
    async with serving(image_only()) as client:
        answer = await ask(client, [URI, "a cat"])
        asked = await ask(client, "a cat", dimensions=6)
        assert len(await vectors(client, [URI])) == 1
    assert "no text tower" in refusal(answer, 422, "output-not-offered", None)
    refusal(asked, 422, "output-not-offered", None)


async def test_too_many_and_too_long() -> None:
    async with serving(max_images=2, max_texts=2, max_text_chars=100) as client:
        images = await ask(client, [URI] * 3)
        texts = await ask(client, ["a", "b", "c"])
        many = await ask(client, ["a"] * 4 + [{}])  # refused ahead of a look at each
        long = await ask(client, [URI, "x" * 101])
        allowed = await vectors(client, [URI, "a", "b", URI])
    refusal(images, 413, "too-many-images", "input")
    refusal(many, 413, "limit-exceeded", "input")
    refusal(texts, 413, "too-many-texts", "input")
    assert "101 characters" in refusal(long, 422, "invalid-option", "input[1]")
    assert len(allowed) == 4


async def test_more_numbers_than_json_may_have_come_in_base64() -> None:
    async with serving(max_json_values=100) as client:
        refused = await ask(client, [URI], output="tokens")
        assert len(await vectors(client, [URI], output="tokens", encoding_format="base64")) == 1
    assert "encoding_format=base64" in refusal(refused, 413, "answer-too-large", None)


async def test_overload_comes_in_openai_s_form_with_the_header_that_its_client_waits_by() -> None:
    gate = Gate()
    async with serving(FakeEncoder(before=gate), queue_images=1, max_images=1) as client:
        gate.close()
        held = asyncio.create_task(ask(client, URI))
        await gate.someone_inside()
        refused = await ask(client, URI)
        gate.is_open.set()
        assert (await held).status_code == 200
        metrics = (await client.get("/metrics")).text
    refusal(refused, 503, "overloaded", None)
    assert int(refused.headers["retry-after"]) >= 1
    assert 'requests_total{protocol="openai",route="/v1/embeddings",status="503"} 1.0' in metrics
    assert 'visiontower_rejected_total{reason="overloaded"} 1.0' in metrics


async def test_an_encoder_s_failure_is_a_server_error() -> None:
    encoder = FakeEncoder()
    async with serving(encoder) as client:
        encoder.after = lambda encoded: type(encoded)(
            encoded.grid, encoded.prefix_tokens, encoded.tokens, np.full_like(encoded.pooled, np.nan)
        )
        answer = await ask(client, ["a", URI])
    refusal(answer, 500, "non-finite-output", "input[1]")


# Models, and what is not there.


async def test_models_are_listed_and_found_by_ids_with_any_signs() -> None:
    odd = FakeEncoder(fake_spec("fake:some/where@main"))
    async with serving(FakeEncoder(), odd) as client:
        listed = (await client.get("/v1/models")).json()
        one = (await client.get("/v1/models/fake%3Asome/where%40main")).json()
        chosen = (await ask(client, "a", model="fake:some/where@main")).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["fake:vit", "fake:some/where@main"]
    assert all(card["object"] == "model" and isinstance(card["created"], int) for card in listed["data"])
    assert one == listed["data"][1]
    assert chosen["model"] == "fake:some/where@main"


async def test_what_is_not_served_is_refused_in_openai_s_form() -> None:
    async with serving() as client:
        nowhere = await client.post("/v1/chat/completions", json={})
        by_get = await client.get("/v1/embeddings")
    refusal(nowhere, 404, "no-such-route", None)
    refusal(by_get, 405, "method-not-allowed", None)


async def test_it_can_be_switched_off() -> None:
    async with serving(protocols=("native",)) as client:
        answer = await ask(client, "a")
        models = await client.get("/v1/models")
        own = await native(client, texts=["a"])
    assert {answer.status_code, models.status_code} == {404}
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(own["data"]) == 1
    assert PROTOCOLS["openai"] is PROTOCOL
