"""Immich's two calls out of Node itself, against a server on a socket."""

import asyncio
import base64
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from service.run.server import make_server
from service.settings import Settings
from tests.support.serving import backend_of, noise

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node here")]
MODEL = "openclip:ViT-B-32@openai"


async def test_immich_s_calls_out_of_node_are_answered(tmp_path: Path) -> None:
    picture, photo = noise(1, (64, 40)), tmp_path / "photo.png"
    photo.write_bytes(picture)
    server = make_server(Settings(model=(MODEL,), port=0), backend=backend_of(FakeEncoder(fake_spec(MODEL))))
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(30):
        while not server.started:
            await asyncio.sleep(0)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    script = Path(__file__).with_name("immich.mjs")
    node = await asyncio.create_subprocess_exec(
        "node", script, url, "ViT-B-32__openai", photo, "a cat", stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await node.communicate()
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
        sent = {"images": [base64.b64encode(picture).decode()], "texts": ["a cat"], "output": "pooled"}
        embedded = (await client.post("/embed", json={**sent, "normalize": True})).json()
    server.should_exit = True
    await running
    ping, visual, textual, faces = map(json.loads, printed.decode().splitlines())
    vectors: list[Any] = [entry["pooled"]["data"] for entry in embedded["data"]]
    assert (ping["status"], ping["answer"]) == (200, "pong")
    assert json.loads(visual["answer"].pop("clip")) == vectors[0]
    assert visual["answer"] == {"imageHeight": 40, "imageWidth": 64}
    assert json.loads(textual["answer"]["clip"]) == vectors[1]
    assert faces["status"] == 422
