"""The result cache as a caller and an operator see it."""

import base64
import json
import re
from typing import Any

import httpx
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from tests.support.serving import PNG, noise, serving

pytestmark = pytest.mark.anyio

MODEL = "openclip:ViT-B-32@openai"  # Immich has a name for it
IMAGE = base64.b64encode(noise(1)).decode()
URI = f"data:image/png;base64,{IMAGE}"
ENTRIES = json.dumps({"clip": {"visual": {"modelName": "ViT-B-32__openai"}}})
REQUESTS: dict[str, dict[str, Any]] = {
    "/embed": {"content": noise(1), "headers": PNG},
    "/similarity": {"json": {"images": [IMAGE], "texts": ["a"]}},
    "/classify": {"json": {"images": [IMAGE], "labels": ["a", "b"]}},
    "/v1/embeddings": {"json": {"model": MODEL, "modality": "image", "input": [URI]}},
    "/v2/embed": {
        "json": {
            "model": MODEL,
            "input_type": "image",
            "inputs": [{"content": [{"type": "image_url", "image_url": {"url": URI}}]}],
        }
    },
    f"/v2/models/{MODEL}/infer": {
        "json": {"inputs": [{"name": "images", "shape": [1], "datatype": "BYTES", "data": [IMAGE]}]}
    },
    "/predict": {"files": [("entries", (None, ENTRIES)), ("image", ("blob", noise(1), "application/octet-stream"))]},
}


def result(response: httpx.Response) -> str:
    """The body without times, and without Cohere's id of the answer."""
    return re.sub(r'"timing_ms":\{[^}]*\}|"id":"[^"]*"', "", response.text)


@pytest.mark.parametrize("path", REQUESTS)
async def test_every_protocol_says_whether_the_row_was_kept(path: str) -> None:
    async with serving(FakeEncoder(fake_spec(MODEL)), cache=2**20) as client:
        first, second = [await client.post(path, **REQUESTS[path]) for _ in range(2)]
    assert (first.status_code, second.status_code) == (200, 200), first.text
    assert (first.headers["x-cache"], first.headers.get("age")) == ("miss", None)
    assert (second.headers["x-cache"], second.headers["age"]) == ("hit", "0")
    assert result(first) == result(second)


async def test_where_it_is_off_nothing_is_said() -> None:
    async with serving() as client:
        for _ in range(2):
            answer = await client.post("/embed", content=noise(1), headers=PNG)
            assert not {"x-cache", "age"} & set(answer.headers)
        metrics = (await client.get("/metrics")).text
        assert "visiontower_cache_hits_total 0.0" in metrics
        assert "visiontower_cache_bytes{" not in metrics


async def test_some_of_the_images_kept_is_a_partial_hit_and_is_counted() -> None:
    async with serving(cache=2**20) as client:
        await client.post("/embed", content=noise(1), headers=PNG)
        images = [base64.b64encode(noise(seed)).decode() for seed in (1, 2, 3)]
        answer = await client.post("/embed", json={"images": images})
        assert (answer.headers["x-cache"], answer.headers["age"]) == ("partial", "0")
        text_only = await client.post("/embed", json={"texts": ["a"]})
        assert "x-cache" not in text_only.headers
        metrics = (await client.get("/metrics")).text
        assert "visiontower_cache_hits_total 1.0" in metrics
        assert "visiontower_cache_misses_total 3.0" in metrics
        assert float(re.findall(r'visiontower_cache_bytes\{store="memory"\} (.*)', metrics)[0]) > 3 * 17 * 12 * 4
        stages = re.findall(r'visiontower_stage_seconds_count\{model="fake:vit",stage="(\w+)"\} 3.0', metrics)
        assert {"decode", "preprocess"} <= set(stages), "of a kept image none ran"
