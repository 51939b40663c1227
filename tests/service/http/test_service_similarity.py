"""POST /similarity: the arithmetic, templates, heat maps, and what it refuses."""

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.spec import Scoring
from encoders.contract.values import Encoded, Floats, ImageSize, Outputs, TokenKind
from encoders.images.decode import decode
from service.engine.postprocess import l2_normalize
from service.engine.scoring import PromptLimits, Unfilled, probabilities
from service.engine.templates import OPENAI
from tests.support.serving import PNG, assert_problem, image_bytes, noise, serving

pytestmark = pytest.mark.anyio
PICTURES = [noise(1), noise(2)]
TEXTS = ["a red circle", "two dogs", "x"]
AMPLE = PromptLimits(prompts=10, chars=100, all_chars=1000)


def body(*pictures: bytes, **fields: Any) -> dict[str, Any]:
    return {"images": [base64.b64encode(picture).decode() for picture in pictures], **fields}


def unit(vectors: Floats | None) -> NDArray[Any]:
    assert vectors is not None
    wide = np.asarray(vectors, dtype=np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=-1, keepdims=True))


def encoded(picture: bytes) -> Encoded:
    encoder = FakeEncoder()
    pixels = encoder.preprocess(decode(picture), ImageSize(32, 32))
    return encoder.encode(pixels[None], Outputs(pooled=True, tokens=TokenKind.DENSE)).row(0)


def text_vectors(*texts: str) -> NDArray[Any]:
    encoder = FakeEncoder()
    return unit(encoder.encode_text(encoder.tokenize(texts).ids))


def close(found: Any, wanted: Any) -> None:
    """float32 vectors of a handful of numbers, against float64; logits are 100 times a cosine."""
    np.testing.assert_allclose(np.asarray(found, dtype=np.float64), wanted, rtol=1e-4, atol=1e-5)


async def test_scores_are_scaled_cosines_and_their_softmax() -> None:
    async with serving() as client:
        response = await client.post("/similarity", json=body(*PICTURES, texts=TEXTS))
    answer = response.json()
    images = np.stack([unit(encoded(picture).pooled) for picture in PICTURES])
    cosine = images @ text_vectors(*TEXTS).T
    close(answer["cosine"], cosine)
    np.testing.assert_allclose(answer["logits"], 100 * cosine, atol=1e-3)
    powers = np.exp(100 * cosine - (100 * cosine).max(axis=1, keepdims=True))
    np.testing.assert_allclose(answer["probabilities"], powers / powers.sum(axis=1, keepdims=True), atol=1e-3)
    assert (answer["logit_scale"], answer["logit_bias"], answer["activation"]) == (100.0, 0.0, "softmax")
    assert "heatmap" not in answer


async def test_a_form_says_the_same_as_json() -> None:
    async with serving() as client:
        from_json = await client.post("/similarity", json=body(PICTURES[0], texts=TEXTS))
        from_form = await client.post("/similarity", files={"image": PICTURES[0]}, data={"text": TEXTS})
        from_query = await client.post("/similarity", params={"text": TEXTS}, content=PICTURES[0], headers=PNG)
    assert from_form.json()["cosine"] == from_query.json()["cosine"] == from_json.json()["cosine"]


async def test_templates_go_by_name_in_json_form_and_query() -> None:
    picture = PICTURES[0]
    options: dict[str, Any] = {"content": picture, "headers": PNG}
    async with serving() as client:
        answers = [
            await client.post("/similarity", json=body(picture, texts=TEXTS, templates=list(OPENAI))),
            await client.post("/similarity", json=body(picture, texts=TEXTS, templates="openai")),
            await client.post("/similarity", json=body(picture, texts=TEXTS, templates=["openai"])),
            await client.post("/similarity", files={"image": picture}, data={"text": TEXTS, "template": "openai"}),
            await client.post("/similarity", files={"image": picture}, data={"text": TEXTS, "templates": "openai"}),
            await client.post("/similarity", params={"text": TEXTS, "template": "openai"}, **options),
            await client.post("/similarity", params={"text": TEXTS, "templates": "openai"}, **options),
        ]
        plain = await client.post("/similarity", json=body(picture, texts=TEXTS))
    assert [answer.status_code for answer in answers] == [200] * 7
    first, *others = [answer.json()["cosine"] for answer in answers]
    assert others == [first] * 6
    assert plain.json()["cosine"] != first


async def test_sigmoid_models_judge_each_pair_alone() -> None:
    spec = fake_spec(scoring=Scoring("sigmoid", logit_scale=10.0, logit_bias=-5.0))
    async with serving(FakeEncoder(spec)) as client:
        answer = (await client.post("/similarity", json=body(PICTURES[0], texts=TEXTS))).json()
    logits = 10 * np.array(answer["cosine"]) - 5
    close(answer["logits"], logits)
    close(answer["probabilities"], 1 / (1 + np.exp(-logits)))
    assert (answer["activation"], answer["logit_bias"]) == ("sigmoid", -5.0)


async def test_a_text_is_the_mean_over_its_templates() -> None:
    templates = ["a {}", "no {} at all"]
    async with serving() as client:
        answer = (await client.post("/similarity", json=body(PICTURES[0], texts=["dog"], templates=templates))).json()
    vector = unit(text_vectors("a dog", "no dog at all").mean(axis=0))
    close(answer["cosine"][0], [vector @ unit(encoded(PICTURES[0]).pooled)])


async def test_a_heat_map_is_the_cosine_of_each_patch() -> None:
    async with serving() as client:
        answer = (await client.post("/similarity", json=body(*PICTURES, texts=TEXTS, heatmap=True))).json()
    patches = unit(encoded(PICTURES[1]).tokens)
    close(answer["heatmap"][1], (text_vectors(*TEXTS) @ patches.T).reshape(3, 4, 4))
    assert answer["grid"] == [4, 4]


async def test_equal_texts_are_encoded_once() -> None:
    encoder = FakeEncoder()
    async with serving(encoder) as client:
        encoder.batches.clear()
        answer = (await client.post("/similarity", json=body(PICTURES[0], texts=["dog"] * 50))).json()
    assert sum(encoder.batches) == 2  # one image, one text
    assert len(answer["cosine"][0]) == 50


async def test_a_bad_image_is_null_and_named() -> None:
    async with serving() as client:
        response = await client.post("/similarity", json=body(b"", PICTURES[0], texts=TEXTS, heatmap=True))
    answer = response.json()
    assert response.status_code == 207
    assert [answer[name][0] for name in ("cosine", "logits", "probabilities", "heatmap")] == [None] * 4
    assert len(answer["cosine"][1]) == 3
    assert answer["errors"][0]["error"]["type"] == "/problems/empty-image"


async def test_if_every_image_is_bad_all_are_named() -> None:
    async with serving() as client:
        response = await client.post("/similarity", json=body(b"", b"", texts=TEXTS, heatmap=True))
    assert response.status_code == 207
    assert response.json()["grid"] is None
    assert [error["index"] for error in response.json()["errors"]] == [0, 1]


@pytest.mark.parametrize(
    ("fields", "settings", "status", "slug"),
    [
        ({"texts": []}, {}, 422, "no-texts"),
        ({}, {}, 422, "no-texts"),
        ({"texts": ["a"] * 1025}, {}, 413, "too-many-texts"),
        ({"texts": ["a"] * 3, "templates": ["{}", "a {}"]}, {"max_texts": 5}, 413, "too-many-texts"),
        ({"texts": ["a"], "templates": ["no slot"]}, {}, 422, "invalid-option"),
        ({"texts": ["a"], "templates": []}, {}, 422, "invalid-option"),
        ({"texts": [1]}, {}, 422, "invalid-option"),
        ({"texts": "a"}, {}, 422, "invalid-option"),
        ({"texts": ["a" * 4097]}, {}, 422, "invalid-option"),
        ({"texts": ["a" * 3000], "templates": ["{}" * 2048]}, {}, 413, "prompt-too-long"),
        ({"texts": ["a" * 5] * 5, "templates": ["{}{}"]}, {"max_prompt_chars": 49}, 413, "too-much-text"),
        ({"texts": ["a"], "text": "b"}, {}, 422, "invalid-option"),
        ({"texts": ["a"], "template": "{}", "templates": ["a {}"]}, {}, 422, "invalid-option"),
        ({"texts": ["a"], "layer": 1}, {}, 422, "invalid-option"),
        ({"texts": ["a"], "resolution": 33}, {}, 422, "unsupported-resolution"),
        ({"texts": ["a"], "model": "fake:none"}, {}, 404, "unknown-model"),
        ({"texts": ["a"], "format": "npy"}, {}, 406, "not-acceptable"),
        ({"texts": ["a"] * 5, "heatmap": True}, {"max_heatmap_values": 79}, 413, "heatmap-too-large"),
    ],
)
async def test_what_cannot_be_answered_is_a_problem(
    fields: dict[str, Any], settings: dict[str, Any], status: int, slug: str
) -> None:
    async with serving(**settings) as client:
        assert_problem(await client.post("/similarity", json=body(PICTURES[0], **fields)), status, slug)


async def test_an_encoder_without_text_says_so() -> None:
    async with serving(FakeEncoder(fake_spec(scoring=None, context_length=None))) as client:
        response = await client.post("/similarity", json=body(PICTURES[0], texts=TEXTS))
        served = (await client.get("/models/fake:vit")).json()
    assert_problem(response, 422, "output-not-offered")
    assert served["has_text"] is False


async def test_an_encoder_without_dense_features_has_scores_but_no_heat_maps() -> None:
    async with serving(FakeEncoder(fake_spec(dense=False))) as client:
        plain = await client.post("/similarity", json=body(PICTURES[0], texts=TEXTS))
        response = await client.post("/similarity", json=body(PICTURES[0], texts=TEXTS, heatmap=True))
    assert plain.status_code == 200
    assert_problem(response, 422, "output-not-offered")


async def test_a_text_tower_that_gives_nan_is_a_problem() -> None:
    class NoText(FakeEncoder):
        def encode_text(self, ids: Any) -> Floats:
            rows = super().encode_text(ids)
            return rows if ids[0, 0] == ord("a") else rows * np.nan  # the warm-up text starts with an a

    async with serving(NoText()) as client:
        response = await client.post("/similarity?text=dog", content=image_bytes(), headers=PNG)
    assert_problem(response, 500, "non-finite-output")


def test_prompts_keep_each_distinct_one_once() -> None:
    prompts = Unfilled.of(["a", "b", "a"], ["{}", "{}!"], AMPLE).fill()
    assert prompts.unique == ("a", "a!", "b", "b!")
    assert prompts.place == ((0, 1), (2, 3), (0, 1))


def test_braces_in_a_text_are_only_text() -> None:
    assert Unfilled.of(["{}{0}"], ["<{}>"], AMPLE).fill().unique == ("<{}{0}>",)


def test_probabilities_survive_extreme_logits() -> None:
    scoring = Scoring("softmax", 1.0)
    logits = np.array([1e4, -1e4], dtype=np.float32)
    assert probabilities(logits, scoring).tolist() == [1.0, 0.0]
    assert probabilities(logits, replace(scoring, activation="sigmoid")).tolist() == [1.0, 0.0]


def test_a_zero_vector_stays_zero() -> None:
    assert l2_normalize(np.zeros((1, 3), np.float32)).tolist() == [[0.0, 0.0, 0.0]]


# Texts past the context length: 16 bytes in the fake

LONG = "sixteen bytes abc"  # 17


async def test_texts_that_differ_past_the_cut_score_alike_and_are_named() -> None:
    texts = ["a cat", f"{LONG[:16]} and", "a dog", f"{LONG[:16]} or"]
    async with serving() as client:
        answer = (await client.post("/similarity", json=body(*PICTURES, texts=texts))).json()
    assert answer["truncated"] == [1, 3]
    assert [row[1] for row in answer["cosine"]] == [row[3] for row in answer["cosine"]]


async def test_a_text_of_the_context_length_is_whole() -> None:
    async with serving() as client:
        answer = (await client.post("/similarity", json=body(PICTURES[0], texts=[LONG[:16], LONG[:15]]))).json()
        refusing = await client.post("/similarity", json=body(PICTURES[0], texts=[LONG[:16]], truncate=False))
    assert answer["truncated"] == []
    assert refusing.json()["truncated"] == []


async def test_a_text_is_named_if_any_of_its_prompts_was_cut() -> None:
    templates = ["{}", "a photo of a {}"]
    async with serving() as client:
        answer = await client.post("/similarity", json=body(PICTURES[0], texts=["x", "tree"], templates=templates))
    assert answer.json()["truncated"] == [1]


async def test_texts_that_may_not_be_cut_are_refused_by_name() -> None:
    encoder = FakeEncoder()
    texts = [LONG, "a cat", "é" * 10]
    async with serving(encoder) as client:
        encoder.batches.clear()
        in_json = await client.post("/similarity", json=body(PICTURES[0], texts=texts, truncate=False))
        in_form = await client.post(
            "/similarity", files={"image": PICTURES[0]}, data={"text": texts, "truncate": "false"}
        )
    problem = assert_problem(in_json, 422, "text-too-long")
    assert (problem["texts"], problem["tokens"], problem["context_length"]) == ([0, 2], [17, 20], 16)
    assert "fake:vit reads 16 tokens of a text: text 0 has 17, text 2 has 20." in problem["detail"]
    assert assert_problem(in_form, 422, "text-too-long")["detail"] == problem["detail"]
    assert encoder.batches == [], "nothing was run"


async def test_a_thousand_long_texts_make_a_short_refusal() -> None:
    texts = [f"{LONG} {number}" for number in range(1000)]
    async with serving(max_texts=1000, queue_texts=1000) as client:
        response = await client.post("/similarity", json=body(PICTURES[0], texts=texts, truncate=False))
        cut = await client.post("/similarity", json=body(PICTURES[0], texts=texts))
    assert "and 980 more texts" in assert_problem(response, 422, "text-too-long")["detail"]
    assert len(response.content) < 2000
    assert cut.json()["truncated"] == list(range(1000))
