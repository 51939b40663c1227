"""POST /classify: images against labels, the likeliest of each."""

import base64
import threading
from typing import Any

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.spec import Scoring
from service.engine.templates import NAMED, OPENAI
from tests.support.paths import ANIMALS
from tests.support.serving import PNG, assert_problem, noise, serving

pytestmark = pytest.mark.anyio
PICTURES = [noise(1), noise(2)]
LABELS = ["cat", "finch", "a horse"]
SET: dict[str, Any] = {"labels": (f"animals={ANIMALS}",)}


def body(*pictures: bytes, **fields: Any) -> dict[str, Any]:
    return {"images": [base64.b64encode(picture).decode() for picture in pictures], **fields}


async def test_the_likeliest_labels_of_each_image_are_those_of_similarity() -> None:
    labels = [f"label {number}" for number in range(40)]
    async with serving() as client:
        response = await client.post("/classify", json=body(*PICTURES, labels=labels, top_k=7))
        scores = (
            await client.post("/similarity", json=body(*PICTURES, texts=labels, templates=["a photo of a {}."]))
        ).json()
    answer = response.json()
    assert response.status_code == 200
    assert response.headers["server-timing"]
    assert (answer["object"], answer["model"], answer["labels"]) == ("classification", "fake:vit", 40)
    assert (answer["activation"], answer["logit_scale"], answer["logit_bias"]) == ("softmax", 100.0, 0.0)
    assert answer["usage"] == {"images": 2}
    for index, entry in enumerate(answer["data"]):
        order = sorted(range(40), key=lambda each: -scores["logits"][index][each])[:7]
        assert entry["index"] == index
        assert entry["labels"] == [
            {
                "label": labels[each],
                "index": each,
                "probability": scores["probabilities"][index][each],
                "cosine": scores["cosine"][index][each],
            }
            for each in order
        ]


async def test_sigmoid_models_judge_each_label_alone() -> None:
    spec = fake_spec(scoring=Scoring("sigmoid", logit_scale=10.0, logit_bias=-5.0))
    async with serving(FakeEncoder(spec)) as client:
        answer = (await client.post("/classify", json=body(PICTURES[0], labels=LABELS))).json()
    assert (answer["activation"], answer["logit_bias"]) == ("sigmoid", -5.0)
    for each in answer["data"][0]["labels"]:
        assert each["probability"] == pytest.approx(1 / (1 + np.exp(5 - 10 * each["cosine"])), rel=1e-4)


@pytest.mark.parametrize(("asked", "given"), [({}, 5), ({"top_k": 1}, 1), ({"top_k": 8}, 8), ({"top_k": 5000}, 8)])
async def test_at_most_as_many_labels_as_asked_for_and_as_there_are(asked: dict[str, int], given: int) -> None:
    async with serving() as client:
        answer = (await client.post("/classify", json=body(PICTURES[0], labels=list("abcdefgh"), **asked))).json()
    assert len(answer["data"][0]["labels"]) == given


async def test_equal_labels_are_answered_in_the_order_that_they_have() -> None:
    async with serving() as client:
        answer = (await client.post("/classify", json=body(PICTURES[0], labels=["b", "a", "a", "b"]))).json()
    order = [each["index"] for each in answer["data"][0]["labels"]]
    assert sorted(order[:2]) == order[:2]
    assert sorted(order[2:]) == order[2:]


async def test_labels_or_a_set_s_name_in_json_form_and_query() -> None:
    picture = PICTURES[0]
    options: dict[str, Any] = {"content": picture, "headers": PNG}
    async with serving(**SET) as client:
        answers = [
            await client.post("/classify", json=body(picture, labels=LABELS)),
            await client.post("/classify", json=body(picture, labels="animals")),
            await client.post("/classify", files={"image": picture}, data={"label": LABELS}),
            await client.post("/classify", files={"image": picture}, data={"labels": "animals"}),
            await client.post("/classify", params={"label": LABELS}, **options),
            await client.post("/classify", params={"labels": "animals"}, **options),
        ]
    assert [answer.status_code for answer in answers] == [200] * 6
    assert len({answer.text.partition('"usage"')[0] for answer in answers}) == 1


@pytest.mark.parametrize("name", sorted(NAMED))
@pytest.mark.parametrize("labels", [LABELS, "animals"], ids=["list", "set"])
async def test_templates_by_name_are_those_of_the_name(labels: list[str] | str, name: str) -> None:
    async with serving(**SET) as client:
        asked = [
            await client.post("/classify", json=body(PICTURES[0], labels=labels, templates=templates))
            for templates in (name, [name], list(NAMED[name]))
        ]
        form = await client.post(
            "/classify",
            files={"image": PICTURES[0]},
            data={"label" if isinstance(labels, list) else "labels": labels, "template": name},
        )
    found = [answer.json()["data"] for answer in (*asked, form)]
    assert found[1:] == found[:1] * 3


async def test_the_templates_are_a_photo_of_a_where_none_are_given() -> None:
    async with serving() as client:
        found = [
            (await client.post("/classify", json=body(PICTURES[0], labels=LABELS, **options))).json()["data"]
            for options in ({}, {"templates": "photo"}, {"templates": "plain"})
        ]
    assert found[0] == found[1] != found[2]


async def test_a_bad_image_is_an_error_at_its_place() -> None:
    async with serving(**SET) as client:
        answer = await client.post("/classify", json=body(b"", *PICTURES, labels="animals"))
        alone = await client.post("/classify", json=body(b"", labels="animals"))
    entries = answer.json()["data"]
    assert answer.status_code == 207
    assert [entry["index"] for entry in entries] == [0, 1, 2]
    assert entries[0]["error"]["type"] == "/problems/empty-image"
    assert "labels" not in entries[0]
    assert len(entries[1]["labels"]) == 3
    assert answer.json()["usage"] == {"images": 2}
    assert_problem(alone, 422, "empty-image")


async def test_labels_that_are_cut_are_named_or_refused() -> None:
    labels = ["a", "x" * 40, "b"]
    async with serving() as client:
        options = {"labels": labels, "templates": "plain"}
        answer = (await client.post("/classify", json=body(PICTURES[0], **options))).json()
        refused = await client.post("/classify", json=body(PICTURES[0], **options, truncate=False))
    assert answer["truncated"] == [1]
    assert assert_problem(refused, 422, "text-too-long")["texts"] == [1]


@pytest.mark.parametrize(
    ("fields", "status", "slug", "words"),
    [
        ({}, 422, "invalid-option", "There is no label in the request"),
        ({"labels": []}, 422, "invalid-option", "There is no label in the request"),
        ({"labels": "birds"}, 422, "invalid-option", "There is: animals"),
        ({"labels": "x" * 5000}, 422, "invalid-option", "5,000 characters"),
        ({"labels": 7}, 422, "invalid-option", "a list of labels, or the name of a set"),
        ({"labels": ["a", 7]}, 422, "invalid-option", "label 1 is no text"),
        ({"labels": [["a"]]}, 422, "invalid-option", "not nested"),
        ({"labels": {"a": 1}}, 422, "invalid-option", "labels"),
        ({"labels": ["a"], "label": "b"}, 422, "invalid-option", "one option"),
        ({"labels": ["a"], "top_k": 0}, 422, "invalid-option", "'top_k' is 0"),
        ({"labels": ["a"], "top_k": True}, 422, "invalid-option", "'top_k' is True"),
        ({"labels": ["a"], "templates": "imagenet"}, 422, "invalid-option", "no name of templates: plain, photo"),
        ({"labels": ["a"], "templates": []}, 422, "invalid-option", "templates"),
        ({"labels": ["a"], "model": "fake:none"}, 404, "unknown-model", "fake:none"),
        ({"labels": ["a"], "format": "npy"}, 406, "not-acceptable", "npy"),
        ({"labels": ["a"], "heatmap": True}, 422, "invalid-option", "heatmap"),
        ({"labels": ["a"] * 2000}, 413, "too-many-texts", "2000"),
        ({"labels": ["a"] * 20, "templates": "openai"}, 413, "too-many-texts", "1600"),
        ({"labels": "animals", "templates": ["{}"] * 400}, 413, "too-many-texts", "1200"),
        ({"labels": ["a" * 5000]}, 422, "invalid-option", "5000 characters"),
    ],
)
async def test_what_cannot_be_is_refused_with_what_would_be_right(
    fields: dict[str, Any], status: int, slug: str, words: str
) -> None:
    async with serving(**SET) as client:
        response = await client.post("/classify", json=body(PICTURES[0], **fields))
    problem = assert_problem(response, status, slug)
    assert words in problem["detail"]
    assert len(response.content) < 2000


async def test_a_request_without_an_image_is_refused() -> None:
    async with serving() as client:
        assert_problem(await client.post("/classify", json={"labels": LABELS}), 422, "no-images")


async def test_an_encoder_without_a_text_half_says_so() -> None:
    images_only = FakeEncoder(fake_spec("fake:images", scoring=None, context_length=None))
    async with serving(images_only, **SET) as client:
        for labels in (LABELS, "animals"):
            assert_problem(
                await client.post("/classify", json=body(PICTURES[0], labels=labels)), 422, "output-not-offered"
            )


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("candidate_labels", LABELS, "labels"),
        ("classes", LABELS, "labels"),
        ("texts", LABELS, "labels"),
        ("label_set", "animals", "labels"),
        ("topk", 3, "top_k"),
        ("k", 3, "top_k"),
        ("hypothesis_template", "a {}", "templates"),
    ],
)
async def test_other_services_words_are_answered_with_ours(name: str, value: object, meant: str) -> None:
    async with serving(**SET) as client:
        response = await client.post("/classify", json=body(PICTURES[0], **{name: value}))
    assert f"Did you mean '{meant}'?" in assert_problem(response, 422, "invalid-option")["detail"]


async def test_a_set_that_is_not_ready_in_time_is_a_503_that_says_so() -> None:
    """The time of the request is up before a tower of texts that stands still has embedded anything."""
    goes_on = threading.Event()
    goes_on.set()
    encoder = FakeEncoder(before=lambda batch: assert_set(goes_on))
    async with serving(encoder, **SET, request_timeout_s=0.5) as client:
        goes_on.clear()
        refused = await client.post("/classify", json=body(PICTURES[0], labels="animals"))
        goes_on.set()
        answered = await client.post("/classify", json=body(PICTURES[0], labels="animals"))
        metrics = (await client.get("/metrics")).text
    problem = assert_problem(refused, 503, "labels-not-ready")
    assert (problem["labels"], problem["done"], problem["number"]) == ("animals", 0, 3)
    assert int(refused.headers["retry-after"]) >= 1
    assert answered.status_code == 200
    assert 'visiontower_rejected_total{reason="labels-not-ready"} 1.0' in metrics


def assert_set(event: Any) -> None:
    assert event.wait(30)


async def test_long_labels_are_held_as_what_their_answer_takes() -> None:
    """A small request with a large answer: every image is answered with every label."""
    labels = [f"{number} {'x' * 4000}" for number in range(100)]
    async with serving(memory_budget=20_000_000) as client:
        few = await client.post("/classify", json=body(PICTURES[0], labels=labels, templates="plain"))
        many = await client.post("/classify", json=body(*PICTURES * 30, labels=labels, templates="plain", top_k=100))
    assert few.status_code == 200
    assert "The answer of this request" in assert_problem(many, 413, "over-host-memory")["detail"]


async def test_a_set_with_eighty_templates_costs_the_next_request_nothing() -> None:
    encoder = FakeEncoder()
    async with serving(encoder, **SET, max_texts=100, text_cache_bytes=0) as client:
        for expected in (len(LABELS) * len(OPENAI) + 1, 1):
            encoder.batches.clear()
            asked = body(PICTURES[0], labels="animals", templates="openai")
            assert (await client.post("/classify", json=asked)).status_code == 200
            assert sum(encoder.batches) == expected
