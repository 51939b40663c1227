"""What a body and an answer may take: known and held before they are there, given back whatever happens."""

import asyncio
import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load

from encoders.adapters.fake import FakeEncoder
from service.engine import EmbedRequest, Engine, SimilarityRequest
from service.engine.values import PlanRequest
from service.http.json import Text, json_pieces, to_json
from service.settings import Settings
from tests.support.serving import PNG, Gate, app_of, assert_problem, backend_of, client_of, image_bytes, noise, serving
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
PICTURE = image_bytes()
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
LARGE = "/embed?resolution=512"
NUMBERS = 4097 * 12
"""Of one image there, prefix token included."""


def held(app: FastAPI) -> dict[str, int]:
    return {stage: size for stage, size in app.state.engine.account.held.items() if size}


def part(name: str, content: bytes, *, parameters: str = "") -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{parameters}\r\n\r\n'.encode() + content + b"\r\n"


# Bodies


async def test_a_body_is_held_until_its_images_are_answered() -> None:
    gate = Gate()
    app = app_of(FakeEncoder(before=gate))
    async with client_of(app) as client:
        gate.close()
        body = PICTURE + bytes(100_000)
        request = asyncio.create_task(client.post("/embed?output=pooled", content=body, headers=PNG))
        await gate.someone_inside()
        assert held(app)["body"] == len(body)
        gate.is_open.set()
        assert (await request).status_code == 200
        assert held(app) == {}


async def test_a_body_that_another_s_leave_no_room_for_is_refused_and_waits_for_nobody() -> None:
    gate = Gate()
    app = app_of(FakeEncoder(before=gate), memory_budget=1_000_000)
    async with client_of(app) as client:
        gate.close()
        first = asyncio.create_task(client.post("/embed?output=pooled", content=PICTURE + bytes(400_000), headers=PNG))
        await gate.someone_inside()
        second = await client.post("/embed?output=pooled", content=PICTURE + bytes(400_000), headers=PNG)
        assert_problem(second, 503, "host-memory-full")
        assert second.headers["retry-after"] == "1"
        gate.is_open.set()
        assert (await first).status_code == 200
        third = await client.post("/embed?output=pooled", content=PICTURE + bytes(400_000), headers=PNG)
        assert third.status_code == 200
        assert held(app) == {}


async def test_the_pixels_of_a_request_count_until_it_is_answered() -> None:
    """A small file may become a large input: of 512 x 512 here."""
    gate, one = Gate(), 3 * 512 * 512
    app = app_of(FakeEncoder(before=gate), memory_budget=4 * one)
    large = "/embed?output=pooled&resolution=512x512"
    async with client_of(app) as client:
        gate.close()
        first = asyncio.create_task(client.post(large, files=[("image", PICTURE)] * 2))
        await gate.someone_inside()
        assert held(app)["input"] == 2 * one
        assert_problem(await client.post(large, files=[("image", PICTURE)] * 2), 503, "host-memory-full")
        small = asyncio.create_task(client.post("/embed?output=pooled", content=PICTURE, headers=PNG))
        gate.is_open.set()
        assert [(await each).status_code for each in (first, small)] == [200, 200]
        assert held(app) == {}
        problem = await client.post(large, files=[("image", PICTURE)] * 5)
        assert_problem(problem, 413, "over-host-memory")
        assert "The input of this request needs" in problem.json()["detail"]
        assert held(app) == {}


async def test_a_picture_that_never_fits_beside_its_request_s_pixels_is_refused_at_once() -> None:
    app = app_of(memory_budget=120_000_000)
    picture = image_bytes(size=(3000, 3000))
    async with client_of(app) as client:
        alone = await client.post("/embed?output=pooled", content=picture, headers=PNG)
        assert alone.status_code == 200, alone.text
        files = [("image", picture), *[("image", PICTURE)] * 30]
        answer = await client.post("/embed?output=pooled&resolution=512x512", files=files)
        assert "The image of this request needs" in answer.text
        assert held(app) == {}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (PICTURE, PNG, 200),
        (b"{", JSON, 400),
        (b"x" * 100_000, JSON, 400),
        (b"x" * 100_000, PNG, 415),
        (gzip.compress(PICTURE), PNG | {"content-encoding": "gzip"}, 200),
        (gzip.compress(bytes(10_000_000)), PNG | {"content-encoding": "gzip"}, 413),
        (b"nonsense", PNG | {"content-encoding": "gzip"}, 400),
        (PICTURE, PNG | {"content-encoding": "br"}, 415),
        (bytes(3_000_000), PNG, 413),
    ],
)
async def test_whatever_becomes_of_a_request_nothing_stays_held(body: bytes, headers: Any, status: int) -> None:
    app = app_of(max_body_bytes=2_000_000)
    async with client_of(app) as client:
        for content in (body, _in_pieces(body)):
            assert (await client.post("/embed", content=content, headers=headers)).status_code == status
            assert held(app) == {}


async def _in_pieces(body: bytes) -> Any:
    for start in range(0, len(body), 50_000):
        yield body[start : start + 50_000]


async def test_a_compressed_body_may_not_grow_past_the_budget() -> None:
    app = app_of(memory_budget=1_000_000)
    async with client_of(app) as client:
        bomb = gzip.compress(bytes(50_000_000))
        response = await client.post("/embed", content=bomb, headers=PNG | {"content-encoding": "gzip"})
        assert_problem(response, 413, "over-host-memory")
        assert held(app) == {}


async def test_json_has_a_limit_of_its_own_that_names_the_form() -> None:
    image = base64.b64encode(PICTURE + bytes(300_000)).decode()
    async with serving(max_json_bytes=200_000) as client:
        response = await client.post("/embed", json={"images": [image]})
        problem = assert_problem(response, 413, "body-too-large")
        assert (problem["limit"], "form" in problem["detail"]) == (200_000, True)
        packed = gzip.compress(json.dumps({"images": [image]}).encode())
        response = await client.post("/embed", content=packed, headers=JSON | {"content-encoding": "gzip"})
        assert_problem(response, 413, "body-too-large")
        response = await client.post("/embed", files={"image": PICTURE + bytes(300_000)})
        assert response.status_code == 200


@pytest.mark.parametrize("unit", ["[],", "{},", "1,", '"",'])
async def test_json_of_countless_small_values_is_refused_unparsed(unit: str) -> None:
    body = '{"images": [' + unit * 250_001 + "1]}"
    async with serving() as client:
        assert_problem(await client.post("/embed", content=body, headers=JSON), 400, "invalid-body")


@pytest.mark.parametrize(
    "body",
    [
        part("image", PICTURE, parameters="; a=b" * 17),
        part("image", PICTURE, parameters='; a="' + ";" * 500),
        part("model", b"x" * 2_000_000),
        part("image", PICTURE) + b"--x" + b" " * 100_000 + b"\r\n\r\n",
        part("image", PICTURE) + b"--x\t\r\n\r\n",
        part("image", PICTURE) + b"\r\n--x" * 20_000,
        b"".join(part("text", b"") for _ in range(16_385)),
    ],
    ids=["parameters", "quotes", "long field", "padding", "tab", "delimiters", "parts"],
)
async def test_a_form_that_takes_long_to_take_apart_is_refused(body: bytes) -> None:
    async with serving() as client:
        response = await client.post("/embed", content=body + b"--x--\r\n", headers=FORM)
    assert response.status_code in (400, 422)
    assert len(response.content) < 2000


# Answers


async def test_an_answer_is_held_from_before_the_engine_runs_until_it_is_sent() -> None:
    app, gate = app_of(), asyncio.Event()
    async with client_of(app):
        sent: list[Any] = []
        messages = [{"type": "http.request", "body": PICTURE, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else await asyncio.Future()

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 2:
                await gate.wait()

        answering = asyncio.create_task(app(_scope(LARGE + "&format=raw"), receive, send))
        await until(lambda: len(sent) == 2)
        assert held(app)["answer"] == 8 * NUMBERS
        gate.set()
        await answering
        assert held(app) == {}
        assert sum(len(message["body"]) for message in sent[1:]) == 4 * (NUMBERS - 12)


async def test_a_client_that_leaves_before_the_answer_gives_its_bytes_back() -> None:
    gate = Gate()
    app = app_of(FakeEncoder(before=gate))
    async with client_of(app):
        gate.close()
        leave = asyncio.Event()
        messages = [{"type": "http.request", "body": PICTURE, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            """To nobody."""

        asking = asyncio.create_task(app(_scope(LARGE), receive, send))
        await gate.someone_inside()
        assert held(app)["answer"] == 24 * NUMBERS
        leave.set()
        await asking
        assert held(app) == {}
        gate.is_open.set()


def _scope(target: str) -> dict[str, Any]:
    path, _, query = target.partition("?")
    headers = [(b"content-type", b"image/png")]
    return {"type": "http", "method": "POST", "path": path, "query_string": query.encode(), "headers": headers}


async def test_json_with_too_many_numbers_is_refused_before_it_is_run_and_says_what_to_ask_for() -> None:
    encoder = FakeEncoder()
    async with serving(encoder, max_json_values=2 * NUMBERS) as client:
        encoder.batches.clear()
        files = [("image", noise(seed)) for seed in range(3)]
        problem = assert_problem(await client.post(LARGE, files=files), 413, "answer-too-large")
        assert (problem["actual"], problem["limit"]) == (3 * NUMBERS, 2 * NUMBERS)
        assert "format=safetensors" in problem["detail"]
        assert encoder.batches == []
        plain = await client.post(f"{LARGE}&format=safetensors", files=files)
        packed = await client.post(f"{LARGE}&encoding_format=base64", files=files)
        assert (await client.post(LARGE, files=files[:2])).status_code == 200
    stacked = load(plain.content)["tokens"]
    for index, entry in enumerate(packed.json()["data"]):
        tokens = np.frombuffer(base64.b64decode(entry["tokens"]["data"], validate=True), np.float32)
        np.testing.assert_array_equal(tokens.reshape(entry["tokens"]["shape"]), stacked[index])


async def test_an_answer_over_the_budget_is_refused_before_it_is_run() -> None:
    encoder = FakeEncoder()
    async with serving(encoder, memory_budget=1_500_000) as client:
        encoder.batches.clear()
        assert_problem(await client.post(LARGE, content=PICTURE, headers=PNG), 413, "over-host-memory")
        assert encoder.batches == []
        response = await client.post(f"{LARGE}&format=raw", content=PICTURE, headers=PNG)
        assert response.status_code == 200


@pytest.mark.parametrize("format", ["json", "safetensors", "npy", "raw"])
async def test_a_large_answer_has_the_numbers_of_the_small_ones(format: str) -> None:
    async with serving() as client:
        pictures = [noise(1), noise(2)]
        both = await client.post(f"{LARGE}&format={format}", files=[("image", each) for each in pictures])
        single = [
            (await client.post(f"{LARGE}&format=json", files={"image": each})).json()["data"][0] for each in pictures
        ]
    assert int(both.headers["content-length"]) == len(both.content)
    expected = np.stack([np.array(each["tokens"]["data"], np.float32) for each in single])
    match format:
        case "json":
            found = np.array([each["tokens"]["data"] for each in both.json()["data"]], np.float32)
        case "safetensors":
            found = load(both.content)["tokens"]
        case "npy":
            import io

            found = np.load(io.BytesIO(both.content))
        case _:
            shape = [int(side) for side in both.headers["x-tensor-shape"].split(",")]
            found = np.frombuffer(both.content, np.float32).reshape(shape)
    np.testing.assert_array_equal(found, expected)


floats = arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=4), elements=st.floats(-1e6, 1e6, width=32))
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers(-1000, 1000) | st.text(max_size=5) | floats,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(values)
def test_json_in_pieces_is_the_same_json(value: object) -> None:
    assert b"".join(json_pieces(value)) == to_json(value)


@pytest.mark.parametrize("shape", [(70_000,), (3, 40_000), (2, 300, 300), (2, 1, 70_000), (1000, 100)])
def test_large_arrays_are_written_in_pieces_that_make_the_same_json(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    answer = {"a": [array, None], "text": Text(iter([b"ab", b"cd"]))}
    pieces = list(json_pieces(answer))
    assert b"".join(pieces) == to_json({"a": [array, None], "text": "abcd"})
    assert max(map(len, pieces)) < 16 * 65_536
    assert orjson.loads(b"".join(pieces))["text"] == "abcd"


@pytest.mark.parametrize(
    "request_",
    [
        EmbedRequest([PICTURE]),
        EmbedRequest([PICTURE, PICTURE], output="both", prefix=True),
        EmbedRequest([PICTURE], output="pooled"),
        EmbedRequest([PICTURE], layer=-1, resolution=None),
        EmbedRequest([PICTURE], project=True),
        SimilarityRequest([PICTURE, PICTURE], ["a", "b", "c"], heatmap=True),
        SimilarityRequest([PICTURE], ["a"]),
        PlanRequest(),
    ],
    ids=lambda request: type(request).__name__,
)
async def test_the_numbers_of_an_answer_are_known_before(request_: Any) -> None:
    async with Engine(Settings(model=("fake:vit",)), backend=backend_of()) as engine:
        numbers, _ = await engine.sizes(request_)
        assert (await engine.run(request_)).values == numbers


# Errors


LONG = "\U000e0001" * 20_000
MARKS = "'\"\\\x00" * 10_000


@pytest.mark.parametrize("word", [LONG, MARKS, "x" * 50_000], ids=["unprintable", "quotes", "plain"])
@pytest.mark.parametrize(
    "make",
    [
        lambda word: {"json": {"images": ["aaaa"], word: 1}},
        lambda word: {"json": {"images": ["aaaa"], "layer": word}},
        lambda word: {"json": {"images": ["aaaa"], "layer": [word] * 5}},
        lambda word: {"json": {"images": ["aaaa"], "dtype": word[:1000]}},
        lambda word: {"json": {"images": ["aaaa"], "model": word}},
        lambda word: {"json": {"images": ["aaaa"], "normalize": [word]}},
        lambda word: {"json": {"images": [word]}},
        lambda word: {"json": {"images": [f"data:{word}"]}},
        lambda word: {"json": {"images": [f"data:image/png;base64,{word}"]}},
        lambda word: {"json": {"images": {word: word}}},
        lambda word: {"json": word},
        lambda word: {"files": {"image": PICTURE}, "data": {"layer": word}},
        lambda word: {"files": {"image": PICTURE}, "data": {"model": [word, "y"]}},
        lambda word: {"files": {"image": PICTURE, word[:1000]: b"a"}},
        lambda word: {"content": PICTURE, "headers": {"content-type": f"a/{word.encode().hex()}"}},
        lambda word: {
            "content": PICTURE,
            "headers": {"content-type": f"multipart/form-data; boundary={word.encode().hex()}"},
        },
        lambda word: {"content": PICTURE, "headers": PNG | {"accept": f"a/{word.encode().hex()}"}},
        lambda word: {"content": PICTURE, "headers": PNG | {"accept": "a/b;q=1," * 50_000}},
        lambda word: {"content": PICTURE, "headers": PNG | {"content-encoding": word.encode().hex()}},
        lambda word: {"content": PICTURE, "headers": PNG, "params": {word[:3000]: "1"}},
        lambda word: {"content": PICTURE, "headers": PNG, "params": {"dtype": word[:3000]}},
    ],
)
async def test_a_word_of_any_length_makes_a_short_problem(make: Callable[[str], dict[str, Any]], word: str) -> None:
    async with serving() as client:
        response = await client.post("/embed", **make(word))
        assert 400 <= response.status_code < 500
        assert len(response.content) < 2000, response.text
        assert sum(len(value) for value in response.headers.values()) < 2000


async def test_a_template_without_a_place_for_the_text_is_cut_too() -> None:
    async with serving() as client:
        asked = {"images": ["aaaa"], "texts": ["a"], "templates": ["\\" * 4000]}
        response = await client.post("/similarity", json=asked)
    assert_problem(response, 422, "invalid-option")
    assert len(response.content) < 2000


async def test_a_query_of_countless_names_is_refused() -> None:
    async with serving() as client:
        response = await client.post("/embed?" + "&" * 5000, content=PICTURE, headers=PNG)
        assert_problem(response, 422, "invalid-option")
        accepted = await client.post(
            "/embed", content=PICTURE, headers=PNG | {"accept": "a/b," * 5000 + "application/json"}
        )
        assert_problem(accepted, 406, "not-acceptable")


@pytest.mark.parametrize("kind", ["spaces", "percent", "data", "late comma"])
async def test_base64_in_its_strangest_spelling_is_read_or_refused_by_name(kind: str) -> None:
    encoded = base64.b64encode(PICTURE + bytes(200_000)).decode()
    match kind:
        case "spaces":
            image = " ".join(encoded)
        case "percent":
            image = "".join(f"%{ord(letter):02X}" for letter in encoded)
        case "data":
            image = "data:image/png," + "".join(f"%{byte:02x}" for byte in PICTURE + bytes(200_000))
        case _:
            image = "data:" + ";" * 2000 + "," + encoded
    async with serving() as client:
        response: httpx.Response = await client.post("/embed?output=pooled", json={"images": [image]})
    if kind == "late comma":
        assert_problem(response, 422, "invalid-base64")
    else:
        assert response.status_code == 200


async def test_texts_that_an_answer_says_again_are_part_of_its_price() -> None:
    texts = [f"{index:04}" + "a" * 3996 for index in range(15)]
    async with serving(memory_budget=300_000) as client:
        assert (await client.post("/v1/embeddings", json={"input": texts})).status_code == 200
        refused = await client.post("/v2/embed", json={"texts": texts})
    assert refused.status_code == 413
    assert "of the server's memory" in refused.json()["message"]


async def test_so_are_the_labels_of_a_set(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(f"{index:04}" + "a" * 996 for index in range(80)))
    asked = {"images": [base64.b64encode(PICTURE).decode()], "labels": "long", "templates": "plain"}
    async with serving(memory_budget=400_000, labels=(f"long={path}",)) as client:
        fine = await client.post("/classify", json=asked | {"top_k": 1})
        assert fine.status_code == 200, fine.text
        assert_problem(await client.post("/classify", json=asked | {"top_k": 1000}), 413, "over-host-memory")
