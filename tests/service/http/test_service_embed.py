"""POST /embed: ways in, options, formats out, and partial failure."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import httpx
import ml_dtypes
import numpy as np
import pytest
import safetensors
from numpy.typing import NDArray

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.values import Encoded, ImageSize, Outputs, TokenKind
from encoders.images.decode import decode
from tests.support.serving import PNG, assert_problem, image_bytes, noise, serving

pytestmark = pytest.mark.anyio
PICTURE = noise(1)
OTHER = noise(2)


def expected(picture: bytes = PICTURE, *, size: int = 32, **outputs: Any) -> Encoded:
    """What the encoder alone gives for one image."""
    encoder = FakeEncoder()
    pixels = encoder.preprocess(decode(picture), ImageSize(size, size))
    return encoder.encode(pixels[None], Outputs(**(outputs or {"tokens": TokenKind.HIDDEN}))).row(0)


def tokens(response: httpx.Response, index: int = 0) -> NDArray[np.float32]:
    assert response.status_code in (200, 207), response.text
    tensor = response.json()["data"][index]["tokens"]
    array = np.array(tensor["data"], dtype=np.float32)
    assert list(array.shape) == tensor["shape"]
    return array


unpack: Callable[[bytes], list[tuple[str, Any]]] = safetensors.deserialize


def array_of(view: Any) -> NDArray[Any]:
    """safetensors.numpy knows no bfloat16, but the format does."""
    kind = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}[view["dtype"]]
    return np.frombuffer(view["data"], dtype=kind).reshape(view["shape"])


def as_json(*pictures: bytes, **options: Any) -> dict[str, Any]:
    return {"images": [base64.b64encode(picture).decode() for picture in pictures], **options}


async def test_a_raw_body_gives_patch_tokens_without_prefix() -> None:
    async with serving() as client:
        response = await client.post("/embed", content=PICTURE, headers=PNG)
    row = expected()
    assert row.tokens is not None
    np.testing.assert_allclose(tokens(response), row.tokens[1:], rtol=1e-6)
    entry = response.json()["data"][0]
    assert (entry["index"], entry["grid"], entry["prefix_tokens"]) == (0, [4, 4], 0)
    assert response.json()["usage"] == {"images": 1, "tokens": 16}
    assert set(response.json()["timing_ms"]) == {"decode", "preprocess", "queue", "forward", "total"}
    assert "pooled" not in entry


async def test_all_ways_in_give_the_same_answer() -> None:
    encoded = base64.b64encode(PICTURE).decode()
    async with serving() as client:
        responses = [
            await client.post("/embed", content=PICTURE, headers=PNG),
            await client.post("/embed", content=PICTURE, headers={"content-type": "application/octet-stream"}),
            await client.post("/embed", files=[("image", ("x.png", PICTURE, "image/png"))]),
            await client.post("/embed", files={"image": PICTURE}),
            await client.post("/embed", json={"images": [encoded]}),
            await client.post("/embed", json={"images": [f"data:image/png;base64,{encoded}"]}),
        ]
    for response in responses:
        np.testing.assert_array_equal(tokens(response), tokens(responses[0]))


@pytest.mark.parametrize("place", ["query", "form", "json"])
async def test_options_may_stand_in_query_form_or_json(place: str) -> None:
    options: dict[str, Any] = {"layer": -2, "prefix": True, "resolution": "64", "project": True}
    texts = {name: str(value).lower() for name, value in options.items()}
    async with serving() as client:
        if place == "query":
            response = await client.post("/embed", params=texts, content=PICTURE, headers=PNG)
        elif place == "form":
            response = await client.post("/embed", data=texts, files={"image": PICTURE})
        else:
            response = await client.post("/embed", json=as_json(PICTURE, **options))
    row = expected(size=64, tokens=TokenKind.PROJECTED, layer=2)
    assert row.tokens is not None
    np.testing.assert_allclose(tokens(response), row.tokens, rtol=1e-6)
    assert response.json()["data"][0]["prefix_tokens"] == 1


async def test_a_resolution_may_be_height_x_width() -> None:
    async with serving() as client:
        response = await client.post("/embed?resolution=16x40", content=PICTURE, headers=PNG)
    assert response.json()["data"][0]["grid"] == [2, 5]


async def test_output_both_gives_both() -> None:
    async with serving() as client:
        response = await client.post("/embed?output=both", content=PICTURE, headers=PNG)
    row = expected(pooled=True)
    assert row.pooled is not None
    np.testing.assert_allclose(response.json()["data"][0]["pooled"]["data"], row.pooled, rtol=1e-6)
    assert tokens(response).shape == (16, 12)


async def test_normalize_gives_vectors_of_length_one() -> None:
    async with serving() as client:
        response = await client.post("/embed?output=both&normalize=true", content=PICTURE, headers=PNG)
    np.testing.assert_allclose(np.linalg.norm(tokens(response), axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(response.json()["data"][0]["pooled"]["data"]), 1, rtol=1e-6)


async def test_the_second_model_answers_when_named() -> None:
    async with serving(FakeEncoder(), FakeEncoder(fake_spec("fake:other", hidden_size=20))) as client:
        response = await client.post("/embed?model=fake:other", content=PICTURE, headers=PNG)
    assert response.json()["model"] == "fake:other"
    assert tokens(response).shape == (16, 20)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
async def test_base64_is_the_little_endian_bytes(dtype: str) -> None:
    async with serving() as client:
        body = as_json(PICTURE, dtype=dtype, encoding_format="base64")
        tensor = (await client.post("/embed", json=body)).json()["data"][0]["tokens"]
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<")
    array = np.frombuffer(base64.b64decode(tensor["data"]), dtype=kind).reshape(tensor["shape"])
    row = expected()
    assert row.tokens is not None
    np.testing.assert_array_equal(array, row.tokens[1:].astype(kind))


async def test_bfloat16_numbers_in_json_are_the_rounded_values() -> None:
    async with serving() as client:
        response = await client.post("/embed?dtype=bfloat16", content=PICTURE, headers=PNG)
    row = expected()
    assert row.tokens is not None
    np.testing.assert_array_equal(tokens(response), row.tokens[1:].astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
async def test_safetensors_stacks_the_images(dtype: str) -> None:
    async with serving() as client:
        response = await client.post(
            f"/embed?output=both&dtype={dtype}",
            json=as_json(PICTURE, OTHER),
            headers={"accept": "application/vnd.safetensors"},
        )
    assert response.headers["content-type"] == "application/vnd.safetensors"
    loaded = {name: array_of(view) for name, view in unpack(response.content)}
    assert {name: array.shape for name, array in loaded.items()} == {"tokens": (2, 16, 12), "pooled": (2, 6)}
    row = expected(OTHER)
    assert row.tokens is not None
    np.testing.assert_array_equal(loaded["tokens"][1], row.tokens[1:].astype(loaded["tokens"].dtype))
    assert loaded["tokens"].dtype.name == dtype


async def test_npy_is_one_array() -> None:
    async with serving() as client:
        response = await client.post("/embed", json=as_json(PICTURE, OTHER), headers={"accept": "application/x-npy"})
    array = np.load(io.BytesIO(response.content))
    row = expected(OTHER)
    assert row.tokens is not None
    np.testing.assert_array_equal(array[1], row.tokens[1:])
    assert response.headers["x-grid"] == "4,4"


async def test_raw_bytes_have_their_shape_and_dtype_in_headers() -> None:
    async with serving() as client:
        response = await client.post("/embed?format=raw&output=pooled&dtype=float16", content=PICTURE, headers=PNG)
    shape = [int(side) for side in response.headers["x-tensor-shape"].split(",")]
    array = np.frombuffer(response.content, dtype=response.headers["x-tensor-dtype"]).reshape(shape)
    row = expected(pooled=True)
    assert row.pooled is not None
    np.testing.assert_array_equal(array, row.pooled[None].astype(np.float16))
    assert response.headers["x-tensor-name"] == "pooled"


@pytest.mark.parametrize("query", ["format=npy&output=both", "format=raw&output=both", "format=npy&dtype=bfloat16"])
async def test_what_a_format_cannot_hold_is_said(query: str) -> None:
    async with serving() as client:
        assert_problem(await client.post(f"/embed?{query}", content=PICTURE, headers=PNG), 422, "invalid-option")


async def test_a_format_nobody_writes_is_not_acceptable() -> None:
    async with serving() as client:
        response = await client.post("/embed", content=PICTURE, headers={**PNG, "accept": "text/csv"})
    assert "application/vnd.safetensors" in assert_problem(response, 406, "not-acceptable")["offered"]


async def test_a_bad_image_among_good_ones_is_a_problem_at_its_index() -> None:
    async with serving() as client:
        response = await client.post(
            "/embed", json={"images": [*as_json(PICTURE)["images"], "%%", *as_json(OTHER)["images"]]}
        )
    assert response.status_code == 207
    assert response.json()["data"][1]["error"]["type"] == "/problems/invalid-base64"
    assert response.json()["data"][1]["index"] == 1
    row = expected(OTHER)
    assert row.tokens is not None
    np.testing.assert_allclose(tokens(response, 2), row.tokens[1:], rtol=1e-6)
    assert response.json()["usage"]["images"] == 2


async def test_binary_formats_say_which_images_their_rows_are() -> None:
    body = as_json(b"", PICTURE, b"no image", OTHER)
    async with serving() as client:
        packed = await client.post("/embed?format=safetensors", json=body)
        raw = await client.post("/embed?format=raw", json=body)
    assert (packed.status_code, raw.status_code) == (207, 207)
    length = int.from_bytes(packed.content[:8], "little")
    metadata = json.loads(packed.content[8 : 8 + length])["__metadata__"]
    assert metadata["index"] == raw.headers["x-index"] == "1,3"
    assert [error["index"] for error in json.loads(metadata["errors"])] == [0, 2]
    assert "/problems/empty-image" in raw.headers["x-errors"]


async def test_if_no_image_of_several_can_be_answered_the_answer_is_json() -> None:
    async with serving() as client:
        response = await client.post("/embed?format=safetensors", json=as_json(b"", b""))
    assert response.status_code == 207
    assert [entry["error"]["type"] for entry in response.json()["data"]] == ["/problems/empty-image"] * 2


async def test_a_large_answer_is_written_off_the_loop_and_right() -> None:
    async with serving() as client:
        response = await client.post("/embed?resolution=512", content=PICTURE, headers=PNG)
    row = expected(size=512)
    assert row.tokens is not None
    np.testing.assert_allclose(tokens(response), row.tokens[1:], rtol=1e-6)


async def test_numbers_too_large_for_float16_are_a_problem_not_infinity() -> None:
    large = FakeEncoder(after=lambda e: Encoded(e.grid, pooled=np.full((len(e), 6), 1e6, np.float32)))
    async with serving(large) as client:
        response = await client.post("/embed?output=pooled&dtype=float16", content=image_bytes(), headers=PNG)
    assert_problem(response, 422, "numbers-do-not-fit")


@pytest.mark.parametrize("format", ["npy", "raw", "safetensors"])
async def test_a_model_s_id_may_be_of_any_script(format: str) -> None:
    """Headers hold ASCII: other characters are percent-encoded there."""
    model = "fake:塔/größe 100%"
    async with serving(FakeEncoder(fake_spec(model))) as client:
        response = await client.post(f"/embed?format={format}&output=pooled", content=PICTURE, headers=PNG)
    assert response.status_code == 200, response.text
    if format == "safetensors":
        length = int.from_bytes(response.content[:8], "little")
        assert json.loads(response.content[8 : 8 + length])["__metadata__"]["model"] == model
    else:
        assert unquote(response.headers["x-model"]) == model
