"""What a replica sends through Ray's proxy."""

import pickle

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from service.run.ray.messages import ForProxy
from tests.support.serving import PNG, app_of, noise

pytestmark = pytest.mark.anyio
MANY = "/embed?output=tokens&resolution=512"
"""Tokens that are sent as they lie in memory, in several pieces."""


@pytest.mark.parametrize("accept", ["application/vnd.safetensors", "application/x-npy"])
async def test_every_answer_is_sent_whole_between_processes(accept: str) -> None:
    app = app_of()

    async def carried(scope: Scope, receive: Receive, send: Send) -> None:
        async def carry(message: Message) -> None:
            await send(pickle.loads(pickle.dumps(message)))

        await ForProxy(app)(scope, receive, carry)

    asked = {**PNG, "Accept": accept}
    async with app.router.lifespan_context(app):
        answers = []
        for transport in (httpx.ASGITransport(app), httpx.ASGITransport(carried)):
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                answers.append(await client.post(MANY, content=noise(1), headers=asked))
    plain, through = answers
    assert plain.status_code == through.status_code == 200
    assert through.content == plain.content
    assert "x-request-id" in plain.headers
    assert "x-request-id" not in through.headers, "the proxy adds it"
