"""The Open Inference Protocol: numbers are those of /embed to the bit, and every error is `{"error": "..."}`."""

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import ml_dtypes
import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from service.engine.values import EmbedRequest
from service.http.protocols.open_inference.documentation import INFER
from tests.support.serving import Gate, app_of, client_of, image_bytes, noise, serving

pytestmark = pytest.mark.anyio
IMAGES = [noise(1), noise(2, (50, 40)), image_bytes(image_format="JPEG")]
TEXTS = ["a red circle", "ein Würfel"]
INFER_PATH = "/v2/models/fake:vit/infer"
LENGTH = "inference-header-content-length"
DTYPES = {
    "FP32": np.dtype(np.float32),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
}
NATIVE = {"F32": "FP32", "F16": "FP16", "BF16": "BF16", "I8": "INT8", "U8": "UINT8"}


# A client of the protocol, in as many lines as the protocol needs.


def as_bytes(name: str, values: Sequence[bytes]) -> tuple[dict[str, Any], bytes]:
    """An input of the binary extension: what the JSON says of it, and its bytes."""
    raw = b"".join(len(value).to_bytes(4, "little") + value for value in values)
    about = {"name": name, "datatype": "BYTES", "shape": [len(values)], "parameters": {"binary_data_size": len(raw)}}
    return about, raw


def in_json(name: str, values: Sequence[str], **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": list(values), **more}


def encoded(images: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(image).decode() for image in images]


async def post_binary(
    client: httpx.AsyncClient,
    fields: Mapping[str, Any],
    *inputs: tuple[dict[str, Any], bytes],
    path: str = INFER_PATH,
    headers: Mapping[str, str] | None = None,
    trailing: bytes = b"",
) -> httpx.Response:
    head = json.dumps({**fields, "inputs": [about for about, _ in inputs]}).encode()
    body = head + b"".join(raw for _, raw in inputs) + trailing
    return await client.post(path, content=body, headers={LENGTH: str(len(head)), **(headers or {})})


def arrays(response: httpx.Response) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs, in either form."""
    assert response.status_code == 200, response.text
    length = response.headers.get(LENGTH)
    head = response.content if length is None else response.content[: int(length)]
    assert response.headers["content-type"] == ("application/json" if length is None else "application/octet-stream")
    found, at = {}, len(head)
    for output in json.loads(head)["outputs"]:
        dtype, size = DTYPES[output["datatype"]], output["parameters"].get("binary_data_size")
        if size is None:
            array = np.array(output["data"], dtype)
        else:
            array = np.frombuffer(response.content[at : at + size], dtype)
            at += size
        found[output["name"]] = array.reshape(output["shape"])
    assert at == len(response.content)
    return found


async def native(client: httpx.AsyncClient, **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    """What /embed gives for all images and texts."""
    sent = {"images": encoded(IMAGES), "texts": TEXTS, "output": "both", "format": "safetensors", **options}
    response = await client.post("/embed", json=sent)
    assert response.status_code == 200, response.text
    content = response.content
    end = 8 + int.from_bytes(content[:8], "little")
    head = json.loads(content[8:end])
    return {
        {"texts": "text_vectors"}.get(name, name): np.frombuffer(
            content[end + about["data_offsets"][0] : end + about["data_offsets"][1]], DTYPES[NATIVE[about["dtype"]]]
        ).reshape(about["shape"])
        for name, about in head.items()
        if name != "__metadata__"
    }


def assert_equal(found: Mapping[str, np.ndarray[Any, Any]], expected: Mapping[str, np.ndarray[Any, Any]]) -> None:
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def error_of(response: httpx.Response, status: int = 400) -> str:
    """The answer is this protocol's error; gives its text."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (name, text), *rest = response.json().items()
    assert (name, rest) == ("error", [])
    assert len(text) < 600
    return str(text)


# The server and its models


async def test_the_server_lives_and_is_ready() -> None:
    async with serving() as client:
        server = (await client.get("/v2")).json()
        assert (server["name"], "binary_tensor_data" in server["extensions"]) == ("visiontower", True)
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        assert (await client.get("/v2/health/ready")).json() == {"ready": True}
        for path in ("/v2/models/fake:vit/ready", "/v2/models/fake:vit/versions/1/ready"):
            assert (await client.get(path)).json() == {"name": "fake:vit", "ready": True}


async def test_a_server_that_is_not_ready_lives() -> None:
    app = app_of()
    async with client_of(app) as client:
        app.state.engine.admission.close()
        server = await client.get("/v2/health/ready")
        model = await client.get("/v2/models/fake:vit/ready")
        live = await client.get("/v2/health/live")
    assert (server.status_code, server.json()) == (503, {"ready": False, "error": "draining"})
    assert (model.status_code, model.json()) == (503, {"name": "fake:vit", "ready": False, "error": "draining"})
    assert (live.status_code, live.json()) == (200, {"live": True})


@pytest.mark.parametrize("version", ["", "/versions/1"])
async def test_a_model_says_what_it_takes_and_gives(version: str) -> None:
    async with serving() as client:
        model = (await client.get(f"/v2/models/fake:vit{version}")).json()
        config = (await client.get(f"/v2/models/fake:vit{version}/config")).json()
        found = arrays(await client.post(INFER_PATH, json={"inputs": [in_json("images", encoded(IMAGES[:1]))]}))
    assert (model["name"], model["versions"], model["platform"]) == ("fake:vit", ["1"], "visiontower_torch")
    assert model["inputs"] == [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("images", "texts")]
    shapes = {output["name"]: output["shape"] for output in model["outputs"]}
    assert shapes == {"tokens": [-1, -1, 12], "pooled": [-1, 6], "text_vectors": [-1, 6]}
    for name, array in found.items():
        assert all(side in (-1, real) for side, real in zip(shapes[name], array.shape, strict=True))
    assert {output["datatype"] for output in model["outputs"]} == {"FP32"}
    assert [each["name"] for each in config["output"]] == list(shapes)
    assert {each["data_type"] for each in config["input"]} == {"TYPE_STRING"}


async def test_an_encoder_without_texts_has_no_input_for_them() -> None:
    async with serving(FakeEncoder(fake_spec(embed_dim=None, scoring=None, dense=False))) as client:
        model = (await client.get("/v2/models/fake:vit")).json()
        response = await client.post(INFER_PATH, json={"inputs": [in_json("texts", TEXTS)]})
    assert [each["name"] for each in model["inputs"]] == ["images"]
    assert [each["name"] for each in model["outputs"]] == ["tokens", "pooled"]
    assert "no text tower" in error_of(response)


@pytest.mark.parametrize("model", ["hf:openai/clip-vit@main", "openclip:ViT-B-32@/weights/x.pt", "fake:a/infer"])
@pytest.mark.parametrize("safe", ["", "/", "/:@"])
async def test_ids_are_found_however_they_are_written(model: str, safe: str) -> None:
    """tritonclient encodes all but the slash, others encode all, or nothing."""
    written = quote(model, safe=safe)
    async with serving(FakeEncoder(fake_spec("fake:other")), FakeEncoder(fake_spec(model))) as client:
        ready = await client.get(f"/v2/models/{written}/ready")
        about = await client.get(f"/v2/models/{written}/versions/1")
        answer = await client.post(f"/v2/models/{written}/infer", json={"inputs": [in_json("texts", TEXTS)]})
    assert ready.json() == {"name": model, "ready": True}
    assert about.json()["name"] == model
    assert answer.json()["model_name"] == model


async def test_the_index_has_all_models_and_their_states() -> None:
    broken = FakeEncoder(fake_spec("fake:b"))
    async with serving(FakeEncoder(fake_spec("fake:a")), broken) as client:
        well = (await client.post("/v2/repository/index")).json()
        assert [(each["name"], each["state"]) for each in well] == [("fake:a", "READY"), ("fake:b", "READY")]

        def fail(batch: int) -> None:
            raise RuntimeError

        broken.before = fail
        await client.post("/v2/models/fake:b/infer", json={"inputs": [in_json("images", encoded(IMAGES))]})
        everyone = (await client.post("/v2/repository/index")).json()
        ready = (await client.post("/v2/repository/index", json={"ready": True})).json()
        refused = await client.post("/v2/repository/index", json={"ready": "yes"})
    assert [(each["name"], each["state"]) for each in everyone] == [("fake:a", "READY"), ("fake:b", "UNAVAILABLE")]
    assert everyone[1]["reason"]
    assert [each["name"] for each in ready] == ["fake:a"]
    assert "'ready'" in error_of(refused)


# Inference


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("is_binary", [True, False])
async def test_all_outputs_are_those_of_embed_to_the_bit(dtype: str, is_binary: bool) -> None:
    parameters = {"dtype": dtype, "binary_data_output": is_binary}
    async with serving() as client:
        expected = await native(client, dtype=dtype)
        raw = await post_binary(
            client,
            {"id": "ours", "parameters": parameters},
            as_bytes("images", IMAGES),
            as_bytes("texts", [text.encode() for text in TEXTS]),
        )
        inputs = [in_json("texts", TEXTS), in_json("images", encoded(IMAGES))]
        plain = await client.post(INFER_PATH, json={"parameters": parameters, "inputs": inputs})
    assert_equal(arrays(raw), expected)
    assert_equal(arrays(plain), expected)
    head = json.loads(raw.content[: int(raw.headers.get(LENGTH, len(raw.content)))])
    assert (head["model_name"], head["model_version"], head["id"]) == ("fake:vit", "1", "ours")
    about = {output["name"]: output["parameters"] for output in head["outputs"]}
    assert about["tokens"]["grid_rows"] == about["tokens"]["grid_cols"] == 4
    assert about["tokens"]["prefix_tokens"] == 0


async def test_float16_is_the_cast_of_float32() -> None:
    request = {"inputs": [in_json("images", encoded(IMAGES))]}
    async with serving() as client:
        wide = arrays(await client.post(INFER_PATH, json=request))
        half = arrays(await client.post(INFER_PATH, json={**request, "parameters": {"dtype": "float16"}}))
    assert_equal(half, {name: array.astype(np.float16) for name, array in wide.items()})


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary"])
async def test_quantised_vectors_are_tensors_too(dtype: str) -> None:
    async with serving() as client:
        expected = await native(client, dtype=dtype)
        answer = await post_binary(
            client,
            {"parameters": {"dtype": dtype, "binary_data_output": True}},
            as_bytes("images", IMAGES),
            as_bytes("texts", [text.encode() for text in TEXTS]),
        )
    assert_equal(arrays(answer), expected)


@pytest.mark.parametrize(
    "parameters",
    [
        {"resolution": "48", "layer": -2, "normalize": True},
        {"resolution": 48, "layer": "-2", "normalize": "true"},
        {"resolution": "48x64", "prefix": True},
        {"project": "true", "prefix": "false"},
    ],
    ids=str,
)
async def test_parameters_are_the_options_of_embed_typed_or_as_text(parameters: dict[str, Any]) -> None:
    async with serving() as client:
        expected = await native(client, texts=[], **parameters)
        answer = await post_binary(
            client, {"parameters": {**parameters, "binary_data_output": True}}, as_bytes("images", IMAGES)
        )
    assert_equal(arrays(answer), expected)


async def test_outputs_are_given_in_the_order_and_form_that_each_asks_for() -> None:
    outputs = [
        {"name": "text_vectors", "parameters": {"binary_data": True}},
        {"name": "pooled"},
        {"name": "tokens", "parameters": {"binary_data": True}},
    ]
    inputs = as_bytes("images", IMAGES), as_bytes("texts", [text.encode() for text in TEXTS])
    async with serving() as client:
        expected = await native(client)
        answer = await post_binary(client, {"outputs": outputs}, *inputs)
        found = arrays(answer)
        head = json.loads(answer.content[: int(answer.headers[LENGTH])])
        pooled = arrays(await post_binary(client, {"outputs": [{"name": "pooled"}]}, *inputs))
    assert list(found) == ["text_vectors", "pooled", "tokens"]
    assert ["data" in output for output in head["outputs"]] == [False, True, False]
    assert_equal(found, expected)
    assert_equal(pooled, {"pooled": expected["pooled"]})


async def test_only_what_is_asked_for_is_computed() -> None:
    """Of the images nothing is asked: a broken one is not even looked at."""
    async with serving() as client:
        answer = await post_binary(
            client, {"outputs": [{"name": "text_vectors"}]}, as_bytes("images", [b"none"]), as_bytes("texts", [b"a"])
        )
    assert list(arrays(answer)) == ["text_vectors"]


@pytest.mark.parametrize("form", ["base64", "data URI", "column", "base64 as bytes", "data URI as bytes"])
async def test_images_may_be_text(form: str) -> None:
    texts = encoded(IMAGES)
    if form.startswith("data"):
        texts = [f"data:image/png;base64,{text}" for text in texts]
    async with serving() as client:
        expected = await native(client, texts=[])
        if form.endswith("as bytes"):
            answer = await post_binary(client, {}, as_bytes("images", [text.encode() for text in texts]))
        else:
            tensor = in_json("images", texts)
            if form == "column":
                tensor |= {"shape": [len(texts), 1], "data": [[text] for text in texts]}
            answer = await client.post(INFER_PATH, json={"inputs": [tensor]})
    assert_equal(arrays(answer), expected)


@pytest.mark.parametrize("is_binary", [True, False])
async def test_an_image_by_url_is_fetched_only_where_the_server_allows_it(is_binary: bool) -> None:
    url = "https://example.com/cat.png"
    async with serving() as client:
        if is_binary:
            refused = await post_binary(client, {}, as_bytes("images", [url.encode()]))
        else:
            refused = await client.post(INFER_PATH, json={"inputs": [in_json("images", [url])]})
    assert "images[0]" in error_of(refused)
    assert "URL is not fetched" in error_of(refused)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_request_s_header_length_is_of_the_json_before(encoding: str) -> None:
    about, raw = as_bytes("images", IMAGES)
    head = json.dumps({"inputs": [about]}).encode()
    packed = gzip.compress(head + raw) if encoding == "gzip" else zlib.compress(head + raw)
    async with serving() as client:
        expected = await native(client, texts=[])
        answer = await client.post(
            INFER_PATH, content=packed, headers={LENGTH: str(len(head)), "content-encoding": encoding}
        )
    assert_equal(arrays(answer), expected)


async def test_a_compressed_request_may_not_grow_past_the_limit() -> None:
    async with serving(max_body_bytes=1_000_000) as client:
        answer = await client.post(
            INFER_PATH, content=gzip.compress(bytes(5_000_000)), headers={LENGTH: "10", "content-encoding": "gzip"}
        )
    assert "over the limit" in error_of(answer, 413)


async def test_texts_that_were_cut_are_named() -> None:
    long = "x" * 50
    inputs = {"inputs": [in_json("texts", ["a", long, "b", long])]}
    async with serving() as client:
        cut = await client.post(INFER_PATH, json=inputs)
        whole = await client.post(INFER_PATH, json={**inputs, "parameters": {"truncate": False}})
    (output,) = cut.json()["outputs"]
    assert output["parameters"] == {"truncated": "1,3"}
    assert "text 1 has 50" in error_of(whole)


async def test_large_answers_are_whole_in_both_forms() -> None:
    """Over the number of values up to which an answer is made in one piece."""
    images = [noise(seed, (256, 256)) for seed in range(3)]
    parameters = {"resolution": 512}
    async with serving() as client:
        plain = await post_binary(client, {"parameters": parameters}, as_bytes("images", images))
        raw = await post_binary(
            client, {"parameters": {**parameters, "binary_data_output": True}}, as_bytes("images", images)
        )
    assert arrays(plain)["tokens"].shape == (3, 4096, 12)
    assert_equal(arrays(plain), arrays(raw))


async def test_a_large_answer_is_refused_in_json_alone() -> None:
    parameters = {"resolution": 512}
    async with serving(max_json_values=10_000) as client:
        plain = await post_binary(client, {"parameters": parameters}, as_bytes("images", IMAGES))
        raw = await post_binary(
            client, {"parameters": {**parameters, "binary_data_output": True}}, as_bytes("images", IMAGES)
        )
    assert "binary_data" in error_of(plain, 413)
    assert raw.status_code == 200


async def test_many_at_once_get_their_own_vectors() -> None:
    images = [noise(seed) for seed in range(12)]
    async with serving() as client:
        answers = await asyncio.gather(
            *(post_binary(client, {"id": str(seed)}, as_bytes("images", [image])) for seed, image in enumerate(images))
        )
        together = arrays(await post_binary(client, {}, as_bytes("images", images)))
    for seed, answer in enumerate(answers):
        assert answer.json()["id"] == str(seed)
        np.testing.assert_array_equal(arrays(answer)["pooled"][0], together["pooled"][seed])


# Bad input


@dataclass(frozen=True)
class Bad:
    """A JSON request that is refused, and words of its error."""

    name: str
    says: str
    fields: dict[str, Any]
    status: int = 400
    settings: dict[str, Any] = field(default_factory=dict)


IMAGE = in_json("images", encoded(IMAGES[:1]))
TEXT = in_json("texts", TEXTS)
SHAPES: list[Any] = [[], [1, 2], [1, 1, 1], [-1], [1.0], ["1"], [True], "1", {}, [2**70], [1, -1], [1] * 1000]
BAD = [
    Bad("no inputs", "no input", {}),
    Bad("empty inputs", "no input", {"inputs": []}),
    Bad("inputs that are an object", "must be a list", {"inputs": {"name": "images"}}),
    Bad("an input that is a text", "Entry 0 is a string", {"inputs": ["images"]}),
    Bad("an unknown input", "There is: images, texts", {"inputs": [{**IMAGE, "name": "input"}]}),
    Bad("an input without a name", "There is: images, texts", {"inputs": [{"shape": [1]}]}),
    Bad("an input whose name is long", "There is: images", {"inputs": [{**IMAGE, "name": "x" * 100_000}]}),
    Bad("an input whose name is a list", "There is: images", {"inputs": [{**IMAGE, "name": [["x"]]}]}),
    Bad("an input twice", "twice", {"inputs": [IMAGE, IMAGE]}),
    Bad("no images", "'images' is empty", {"inputs": [in_json("images", [])]}),
    Bad("no texts beside images", "'texts' is empty", {"inputs": [IMAGE, in_json("texts", [])]}),
    Bad("another datatype", "send BYTES", {"inputs": [{**IMAGE, "datatype": "FP32"}]}),
    Bad("no datatype", "send BYTES", {"inputs": [{"name": "images", "shape": [1], "data": ["x"]}]}),
    Bad("no shape", "send [n]", {"inputs": [{"name": "images", "datatype": "BYTES", "data": ["x"]}]}),
    *(Bad(f"the shape {shape}", "send [n]", {"inputs": [{**IMAGE, "shape": shape}]}) for shape in SHAPES),
    Bad("a shape that is too large", "has 1 elements", {"inputs": [{**IMAGE, "shape": [5]}]}),
    Bad("a shape that is over the limit", "the limit is 64", {"inputs": [{**IMAGE, "shape": [2**62]}]}, 413),
    Bad("too many images", "the limit is 2", {"inputs": [in_json("images", ["a"] * 3)]}, 413, {"max_images": 2}),
    Bad("too many texts", "the limit is 2", {"inputs": [in_json("texts", ["a"] * 3)]}, 413, {"max_texts": 2}),
    Bad("a long text", "over 4096", {"inputs": [in_json("texts", ["a" * 5000])]}),
    Bad("data that is a text", "must be a list", {"inputs": [{**IMAGE, "data": "abc"}]}),
    Bad("no data", "must be a list", {"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1]}]}),
    Bad("data of numbers", "Element 0", {"inputs": [{**IMAGE, "data": [1]}]}),
    Bad("data that is nested", "Element 0", {"inputs": [{**IMAGE, "data": [[["x"]]]}]}),
    Bad("data and bytes", "both", {"inputs": [{**IMAGE, "parameters": {"binary_data_size": 0}}]}),
    Bad(
        "a size of bytes that are not there",
        "0 bytes are left",
        {"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}}]},
    ),
    Bad("an image that is no base64", "images[0]", {"inputs": [in_json("images", ["cat.jpg"])]}),
    Bad("an unknown output", "tokens, pooled", {"inputs": [IMAGE], "outputs": [{"name": "logits"}]}),
    Bad("an output twice", "twice", {"inputs": [IMAGE], "outputs": [{"name": "pooled"}] * 2}),
    Bad("an output of texts that are not there", "'texts'", {"inputs": [IMAGE], "outputs": [{"name": "text_vectors"}]}),
    Bad("an output of images that are not there", "'images'", {"inputs": [TEXT], "outputs": [{"name": "tokens"}]}),
    Bad(
        "classes",
        "no classes",
        {"inputs": [IMAGE], "outputs": [{"name": "pooled", "parameters": {"classification": 3}}]},
    ),
    Bad(
        "binary_data that is a text",
        "true or false",
        {"inputs": [IMAGE], "outputs": [{"name": "pooled", "parameters": {"binary_data": "yes"}}]},
    ),
    Bad("binary_data_output that is a number", "true or", {"inputs": [IMAGE], "parameters": {"binary_data_output": 1}}),
    Bad("parameters that are a list", "must be an object", {"inputs": [IMAGE], "parameters": []}),
    Bad("an unknown parameter", "'normalize'?", {"inputs": [IMAGE], "parameters": {"normalise": True}}),
    Bad("the model as a parameter", "'model'", {"inputs": [IMAGE], "parameters": {"model": "fake:vit"}}),
    Bad("an output as a parameter", "'output'", {"inputs": [IMAGE], "parameters": {"output": "both"}}),
    Bad("a parameter that is a list", "'layer'", {"inputs": [IMAGE], "parameters": {"layer": [1]}}),
    Bad("a long parameter", "characters", {"inputs": [IMAGE], "parameters": {"resolution": "9" * 100_000}}),
    Bad("a layer of many digits", "'layer'", {"inputs": [IMAGE], "parameters": {"layer": "9" * 900}}),
    Bad("a layer that is not there", "layer", {"inputs": [IMAGE], "parameters": {"layer": 99}}),
    Bad("a resolution that cannot be", "32x32 or 40x40", {"inputs": [IMAGE], "parameters": {"resolution": 33}}),
    *(
        Bad(f"{name} for texts alone", "is about images", {"inputs": [TEXT], "parameters": {name: value}})
        for name, value in (("layer", 1), ("resolution", 64), ("prefix", True), ("project", True), ("tiles", True))
    ),
    Bad(
        "tiles of several images",
        "alike",
        {"inputs": [in_json("images", encoded(IMAGES[:2]))], "parameters": {"project": True, "tiles": True}},
    ),
    Bad("a dtype that is none", "'dtype'", {"inputs": [IMAGE], "parameters": {"dtype": "FP16"}}),
    Bad("a timeout below 0", "'timeout'", {"inputs": [IMAGE], "parameters": {"timeout": -1}}),
    Bad("an id that is a number", "'id'", {"inputs": [IMAGE], "id": 7}),
    Bad("a long id", "'id'", {"inputs": [IMAGE], "id": "x" * 2000}),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
async def test_what_does_not_fit_is_refused_and_said(bad: Bad) -> None:
    async with serving(**bad.settings) as client:
        refused = await client.post(INFER_PATH, json=bad.fields)
        after = await client.post(INFER_PATH, json={"inputs": [IMAGE]})
    assert bad.says in error_of(refused, bad.status)
    assert after.status_code == 200


GOOD_INPUT, GOOD_RAW = as_bytes("images", IMAGES[:2])


@pytest.mark.parametrize(
    ("shape", "size", "raw", "says"),
    [
        ([2], len(GOOD_RAW), GOOD_RAW[:-1], "bytes are left of the body"),
        ([2], len(GOOD_RAW) - 1, GOOD_RAW[:-1], "ends within its element 1"),
        ([2], len(GOOD_RAW), GOOD_RAW + b"x", "1 bytes behind its last tensor"),
        ([2], len(GOOD_RAW) + 1, GOOD_RAW + b"x", "1 bytes behind its 2 elements"),
        ([1], len(GOOD_RAW), GOOD_RAW, "behind its 1 elements"),
        ([3], len(GOOD_RAW), GOOD_RAW, "ends within its element 2"),
        ([64], 12, bytes(12), "too few for 64 elements"),
        ([1], 4, b"\xff\xff\xff\xff", "ends within its element 0"),
        ([1], 2, b"\x01\x00", "too few for 1 elements"),
        ([2], 9, b"\x02\x00\x00\x00ab\x01\x00\x00", "ends within its element 1"),
        ([1], -4, GOOD_RAW, "binary_data_size -4"),
        ([1], "8", GOOD_RAW, "binary_data_size '8'"),
        ([1], True, GOOD_RAW, "binary_data_size True"),
        ([1], 2**62, GOOD_RAW, "binary_data_size"),
        ([1], 1e300, GOOD_RAW, "binary_data_size"),
    ],
)
async def test_bytes_that_do_not_fit_are_refused(shape: list[int], size: Any, raw: bytes, says: str) -> None:
    about = {"name": "images", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": size}}
    async with serving() as client:
        assert says in error_of(await post_binary(client, {}, (about, raw)))


@pytest.mark.parametrize(
    ("length", "says"),
    [
        ("999999", "the body has"),
        ("9" * 5000, "the body has"),
        ("-1", "no length"),
        ("x" * 5000, "no length"),
        ("", "no length"),
        ("1.5", "no length"),
        ("3", "not valid JSON"),
        ("0", "not valid JSON"),
    ],
)
async def test_a_header_length_that_cannot_be_is_refused(length: str, says: str) -> None:
    body = json.dumps({"inputs": [IMAGE]}).encode()
    async with serving() as client:
        assert says in error_of(await client.post(INFER_PATH, content=body, headers={LENGTH: length}))


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"\xff", b'{"inputs": [', b"[" * 5000, b'{"a":' * 2000])
async def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    async with serving() as client:
        error_of(await client.post(INFER_PATH, content=body))
        error_of(await client.post(INFER_PATH, content=body, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("content_type", ["", "application/json", "application/octet-stream"])
async def test_the_json_has_its_own_limit_whatever_the_body_s_type(content_type: str) -> None:
    body = json.dumps({"inputs": [in_json("texts", ["a" * 3000])]}).encode()
    headers = {"content-type": content_type} if content_type else {}
    async with serving(max_json_bytes=2000) as client:
        whole = await client.post(INFER_PATH, content=body, headers=headers)
        announced = await client.post(INFER_PATH, content=body, headers={**headers, LENGTH: str(len(body))})
        binary = await post_binary(client, {}, as_bytes("images", [noise(1, (64, 64))]))
    assert "over the limit of 2,000 bytes" in error_of(whole, 413)
    assert "over the limit of 2,000 bytes" in error_of(announced, 413)
    assert binary.status_code == 200


@pytest.mark.parametrize(
    ("image", "status", "says"),
    [
        (b"no image", 400, "images[1]"),
        (b"", 400, "images[1]: The image is empty"),
        (noise(1, (99, 99)), 413, "images[1]: The image has 9,801"),
    ],
)
async def test_one_bad_image_refuses_the_request_and_is_named(image: bytes, status: int, says: str) -> None:
    async with serving(max_image_pixels=9000) as client:
        refused = await post_binary(client, {}, as_bytes("images", [IMAGES[0], image, IMAGES[0]]))
    assert says in error_of(refused, status)


@pytest.mark.parametrize("beginning", [b"data:image/png;base64,", b"http://a/", b"iVBORw0KGgo" + b"A" * 60])
async def test_an_image_as_text_has_the_limit_of_json_and_may_not_be_any_bytes(beginning: bytes) -> None:
    """Its own bytes may be as many as a body's."""
    async with serving(max_json_bytes=3000) as client:
        long = await post_binary(client, {}, as_bytes("images", [IMAGES[0], beginning + b"A" * 3000]))
        broken = await post_binary(client, {}, as_bytes("images", [IMAGES[0], beginning + b"\xff" * 1000]))
        raw = await post_binary(client, {}, as_bytes("images", [IMAGES[0], IMAGES[0] + bytes(3000)]))
    assert "images[1]: An image as text has up to 3,000 bytes" in error_of(long, 400)
    assert "images[1]: " in error_of(broken, 400)
    assert raw.status_code == 200


async def test_the_json_of_an_index_has_the_limit_too() -> None:
    async with serving(max_json_bytes=2000) as client:
        refused = await client.post("/v2/repository/index", content=b'{"x": "%b"}' % (b"a" * 2000))
    assert "over the limit of 2,000 bytes" in error_of(refused, 413)


async def test_json_is_dearer_than_bytes_whatever_the_body_s_type() -> None:
    """A body of JSON needs several times its bytes while it is taken apart."""
    image = IMAGES[0] + bytes(200_000)
    async with serving(memory_budget=1_000_000) as client:
        body = json.dumps({"inputs": [in_json("images", encoded([image]))]}).encode()
        assert "The body" in error_of(await client.post(INFER_PATH, content=body), 413)
        assert (await post_binary(client, {}, as_bytes("images", [image]))).status_code == 200


async def test_a_text_that_is_not_utf_8_is_named() -> None:
    async with serving() as client:
        refused = await post_binary(client, {}, as_bytes("texts", [b"a", b"\xff"]))
    assert "texts[1]" in error_of(refused)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/fake:none", 404),
        ("GET", "/v2/models/fake:none/ready", 404),
        ("GET", "/v2/models/fake:vit/versions/2", 404),
        ("GET", "/v2/models/fake:vit/versions/2/ready", 404),
        ("POST", "/v2/models/fake:none/infer", 404),
        ("POST", "/v2/models/fake:vit/versions/2/infer", 404),
        ("GET", f"/v2/models/{'x' * 5000}", 404),
        ("GET", "/v2/models/%FF%00", 404),
        ("GET", "/v2/models/", 404),
        ("GET", "/v2/nothing", 404),
        ("POST", "/v2/health/live", 405),
        ("PUT", INFER_PATH, 405),
        ("GET", "/v2/repository/index", 405),
        ("POST", "/v2", 405),
    ],
)
async def test_every_refusal_under_v2_is_the_protocol_s(method: str, path: str, status: int) -> None:
    async with serving() as client:
        error_of(await client.request(method, path, json={"inputs": [IMAGE]}), status)
        assert (await client.get("/v2x")).headers["content-type"] == "application/problem+json"


async def test_overload_and_deadlines_say_when_to_come_back() -> None:
    gate = Gate()
    async with serving(FakeEncoder(before=gate), queue_images=1, max_images=1) as client:
        gate.close()
        timed = {"parameters": {"timeout": 200_000}, "inputs": [IMAGE]}
        held = asyncio.create_task(client.post(INFER_PATH, json=timed))
        await gate.someone_inside()
        refused = await client.post(INFER_PATH, json={"inputs": [IMAGE]})
        late = await held
        gate.is_open.set()
    error_of(refused, 503)
    assert int(refused.headers["retry-after"]) >= 1
    assert "in time" in error_of(late, 504)


async def test_requests_are_counted_by_protocol_and_template() -> None:
    async with serving() as client:
        await client.post(INFER_PATH, json={"inputs": [IMAGE]})
        await client.get("/v2/nothing")
        metrics = (await client.get("/metrics")).text
    assert (
        'visiontower_requests_total{protocol="open-inference",route="/v2/models/{model:path}/infer",status="200"} 1.0'
        in metrics
    )
    assert 'protocol="open-inference",route="other",status="404"' in metrics


async def test_it_can_be_switched_off() -> None:
    async with serving(protocols=("native",)) as client:
        assert (await client.get("/v2/health/live")).status_code == 404


def test_every_option_of_an_embedding_is_a_parameter_in_the_document() -> None:
    body = INFER["openapi_extra"]["requestBody"]["content"]["application/json"]["schema"]
    options = set(EmbedRequest.__dataclass_fields__) - {
        "sources",
        "texts",
        "model",
        "output",
        "is_set",
        "width",
        "timeout_s",
    }
    assert options <= set(body["properties"]["parameters"]["properties"])
