"""Texts over POST /embed: alone and beside images, in every form, format and dtype; and the cache of their vectors."""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.errors import EncoderFailed
from encoders.contract.values import Floats, Tokenized
from service.engine.postprocess import l2_normalize, quantized
from service.engine.text_cache import KnownText, TextCache, text_origin
from tests.support.serving import PNG, assert_problem, noise, serving

pytestmark = pytest.mark.anyio
PICTURE = noise(1)
TEXTS = ["a red circle", "zwei Hunde", "\N{CAT}", ""]
TYPES = {"json": "application/json", "safetensors": "application/vnd.safetensors", "npy": "application/x-npy"}
DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def body(*pictures: bytes, **fields: Any) -> dict[str, Any]:
    images = [base64.b64encode(picture).decode() for picture in pictures]
    return {**({"images": images} if images else {}), **fields}


def vectors_of(texts: Sequence[str]) -> Floats:
    """By the encoder's own text tower."""
    encoder = FakeEncoder()
    return encoder.encode_text(encoder.tokenize(texts).ids)


def pooled(answer: dict[str, Any]) -> NDArray[Any]:
    return np.array([entry["pooled"]["data"] for entry in answer["data"]], np.float32)


class Counting(FakeEncoder):
    """tokenized: every prompt that it was given since the start."""

    def __init__(self, spec: Any = None, **options: Any) -> None:
        super().__init__(spec, **options)
        self.tokenized: list[str] = []

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        self.tokenized += texts
        return super().tokenize(texts)


async def test_vectors_are_the_text_tower_s_own_to_the_bit_in_the_order_of_the_texts() -> None:
    async with serving() as client:
        answer = (await client.post("/embed", json=body(texts=TEXTS))).json()
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3]
    assert all(entry.keys() == {"index", "pooled"} for entry in answer["data"])
    assert answer["data"][0]["pooled"]["shape"] == [6]
    np.testing.assert_array_equal(pooled(answer), vectors_of(TEXTS))
    assert answer["truncated"] == []
    assert answer["usage"] == {"images": 0, "tokens": 0, "texts": 4, "text_tokens": 12 + 10 + 4 + 0}


async def test_a_form_and_a_query_say_the_same_as_json() -> None:
    texts = TEXTS[:3]
    async with serving() as client:
        answers = [
            await client.post("/embed", json=body(texts=texts)),
            await client.post("/embed", files=[("text", (None, text)) for text in texts]),
            await client.post("/embed", params={"text": texts}),
            await client.post("/embed", json={"text": texts}),
        ]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({json.dumps(answer.json()["data"]) for answer in answers}) == 1


async def test_beside_images_they_come_behind_them() -> None:
    pictures, texts = [noise(1), noise(2)], TEXTS[:2]
    async with serving() as client:
        both = (await client.post("/embed", json=body(*pictures, texts=texts, output="both"))).json()
        form = await client.post(
            "/embed",
            files=[*(("image", picture) for picture in pictures), *(("text", (None, text)) for text in texts)],
            params={"output": "both"},
        )
        query = await client.post("/embed", params={"text": texts}, content=pictures[0], headers=PNG)
        images = (await client.post("/embed", json=body(*pictures, output="both"))).json()
        alone = (await client.post("/embed", json=body(texts=texts))).json()
    assert [entry["index"] for entry in both["data"]] == [0, 1, 2, 3]
    assert both["data"][:2] == images["data"]
    assert [entry["pooled"] for entry in both["data"][2:]] == [entry["pooled"] for entry in alone["data"]]
    assert form.json()["data"] == both["data"]
    assert [sorted(entry.keys() - {"index"}) for entry in query.json()["data"]][1:] == [["pooled"]] * 2
    assert both["usage"] == {"images": 2, "tokens": 32, "texts": 2, "text_tokens": 22}


@pytest.mark.parametrize("dtype", DTYPES)
async def test_every_format_holds_the_same_numbers(dtype: str) -> None:
    options = {"texts": TEXTS, "dtype": dtype}
    wanted = vectors_of(TEXTS).astype(DTYPES[dtype])
    async with serving() as client:
        floats = (await client.post("/embed", json=body(**options))).json()
        coded = (await client.post("/embed", json=body(**options, encoding_format="base64"))).json()
        raw = await client.post("/embed", json=body(**options, format="raw"))
        tensors = await client.post("/embed", json=body(**options), headers={"accept": TYPES["safetensors"]})
        npy = await client.post("/embed", json=body(**options, format="npy"))
    assert {entry["pooled"]["dtype"] for entry in floats["data"]} == {dtype}
    np.testing.assert_array_equal(pooled(floats), wanted.astype(np.float32))
    for row, entry in zip(wanted, coded["data"], strict=True):
        assert base64.b64decode(entry["pooled"]["data"]) == row.tobytes()
    assert raw.content == wanted.tobytes()
    assert raw.headers["x-tensor-name"] == "texts"
    assert (raw.headers["x-tensor-shape"], raw.headers["x-tensor-dtype"]) == ("4,6", dtype)
    assert wanted.tobytes() in tensors.content
    if dtype == "bfloat16":
        assert_problem(npy, 422, "invalid-option")
    else:
        np.testing.assert_array_equal(np.load(io.BytesIO(npy.content)), wanted)
        np.testing.assert_array_equal(load(tensors.content)["texts"], wanted)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary"])
@pytest.mark.parametrize("normalize", [False, True])
async def test_vectors_in_fewer_bits_are_those_of_the_whole_ones(dtype: Any, normalize: bool) -> None:
    options = {"output": "pooled", "dtype": dtype, "normalize": normalize}
    async with serving() as client:
        whole = (await client.post("/embed", json=body(PICTURE, texts=TEXTS, output="pooled"))).json()
        floats = (await client.post("/embed", json=body(PICTURE, texts=TEXTS, **options))).json()
        coded = await client.post("/embed", json=body(PICTURE, texts=TEXTS, **options, encoding_format="base64"))
        tensors = load(
            (await client.post("/embed", json=body(PICTURE, texts=TEXTS, **options, format="safetensors"))).content
        )
        raw = await client.post("/embed", json=body(texts=TEXTS, **options, format="raw"))
    found = pooled(whole)
    wanted = quantized(l2_normalize(found) if normalize else found, dtype)
    named = "int8" if dtype == "int8" else "uint8"
    assert wanted.shape == (5, 1 if dtype == "binary" else 6)
    assert {entry["pooled"]["dtype"] for entry in floats["data"]} == {named}
    assert [entry["pooled"]["data"] for entry in floats["data"]] == wanted.tolist()
    decoded = [base64.b64decode(entry["pooled"]["data"]) for entry in coded.json()["data"]]
    assert b"".join(decoded) == wanted.tobytes()
    np.testing.assert_array_equal(np.concatenate([tensors["pooled"], tensors["texts"]]), wanted)
    assert (raw.content, raw.headers["x-tensor-dtype"]) == (wanted[1:].tobytes(), named)


async def test_normalize_gives_length_one() -> None:
    texts = TEXTS[:3]
    async with serving() as client:
        answer = (await client.post("/embed", json=body(texts=texts, normalize=True))).json()
    np.testing.assert_array_equal(pooled(answer), l2_normalize(vectors_of(texts)))
    np.testing.assert_allclose(np.linalg.norm(pooled(answer), axis=1), 1, rtol=1e-6)


async def test_safetensors_hold_both_halves_and_say_what_they_are() -> None:
    texts = ["a", "seventeen bytes !"]
    async with serving() as client:
        response = await client.post(
            "/embed", json=body(b"", PICTURE, texts=texts, output="both", format="safetensors")
        )
    assert response.status_code == 207
    tensors = load(response.content)
    assert {name: array.shape for name, array in tensors.items()} == {
        "tokens": (1, 16, 12),
        "pooled": (1, 6),
        "texts": (2, 6),
    }
    head = json.loads(response.content[8 : 8 + int.from_bytes(response.content[:8], "little")])["__metadata__"]
    assert (head["index"], head["truncated"]) == ("1", "1")
    assert json.loads(head["usage"]) == {"images": 1, "tokens": 16, "texts": 2, "text_tokens": 1 + 16}
    assert [each["index"] for each in json.loads(head["errors"])] == [0]


async def test_texts_alone_in_safetensors_read_from_a_file(tmp_path: Any) -> None:
    async with serving() as client:
        response = await client.post("/embed", json=body(texts=TEXTS, format="safetensors"))
    (tmp_path / "texts.safetensors").write_bytes(response.content)
    with safe_open(str(tmp_path / "texts.safetensors"), "numpy") as file:
        assert list(file.keys()) == ["texts"]
        np.testing.assert_array_equal(file.get_tensor("texts"), vectors_of(TEXTS))


@pytest.mark.parametrize("format", ["npy", "raw"])
async def test_one_array_is_not_of_images_and_texts(format: str) -> None:
    async with serving() as client:
        response = await client.post("/embed", json=body(PICTURE, texts=TEXTS, format=format))
    assert_problem(response, 422, "invalid-option")


@pytest.mark.parametrize("pictures", [[b""], [b"", b"x"]], ids=["one", "two"])
async def test_texts_are_answered_though_no_image_can_be(pictures: list[bytes]) -> None:
    async with serving() as client:
        response = await client.post("/embed", json=body(*pictures, texts=TEXTS))
        tensors = await client.post("/embed", json=body(*pictures, texts=TEXTS, format="safetensors"))
    entries = response.json()["data"]
    assert response.status_code == tensors.status_code == 207
    assert [("error" in entry, entry["index"]) for entry in entries] == [
        (index < len(pictures), index) for index in range(len(pictures) + 4)
    ]
    np.testing.assert_array_equal(load(tensors.content)["texts"], vectors_of(TEXTS))


async def test_texts_past_the_context_length_are_cut_and_named_or_refused() -> None:
    texts = ["a", "seventeen bytes !", "seventeen bytes ?"]
    async with serving() as client:
        answer = (await client.post("/embed", json=body(PICTURE, texts=texts))).json()
        again = (await client.post("/embed", json=body(texts=texts))).json()
        refused = await client.post("/embed", json=body(PICTURE, texts=texts, truncate=False))
        header = await client.post("/embed", json=body(texts=texts, format="raw"))
    assert answer["truncated"] == again["truncated"] == [1, 2], "known ones are named too"
    assert answer["usage"]["text_tokens"] == 1 + 16 + 16
    assert header.headers["x-truncated"] == "1,2"
    problem = assert_problem(refused, 422, "text-too-long")
    assert (problem["texts"], problem["tokens"], problem["context_length"]) == ([1, 2], [17, 17], 16)


@pytest.mark.parametrize(
    ("fields", "settings", "status", "slug"),
    [
        ({"texts": []}, {}, 422, "no-images"),
        ({"texts": ["a"] * 3}, {"max_texts": 2}, 413, "too-many-texts"),
        ({"texts": ["a" * 11]}, {"max_text_chars": 10}, 422, "invalid-option"),
        ({"texts": ["a" * 10] * 3}, {"max_prompt_chars": 29}, 413, "too-much-text"),
        ({"texts": "a"}, {}, 422, "invalid-option"),
        ({"texts": [7]}, {}, 422, "invalid-option"),
        ({"texts": [["a"]]}, {}, 422, "invalid-option"),
        ({"texts": [1, 2, 3]}, {}, 422, "invalid-option"),
        ({"texts": ["a"], "text": "b"}, {}, 422, "invalid-option"),
        ({"texts": ["a"], "layer": 1}, {}, 422, "invalid-option"),
        ({"texts": ["a"], "prefix": True}, {}, 422, "invalid-option"),
        ({"texts": ["a"], "project": True}, {}, 422, "invalid-option"),
        ({"texts": ["a"], "resolution": 64}, {}, 422, "invalid-option"),
        ({"texts": ["a"], "templates": ["{}"]}, {}, 422, "invalid-option"),
        ({"texts": ["a"], "model": "fake:none"}, {}, 404, "unknown-model"),
    ],
)
async def test_what_texts_cannot_be_is_refused(
    fields: dict[str, Any], settings: dict[str, Any], status: int, slug: str
) -> None:
    encoder = FakeEncoder()
    async with serving(encoder, **settings) as client:
        encoder.batches.clear()
        assert_problem(await client.post("/embed", json=body(**fields)), status, slug)
    assert encoder.batches == []


async def test_an_encoder_without_a_text_half_says_so() -> None:
    images_only = FakeEncoder(fake_spec("fake:images", scoring=None, context_length=None))
    async with serving(images_only) as client:
        for asked in (body(texts=["a"]), body(PICTURE, texts=["a"])):
            problem = assert_problem(await client.post("/embed", json=asked), 422, "output-not-offered")
            assert "fake:images" in problem["detail"]


async def test_the_numbers_of_a_json_answer_have_their_limit() -> None:
    async with serving(max_json_values=24) as client:
        assert (await client.post("/embed", json=body(texts=list("abcd")))).status_code == 200
        refused = await client.post("/embed", json=body(texts=list("abcde")))
        binary = await client.post("/embed", json=body(texts=list("abcde"), format="raw"))
    assert assert_problem(refused, 413, "answer-too-large")["actual"] == 30
    assert binary.status_code == 200


# The cache.


async def test_known_texts_are_neither_tokenised_nor_embedded_again_and_give_the_same_bits() -> None:
    encoder = Counting()
    async with serving(encoder) as client:
        first = (await client.post("/embed", json=body(texts=TEXTS))).json()
        encoder.tokenized.clear()
        encoder.batches.clear()
        again = (await client.post("/embed", json=body(texts=TEXTS[::-1]))).json()
        assert (encoder.tokenized, encoder.batches) == ([], [])
        some = (await client.post("/embed", json=body(texts=["new", *TEXTS]))).json()
        assert (encoder.tokenized, encoder.batches) == (["new"], [1])
    async with serving(text_cache_bytes=0) as client:
        uncached = (await client.post("/embed", json=body(texts=TEXTS))).json()
    assert pooled(again)[::-1].tobytes() == pooled(first).tobytes() == pooled(uncached).tobytes()
    assert pooled(some)[1:].tobytes() == pooled(first).tobytes()
    assert first["usage"] == again["usage"] == uncached["usage"]


async def test_without_a_cache_every_request_embeds_its_texts() -> None:
    encoder = Counting()
    async with serving(encoder, text_cache_bytes=0) as client:
        encoder.tokenized.clear()
        for _ in range(2):
            await client.post("/embed", json=body(texts=["a"]))
    assert encoder.tokenized == ["a", "a"]


async def test_what_one_caller_asks_for_does_not_change_what_the_next_gets() -> None:
    """normalize, dtype and truncate are of a request, not of what is kept."""
    text = "seventeen bytes !"
    async with serving() as client:
        for options in ({"normalize": True}, {"dtype": "int8"}, {"dtype": "float16"}):
            await client.post("/embed", json=body(texts=[text], **options))
        plain = (await client.post("/embed", json=body(texts=[text]))).json()
        refused = await client.post("/embed", json=body(texts=[text], truncate=False))
    np.testing.assert_array_equal(pooled(plain), vectors_of([text]))
    assert_problem(refused, 422, "text-too-long")


async def test_models_do_not_share_vectors() -> None:
    class Negative(FakeEncoder):
        def encode_text(self, ids: Any) -> Floats:
            return -super().encode_text(ids)

    async with serving(FakeEncoder(), Negative(fake_spec("fake:negative"))) as client:
        found = [
            pooled((await client.post("/embed", json=body(texts=TEXTS, model=model))).json())
            for model in ("fake:vit", "fake:negative")
        ]
    np.testing.assert_array_equal(found[0], -found[1])


async def test_vectors_of_a_forward_that_failed_are_not_kept() -> None:
    is_broken = False

    def before(batch: int) -> None:
        if is_broken:
            raise EncoderFailed("out of order")

    async with serving(FakeEncoder(before=before)) as client:
        is_broken = True
        failed = await client.post("/embed", json=body(texts=TEXTS))
        is_broken = False
        answered = await client.post("/embed", json=body(texts=TEXTS))
    assert_problem(failed, 500, "encoder-failed")
    np.testing.assert_array_equal(pooled(answered.json()), vectors_of(TEXTS))


def known(number: float) -> KnownText:
    return KnownText(np.full(100, number, np.float32), 3)


def test_the_cache_is_bounded_and_the_text_not_asked_for_longest_goes_first() -> None:
    cache = TextCache(2_500)  # three entries of some 800 bytes
    for text in "abc":
        cache.put(b"", text, known(0))
    assert cache.get(b"", "a") is not None
    cache.put(b"", "d", known(0))
    assert {text for text in "abcd" if cache.get(b"", text)} == {"a", "c", "d"}
    assert 2_000 < cache.nbytes <= 2_500
    for number in range(1000):
        cache.put(b"", f"{number}", known(number))
        assert cache.nbytes <= 2_500


def test_what_is_larger_than_the_whole_cache_throws_nothing_out() -> None:
    cache = TextCache(2_500)
    cache.put(b"", "a", known(0))
    cache.put(b"", "x" * 1000, known(0))
    assert cache.get(b"", "a") is not None
    assert cache.get(b"", "x" * 1000) is None


def test_an_origin_is_of_weights_precision_place_and_templates() -> None:
    spec = fake_spec()
    others = [
        text_origin(fake_spec("fake:other"), ["{}"]),
        text_origin(fake_spec(revision="other"), ["{}"]),
        text_origin(fake_spec(dtype="bfloat16"), ["{}"]),
        text_origin(fake_spec(device="cuda"), ["{}"]),
        text_origin(fake_spec(runtime="openvino"), ["{}"]),
        text_origin(spec, ["a {}"]),
        text_origin(spec, ["{}", "{}"]),
    ]
    assert len({text_origin(spec, ["{}"]), *others}) == len(others) + 1
    assert text_origin(spec, ["ab{}", "{}"]) != text_origin(spec, ["a{}", "b{}"])
    assert text_origin(spec, ["?{}"]) != text_origin(spec, ["\ud800{}"])
    assert text_origin(spec, ["{}"]) == text_origin(fake_spec(), ["{}"])
