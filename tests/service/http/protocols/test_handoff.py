"""format=vllm of /embed: tokens as content parts that a vLLM server takes, or an error that says what to do."""

import asyncio
import base64
import io
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load as read_safetensors
from torch import Tensor

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.adapters.hf.vlms import VLMS
from tests.support.serving import PNG, Gate, app_of, assert_problem, client_of, noise, serving

pytestmark = pytest.mark.anyio
LLAVA = fake_spec(language_model="llava")
QWEN = fake_spec("fake:qwen", language_model="qwen2_vl")
FAMILIES = {*VLMS, "llava", "llava_next", "llava_onevision", "pixtral", "vipllava"}
"""All that hf: serves."""
TAKEN = {"blip-2", "internvl", "llava", "llava_next", "llava_onevision", "paligemma", "qwen2_5_vl", "qwen2_vl"}
PICTURE = noise(1)


def loaded(file: str) -> Tensor:
    """As vLLM reads either kind of file."""
    content = base64.b64decode(file, validate=True)
    if content.startswith(b"\x93NUMPY"):
        return torch.from_numpy(np.load(io.BytesIO(content)))
    tensor: Tensor = torch.load(io.BytesIO(content), weights_only=True)
    return tensor


async def embed(client: httpx.AsyncClient, query: str, picture: bytes = PICTURE) -> httpx.Response:
    return await client.post(f"/embed?{query}", content=picture, headers=PNG)


@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        ("vllm", "float32"),
        ("vllm", "float16"),
        ("vllm", "bfloat16"),
        ("vllm-npy", "float32"),
        ("vllm-npy", "float16"),
    ],
)
async def test_a_part_has_the_projected_tokens_to_the_bit(format: str, dtype: str) -> None:
    async with serving(FakeEncoder(LLAVA)) as client:
        answer = await embed(client, f"format={format}&dtype={dtype}")
        plain = await embed(client, f"format=safetensors&project=true&prefix=true&dtype={dtype}")
    expected = read_safetensors(plain.content)["tokens"][0]
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["usage"] == {"images": 1, "tokens": 17}
    (entry,) = body["data"]
    assert entry["tokens"] == {"shape": [17, 6], "dtype": dtype}
    assert (entry["index"], entry["grid"], entry["prefix_tokens"]) == (0, [4, 4], 1)
    assert entry["part"].keys() == {"type", "image_embeds"}
    assert entry["part"]["type"] == "image_embeds"
    tokens = loaded(entry["part"]["image_embeds"])
    assert tokens.dtype == getattr(torch, dtype)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("format", ["vllm", "vllm-npy"])
async def test_a_family_that_places_tokens_by_their_grid_is_told_it(format: str) -> None:
    async with serving(FakeEncoder(QWEN)) as client:
        answer = await embed(client, f"format={format}&resolution=32x64")
    embeds = answer.json()["data"][0]["part"]["image_embeds"]
    assert embeds.keys() == {"image_embeds", "image_grid_thw"}
    assert loaded(embeds["image_embeds"]).shape == (1 + 4 * 8, 6)
    assert loaded(embeds["image_grid_thw"]).tolist() == [1, 4, 8]
    assert loaded(embeds["image_grid_thw"]).dtype == torch.int64


async def test_tokens_of_a_large_answer_are_whole() -> None:
    spec = fake_spec(language_model="llava", projected_size=96)
    async with serving(FakeEncoder(spec)) as client:
        answer = await embed(client, "format=vllm&resolution=512")
        plain = await embed(client, "format=safetensors&resolution=512&project=true&prefix=true")
    tokens = loaded(answer.json()["data"][0]["part"]["image_embeds"])
    assert tokens.shape == (4097, 96)
    assert torch.equal(tokens, read_safetensors(plain.content)["tokens"][0])


async def test_tiles_are_one_part_of_all_tokens() -> None:
    spec = fake_spec(language_model="llava_next", most_views=3, most_joined=48)
    async with serving(FakeEncoder(spec)) as client:
        answer = await embed(client, "format=vllm&tiles=true", noise(1, (90, 30)))
        plain = await embed(client, "format=safetensors&project=true&tiles=true", noise(1, (90, 30)))
    tokens = loaded(answer.json()["data"][0]["part"]["image_embeds"])
    assert torch.equal(tokens, read_safetensors(plain.content)["tokens"][0])
    assert tokens.shape == (48, 6)


async def test_a_model_that_cuts_images_is_told_whether_to() -> None:
    """Both can be read, and one is not what is read from pixels: neither is taken for granted."""
    spec = fake_spec(language_model="llava_next", most_views=3, most_joined=48)
    async with serving(FakeEncoder(spec)) as client:
        problem = assert_problem(await embed(client, "format=vllm"), 422, "invalid-option")
        whole = await embed(client, "format=vllm&tiles=false")
    assert problem["option"] == "tiles"
    assert "tiles=true" in problem["detail"]
    assert whole.json()["data"][0]["tokens"]["shape"] == [17, 6]


async def test_a_bad_image_is_an_error_at_its_index_and_the_others_are_their_own() -> None:
    async with serving(FakeEncoder(LLAVA)) as client:
        files = [("image", noise(1)), ("image", b"no image"), ("image", noise(2))]
        answer = await client.post("/embed?format=vllm", files=files)
        alone = await embed(client, "format=vllm", noise(2))
    assert answer.status_code == 207
    first, bad, last = answer.json()["data"]
    assert (bad["index"], bad["error"]["type"]) == (1, "/problems/not-an-image")
    assert "part" not in bad
    assert torch.equal(loaded(last["part"]["image_embeds"]), loaded(alone.json()["data"][0]["part"]["image_embeds"]))
    assert not torch.equal(loaded(last["part"]["image_embeds"]), loaded(first["part"]["image_embeds"]))


async def test_a_bad_image_by_itself_is_the_answer() -> None:
    async with serving(FakeEncoder(LLAVA)) as client:
        assert_problem(await embed(client, "format=vllm", b""), 422, "empty-image")
        assert_problem(await embed(client, "format=vllm&model=none"), 404, "unknown-model")


@pytest.mark.parametrize("family", sorted(FAMILIES))
async def test_every_family_that_is_served_is_known(family: str) -> None:
    encoder = FakeEncoder(fake_spec(language_model=family))
    async with serving(encoder) as client:
        ran = len(encoder.batches)
        answer = await embed(client, "format=vllm")
        if family in TAKEN:
            assert answer.status_code == 200
            return
        detail = assert_problem(answer, 422, "output-not-offered")["detail"]
        assert len(encoder.batches) == ran  # it is refused before anything runs
    assert f"for a {family} model" in detail
    assert "not known" not in detail
    assert "send vLLM the image itself" in detail or "format=safetensors" in detail


async def test_an_encoder_without_a_language_model_says_so() -> None:
    async with serving() as client:
        detail = assert_problem(await embed(client, "format=vllm"), 422, "output-not-offered")["detail"]
    assert "no language model reads its tokens" in detail


@pytest.mark.parametrize(
    ("query", "option"),
    [
        ("project=false", "project"),
        ("prefix=false", "prefix"),
        ("output=pooled", "output"),
        ("output=both", "output"),
        ("layer=-2", "layer"),
        ("normalize=true", "normalize"),
        ("encoding_format=float", "encoding_format"),
        ("dtype=int8", "dtype"),
        ("text=a", "texts"),
    ],
)
async def test_tokens_that_no_language_model_reads_are_refused_by_the_option(query: str, option: str) -> None:
    async with serving(FakeEncoder(LLAVA)) as client:
        problem = assert_problem(await embed(client, f"format=vllm&{query}"), 422, "invalid-option")
    assert problem["option"] == option
    assert "format=vllm" in problem["detail"]


async def test_options_that_say_what_is_given_anyway_are_taken() -> None:
    query = "format=vllm&project=true&prefix=true&output=tokens&normalize=false&encoding_format=base64"
    async with serving(FakeEncoder(LLAVA)) as client:
        assert (await embed(client, query)).status_code == 200


async def test_npy_has_no_bfloat16() -> None:
    async with serving(FakeEncoder(LLAVA)) as client:
        problem = assert_problem(await embed(client, "format=vllm-npy&dtype=bfloat16"), 422, "invalid-option")
    assert problem["option"] == "dtype"


async def test_it_is_asked_for_by_name_and_of_embed_alone() -> None:
    async with serving(FakeEncoder(LLAVA)) as client:
        by_accept = await client.post("/embed", content=PICTURE, headers={**PNG, "accept": "vllm"})
        assert_problem(by_accept, 406, "not-acceptable")
        form: dict[str, Any] = {"data": {"text": "a"}, "files": [("image", PICTURE)]}
        assert_problem(await client.post("/similarity?format=vllm", **form), 406, "not-acceptable")
        assert_problem(await client.post("/embed?format=vllm", json={"texts": ["a"]}), 422, "invalid-option")


async def test_what_an_answer_takes_is_held_before_the_forward_and_given_back() -> None:
    gate = Gate()
    app = app_of(FakeEncoder(LLAVA, before=gate))
    async with client_of(app) as client:
        gate.close()
        request = asyncio.create_task(embed(client, "format=vllm&resolution=512"))
        await gate.someone_inside()
        assert app.state.engine.account.held["answer"] >= 4097 * 6 * (4 + 4 + 5)
        gate.is_open.set()
        answer = await request
        assert answer.status_code == 200
        assert sum(app.state.engine.account.held.values()) == 0


async def test_models_says_whose_tokens_they_are() -> None:
    async with serving(FakeEncoder(QWEN), FakeEncoder()) as client:
        assert (await client.get("/models/fake:qwen")).json()["language_model"] == "qwen2_vl"
        assert (await client.get("/models/fake:vit")).json()["language_model"] is None
