"""The floor: what HTTP alone costs a small model. JPEG files to pooled vectors with nothing of a service around them.

    python -m benchmarks.floor --work small --port 9000

A process a core, and in each one thread for everything: uvicorn and a bare ASGI app, then the limit's decoder and
forward over all that has come in. No options, limits, metrics or errors, and nobody is heard while it computes. It is
one such server, not a bound: batches are of what one process' callers send.
"""

import argparse
import asyncio
import socket
from functools import partial

import numpy as np
import orjson
import torch
import uvicorn
from starlette.types import Receive, Scope, Send

from benchmarks.limit import DECODERS, RUNTIMES, Forward, Prepare, fastest_decoder
from benchmarks.works import WORKS
from encoders.memory.machine import available_cores
from service.http.siblings import Siblings
from service.run import workers
from service.settings import Settings

_GATHER_S = 0.001
"""From the first image until a batch is begun: its callers were all answered at once, and ask again together."""


class Floor:
    """The ASGI app. POST anything; the answer is a JSON list."""

    def __init__(self, prepare: Prepare, forward: Forward, *, siblings: Siblings) -> None:
        self._prepare = prepare
        self._forward = forward
        self._siblings = siblings
        self._waiting: list[tuple[bytes, asyncio.Future[bytes]]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        if scope["type"] == "lifespan":
            await self._siblings.together()
            await send({"type": "lifespan.startup.complete"})
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message["body"]
            if not message.get("more_body"):
                break
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        self._waiting.append((body, answer))
        if len(self._waiting) == 1:
            loop.call_later(_GATHER_S, self._run)
        content = await answer
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _run(self) -> None:
        batch, self._waiting = self._waiting, []
        pixels = np.stack([self._prepare(jpeg) for jpeg, _ in batch])
        with torch.inference_mode():
            vectors = self._forward(torch.from_numpy(pixels)).float().numpy()
        for (_, answer), vector in zip(batch, vectors, strict=True):
            answer.set_result(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))


def _serve(
    settings: Settings, siblings: Siblings, sockets: list[socket.socket], *, work: str, runtime: str, decoder: str
) -> None:
    torch.set_num_threads(1)
    asked = WORKS[work]
    prepare = DECODERS[decoder](asked.preprocessing, asked.side)
    app = Floor(prepare, RUNTIMES[runtime](asked, 1), siblings=siblings)
    uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False)).run(sockets)


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser("python -m benchmarks.floor", description=__doc__)
    parser.add_argument("--work", choices=WORKS, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--runtime", choices=RUNTIMES, default="eager-bfloat16")
    a = parser.parse_args()
    settings = Settings(model=("fake:none",), port=a.port, processes=available_cores())
    serve = partial(_serve, work=a.work, runtime=a.runtime, decoder=fastest_decoder(WORKS[a.work]))
    raise SystemExit(workers.run(settings, serve))


if __name__ == "__main__":
    main()
