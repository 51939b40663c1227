"""The whole service on the stub card: real allocator, real torch.OutOfMemoryError. Prints what became of it as JSON.

Usage: serve.py VRAM_BUDGET[+WORKSPACE]..., each service in a process of its own. FAKE_MEM_GB is the card's size,
WORKSPACE the bytes that each convolution takes beside its tensors. Batches are made to form by holding the device.
"""

import asyncio
import json
import multiprocessing
import os
import sys
import threading
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import httpx

from encoders.contract.encoder import Encoder, Forward
from encoders.contract.values import Encoded, Outputs, Pixels
from encoders.runtime.torch_encoder import TorchEncoder
from service.engine.backend import real_backend
from service.http.app import create_app
from service.settings import Settings
from service.sizes import parse_bytes
from tests.support.serving import PNG, client_of, image_bytes

MODEL = "openclip:RN50@random"
PICTURE = image_bytes(size=(64, 48))


class AtWork:
    """How many forwards the card was left with at once, at most."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    def watch(self, encoder: Encoder) -> Encoder:
        assert isinstance(encoder, TorchEncoder)
        begin = encoder.begin

        def watched(pixels: Pixels, outputs: Outputs) -> Forward:
            forward = begin(pixels, outputs)
            assert not forward.is_done
            self.now += 1
            self.most = max(self.most, self.now)
            return Watched(forward, self)

        encoder.begin = watched  # type: ignore[method-assign]  # no argument is worth having for this
        return encoder


@dataclass(frozen=True)
class Watched:
    """A Forward that tells `at_work` when it is waited for."""

    forward: Forward
    at_work: AtWork

    @property
    def is_done(self) -> bool:
        return self.forward.is_done

    def wait(self) -> Encoded:
        self.at_work.now -= 1
        return self.forward.wait()


async def together(client: httpx.AsyncClient, app: Any, *, images: int, query: str) -> int:
    """Answers to one request of `images`, all of which wait when the device gets to them; gives its status."""
    threads = app.state.engine.threads
    release = threading.Event()
    held = asyncio.create_task(threads.call(release.wait))
    posted = asyncio.create_task(client.post(f"/embed?model={MODEL}&{query}", files=[("image", PICTURE)] * images))
    while threads.waiting(MODEL)[0] < images and not posted.done():
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
    at_work = AtWork()
    backend = real_backend(settings)
    app = create_app(settings, backend=replace(backend, load=lambda model: at_work.watch(backend.load(model))))
    async with client_of(app) as client:
        waves = [await together(client, app, images=60, query="output=pooled&resolution=448") for _ in range(3)]
        large = await client.post(f"/embed?model={MODEL}&resolution=2048&output=pooled", content=PICTURE, headers=PNG)
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
            "at_work": {"now": at_work.now, "most": at_work.most},
        }


def became(case: str) -> dict[str, Any]:
    """What became of the service of this case, which is the first thing on the card of its process."""
    budget, _, workspace = case.partition("+")
    if workspace:
        os.environ["FAKE_CONV_WS"] = workspace
    return asyncio.run(main(budget))


if __name__ == "__main__":
    for module in ("demo", "openclip"):
        import_module(f"encoders.adapters.{module}")  # once, before the processes part
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        print(json.dumps(pool.map(became, sys.argv[1:], chunksize=1)))
