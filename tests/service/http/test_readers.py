"""Large bodies are taken apart on threads: the cheap first, and not at all for those who have left."""

import asyncio
import threading
from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI

from service.engine.values import ModelsRequest
from service.errors import ShuttingDown
from service.http.app import create_app
from service.http.protocol import Answer, Asked, Incoming, Protocol, Route
from service.http.readers import Readers, price
from service.settings import Settings
from tests.support.serving import backend_of, client_of
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
DEAR = 2**40


class Desk:
    """Holds what is read while closed."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.read: list[str] = []

    def __call__(self, name: str) -> str:
        self.read.append(name)
        assert self.is_open.wait(30)
        return name


async def test_a_cheap_body_passes_dear_ones_and_the_cheaper_go_first() -> None:
    desk, readers = Desk(), Readers()
    dear = [asyncio.create_task(readers.run(partial(desk, f"dear {cost}"), price=DEAR + cost)) for cost in (2, 3, 1)]
    await until(lambda: desk.read == ["dear 2"])
    assert await readers.run(lambda: "cheap", price=10) == "cheap"
    desk.is_open.set()
    await asyncio.gather(*dear)
    assert desk.read == ["dear 2", "dear 1", "dear 3"]
    readers.close()
    with pytest.raises(ShuttingDown):
        await readers.run(lambda: "late", price=1)


async def test_what_nobody_waits_for_is_not_read() -> None:
    desk, readers = Desk(), Readers()
    running, waiting = (asyncio.create_task(readers.run(partial(desk, name), price=DEAR)) for name in "ab")
    await until(lambda: desk.read == ["a"])
    waiting.cancel()
    desk.is_open.set()
    assert await running == "a"
    assert await readers.run(lambda: desk("c"), price=DEAR) == "c"
    assert desk.read == ["a", "c"]
    readers.close()


def test_many_values_of_json_are_dearer_than_a_long_text() -> None:
    assert price(b"[1,1,1,1]", in_json=9) > price(b"[1111111]", in_json=9)
    assert price(b"\xff,,,,,,\xff", in_json=0) == 8


async def _post(app: FastAPI, path: str, body: bytes, *, leaves: asyncio.Event) -> int:
    """The status of the answer to a client that leaves."""
    sent: list[Any] = []
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        if (part := next(parts, None)) is not None:
            return part
        await leaves.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [],
        "client": ("1.2.3.4", 5), "server": ("service", 80), "scheme": "http", "http_version": "1.1", "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    return int(sent[0]["status"])


async def test_a_client_that_leaves_while_its_body_waits_gives_its_memory_back_at_once() -> None:
    """Others' bodies would find the account full of what nobody wants any more."""
    desk = Desk()

    def read(incoming: Incoming) -> Asked:
        desk(chr(incoming.body[0]))
        return Asked(ModelsRequest())

    slow = Protocol("slow", (Route("/slow", read, lambda result, reply: Answer(b"", "text/plain")),), _refused)
    app = create_app(Settings(model=("fake:vit",)), backend=backend_of(), protocols=(slow,))
    async with client_of(app):
        account, leaves, stays = app.state.engine.account, asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(_post(app, "/slow", b"a" * 2_000_000, leaves=stays))
        await until(lambda: desk.read == ["a"])
        alone = account.held["body"]
        second = asyncio.create_task(_post(app, "/slow", b"b" * 2_000_000, leaves=leaves))
        await until(lambda: account.held["body"] == 2 * alone)
        leaves.set()
        assert await second == 499
        assert account.held["body"] == alone
        desk.is_open.set()
        assert await first == 200
        assert (desk.read, account.held["body"]) == (["a"], 0)


def _refused(error: Exception) -> Answer:
    return Answer(b"", "text/plain", 499 if type(error).__name__ == "ClientGone" else 400)
