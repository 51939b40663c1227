"""The whole service on the stub card: real allocator, real torch.OutOfMemoryError. Prints what became of it as JSON.

Usage: serve.py VRAM_BUDGET, with FAKE_MEM_GB setting the card's size. Batches are made to form by holding the device.
"""

import asyncio
import json
import sys
import threading
from typing import Any

import httpx

from service.app import create_app
from service.server import real_backend
from service.settings import Settings
from service.sizes import parse_bytes
from tests.serving import PNG, client_of, image_bytes

MODEL = "openclip:RN50@random"
PICTURE = image_bytes(size=(64, 48))


async def together(client: httpx.AsyncClient, app: Any, *, images: int, query: str) -> int:
    """Answers to one request of `images`, all of which wait when the device gets to them; gives its status."""
    batcher = app.state.service.batcher
    release = threading.Event()
    held = asyncio.create_task(batcher.call(release.wait))
    posted = asyncio.create_task(client.post(f"/embed?model={MODEL}&{query}", files=[("image", PICTURE)] * images))
    while batcher.snapshot(MODEL)[0] < images and not posted.done():
        await asyncio.sleep(0)
    release.set()
    await held
    return (await posted).status_code


async def main(budget: str) -> dict[str, Any]:
    settings = Settings(
        model=(MODEL, "demo:vit", "demo:convnext"),
        device="cuda",
        dtype="float16",
        vram_budget="auto" if budget == "auto" else parse_bytes(budget),
        max_images=64,
        max_forward_s=1e9,
    )
    app = create_app(settings, backend=real_backend(settings))
    async with client_of(app) as client:
        waves = [await together(client, app, images=60, query="output=pooled&resolution=448") for _ in range(3)]
        large = await client.post(f"/embed?model={MODEL}&resolution=2048", content=PICTURE, headers=PNG)
        mixed = await asyncio.gather(
            *(
                client.post(f"/embed?model={model}&resolution={side}", files=[("image", PICTURE)] * 5)
                for model in settings.model
                for side in (96, 192, 336 if model == MODEL else 384)
            ),
            client.post("/similarity", files={"image": PICTURE}, data={"text": ["a", "b"]}),
        )
        return {
            "waves": waves,
            "large": large.json() if large.status_code != 200 else {"status": 200},
            "mixed": [answer.status_code for answer in mixed],
            "ready": (await client.get("/health/ready")).status_code,
            "metrics": (await client.get("/metrics")).text,
        }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1]))))
