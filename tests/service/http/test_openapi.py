"""The OpenAPI document is sound and true, and nothing that is sent to its routes breaks the service.

Requests are made from the document itself: as it allows them, and bent in many ways. They go to the app as ASGI, where
also such get in as no server would let through.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import pytest
from fastapi import FastAPI
from fastapi.openapi.models import OpenAPI
from hypothesis import HealthCheck, given, seed, settings

from encoders.adapters.fake import FakeEncoder, fake_spec
from service.engine.engine import Engine
from service.http import problems
from tests.support.odd_requests import PICTURE, Request, requests
from tests.support.openapi import HELD, SAID, breaches, operations, schemas
from tests.support.paths import ANIMALS
from tests.support.serving import app_of
from tests.support.waiting import until

PROBLEM_TYPES = {f"/problems/{slug}" for slug in problems.slugs()} | {"about:blank"}


def app() -> FastAPI:
    return app_of(
        FakeEncoder(),
        FakeEncoder(fake_spec("fake:cnn", embed_dim=None, scoring=None, dense=False)),
        FakeEncoder(fake_spec("openclip:ViT-B-32@openai")),
        max_images=8,
        labels=(f"animals={ANIMALS}",),
    )


DOCUMENT = app().openapi()
OPERATIONS = operations(DOCUMENT)


# The document.


def test_the_document_is_one_of_openapi() -> None:
    assert OpenAPI.model_validate(DOCUMENT).openapi.startswith("3.1")
    ids = [operation.description["operationId"] for operation in OPERATIONS]
    assert len(set(ids)) == len(ids)
    for operation in OPERATIONS:
        in_path = {each["name"] for each in operation.parameters if each["in"] == "path"}
        assert in_path == {part[1:-1] for part in operation.path.split("/") if part.startswith("{")}


def test_its_schemas_use_the_words_of_json_schema() -> None:
    found = list(schemas(DOCUMENT))
    assert len(found) > 100
    assert {word for schema in found for word in schema} <= SAID | HELD


def test_its_defaults_and_examples_are_what_its_schemas_allow() -> None:
    for schema in schemas(DOCUMENT):
        for word in ("default", "example"):
            if word in schema:
                assert not breaches(schema[word], schema)
    contents = [
        content
        for operation in OPERATIONS
        for each in (operation.description.get("requestBody", {}), *operation.description["responses"].values())
        for content in each.get("content", {}).values()
        if "example" in content
    ]
    assert len(contents) >= 6
    for content in contents:
        assert not breaches(content["example"], content["schema"])


async def ask(
    target: FastAPI, method: str, path: str, *, query: bytes = b"", headers: Any = (), body: tuple[bytes, ...] = ()
) -> "Reply":
    """By ASGI, as it is."""
    path = path.encode("utf-8", "replace").decode()  # servers decode it so
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    messages = [{"type": "http.request", "body": each, "more_body": True} for each in body]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    messages.reverse()
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else await asyncio.Event().wait()  # type: ignore[return-value]  # stays

    async def send(message: Any) -> None:
        sent.append(message)

    await target(scope, receive, send)
    start, *bodies = sent
    content = b"".join(each["body"] for each in bodies)
    return Reply(start["status"], dict(start["headers"]), content)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[bytes, bytes]
    content: bytes

    @property
    def media_type(self) -> str:
        return self.headers.get(b"content-type", b"").decode("latin-1").partition(";")[0]


class Service:
    """A started app with a loop of its own, for tests that are no coroutines."""

    def __init__(self) -> None:
        self.app = app()
        self._stack = AsyncExitStack()
        self._runner = asyncio.Runner()

    def ask(self, *args: Any, **options: Any) -> Reply:
        return self._runner.run(ask(self.app, *args, **options))

    def wait(self, condition: Callable[[], bool]) -> None:
        self._runner.run(until(condition))

    def __enter__(self) -> "Service":
        self._runner.run(self._stack.enter_async_context(self.app.router.lifespan_context(self.app)))
        return self

    def __exit__(self, *failure: object) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Service() as service:
        yield service


def bounds(schema: dict[str, Any]) -> Iterator[tuple[Any, bool]]:
    """Values at the ends of what the schema allows, and just beyond: value, and whether it is allowed."""
    if "anyOf" in schema:
        for choice in schema["anyOf"]:
            yield from bounds(choice)
    elif "enum" in schema:
        yield from ((value, True) for value in schema["enum"])
        yield "none-of-these", False
    elif schema["type"] == "integer" and "minimum" in schema:
        yield from ((schema["minimum"], True), (schema["minimum"] - 1, False))
        yield from ((schema["maximum"], True), (schema["maximum"] + 1, False))
    elif schema["type"] == "boolean":
        yield from (("true", True), ("2", False))
    elif schema["type"] == "array":
        items = [value for value, is_allowed in bounds(schema["items"]) if is_allowed] or ["32"]
        for count, is_allowed in ((schema.get("maxItems"), True), (schema.get("maxItems", -1) + 1, False)):
            if count:
                yield [items[0]] * count, is_allowed
        yield from (([value], is_allowed) for value, is_allowed in bounds(schema["items"]))


def test_options_have_the_bounds_that_the_document_says(service: Service) -> None:
    """Whatever a bound leads to later: an option within is not refused as such."""
    tried = 0
    for operation in OPERATIONS:
        for parameter in operation.parameters:
            if parameter["in"] != "query":
                continue
            for value, is_allowed in bounds(parameter["schema"]):
                listed = value if isinstance(value, list) else [value]
                if not parameter.get("explode", True):
                    listed = [",".join(map(str, listed))]
                query = urlencode([(parameter["name"], each) for each in listed]).encode()
                image = {"headers": [(b"content-type", b"image/png")], "body": (PICTURE,)} if operation.bodies else {}
                reply = service.ask(operation.method, operation.path, query=query, **image)
                is_refused = reply.status == 422 and json.loads(reply.content).get("option") == parameter["name"]
                if is_allowed and is_refused:  # by what it is beside
                    assert "is about tokens" in reply.content.decode() or "no bfloat16" in reply.content.decode()
                assert is_refused or is_allowed, (parameter["name"], value, reply)
                tried += 1
    assert tried > 50


# What must come back.


def assert_sound(request: Request, reply: Reply) -> None:
    operation, status = request.operation, reply.status
    is_own = request.method == operation.method
    assert status < 500 or status in (503, 504, 507), reply
    if status == 503 and operation.path == "/health/ready":
        return
    if status >= 400:
        media_type, schema = operation.error_form
        assert reply.media_type == media_type, reply
        assert len(reply.content) < 2000, reply
        error = json.loads(reply.content)
        assert not breaches(error, schema), reply
        if media_type == "application/problem+json":
            assert error["type"] in PROBLEM_TYPES, reply
            assert error["status"] == status, reply
            assert not breaches(error, problem_schema()), reply
    if not is_own or (status in (307, 404) and operation.path == "/problems/{slug}"):  # with a slash it is another path
        assert status in (307, 404, 405) or request.method in ("GET", "HEAD", "POST"), reply
        return
    said = operation.answers(status)
    assert reply.media_type in said, (status, reply, list(said))
    if reply.media_type == "application/json":
        assert not breaches(json.loads(reply.content), said["application/json"].get("schema", {})), reply


def problem_schema() -> dict[str, Any]:
    embed = next(operation for operation in OPERATIONS if operation.path == "/embed")
    found: dict[str, Any] = embed.answers(422)["application/problem+json"]["schema"]
    return found


def found(path: str, *headers: tuple[bytes, bytes], method: str = "", query: bytes = b"") -> Request:
    operation = next(
        each for each in OPERATIONS if path.startswith(each.path.partition("{")[0]) and each.path != "/problems"
    )
    return Request(
        operation, method or operation.method, path, query, [(b"content-type", b"image/png"), *headers], (PICTURE,)
    )


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (found("/problems/" + "x" * 5000), 404),
        (found("/embed", (b"accept", b"a" * 5000)), 406),
        (found("/embed", (b"content-length", b"9" * 5000)), 413),
        (replace(found("/embed"), path="/nowhere", query=b"\x80"), 404),
        (found("/vram", method="POST", query=b"\x80"), 405),
    ],
    ids=[
        "a long name of a problem",
        "a long Accept",
        "a Content-Length of more digits than Python reads",
        "a query that is no UTF-8 on no route",
        "a wrong method with a query that is no text",
    ],
)
def test_what_was_found_once(service: Service, request_: Request, status: int) -> None:
    reply = service.ask(request_.method, request_.path, headers=request_.headers, body=request_.body)
    assert_sound(request_, reply)
    assert reply.status == status


@pytest.mark.parametrize(("seed_", "examples"), [(0, 500), pytest.param(1, 1000, marks=pytest.mark.slow)])
def test_whatever_is_sent_is_answered_as_the_document_says(service: Service, seed_: int, examples: int) -> None:
    """And leaves nothing behind: no permit, no byte of the account, no model that fails. Others from each seed."""
    engine: Engine = service.app.state.engine
    answered: Counter[tuple[str, int]] = Counter()

    @seed(seed_)
    @settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck), deadline=None)
    @given(requests(OPERATIONS))
    def send(request: Request) -> None:
        reply = service.ask(
            request.method, request.path, query=request.query, headers=request.headers, body=request.body
        )
        answered[request.operation.path, reply.status] += 1
        assert_sound(request, reply)
        assert engine.admission.inside("images") == engine.admission.inside("texts") == 0
        service.wait(lambda: sum(engine.account.held.values()) == 0)  # the decoding thread gives back last

    send()
    assert service.ask("GET", "/health/ready").status == 200
    assert {400, 404, 406, 415, 422} <= {status for _, status in answered}  # it was odd enough
    made_sense = {path for path, status in answered if status in (200, 207)}
    assert {"/embed", "/vram", "/models"} <= made_sense
    if examples > 500:
        assert {"/similarity", "/classify", "/v2/models/{model}/infer", "/predict"} <= made_sense
