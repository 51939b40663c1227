"""The OpenAPI document is sound and true, and nothing that is sent to its routes breaks the service.

Requests are made from the document itself: as it allows them, and bent in many ways. They go to the app as ASGI, where
also such get in as no server would let through.
"""

import asyncio
import base64
import gzip
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from fastapi import FastAPI
from fastapi.openapi.models import OpenAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoders.adapters.fake import FakeEncoder, fake_spec
from service.engine.engine import Engine
from service.http import problems
from tests.support.openapi import HELD, SAID, Operation, allowed, breaches, operations, schemas
from tests.support.serving import app_of, image_bytes

MODELS = ("fake:vit", "fake:cnn")
PROBLEM_TYPES = {f"/problems/{slug}" for slug in problems.slugs()} | {"about:blank"}
PICTURE = image_bytes()
PICTURES = (PICTURE, image_bytes(image_format="JPEG"), image_bytes(image_format="GIF", mode="P", colour=3))


def app() -> FastAPI:
    return app_of(
        FakeEncoder(), FakeEncoder(fake_spec("fake:cnn", embed_dim=None, scoring=None, dense=False)), max_images=8
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


# What is sent.

LONG = st.integers(1, 5000).map(lambda length: "x" * length)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Co", "So", "Mn"]), max_size=8),
    LONG,
    st.sampled_from(
        ["", "a photo of a cat", "{}", "{" * 40, "\0", "NaN", "1e999", "-0", "\uff11", "\ud800", "../../x", "%"]
    ),
)
HUGE = st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 1e308])
ODD = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), HUGE, st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=8,
)
SIZES = st.sampled_from(["32", "64", "48x32", "8", "7", "520", "0", "1x99999", "-32", "32x", "\uff132"])
STRINGS = st.one_of(TEXTS, st.sampled_from(MODELS), SIZES)
RAW_IMAGES = st.one_of(
    st.sampled_from(PICTURES),
    st.binary(max_size=64),
    st.builds(lambda content, end: content[:end], st.sampled_from(PICTURES), st.integers(0, 200)),
    st.builds(
        lambda content, place, byte: content[: place % len(content)] + byte + content[place % len(content) + 1 :],
        st.sampled_from(PICTURES),
        st.integers(0, 400),
        st.binary(min_size=1, max_size=1),
    ),
)


def _as_text(content: bytes, form: str) -> str:
    return form + base64.b64encode(content).decode()


TEXT_IMAGES = st.one_of(
    st.builds(_as_text, RAW_IMAGES, st.sampled_from(["", "data:image/png;base64,", "data:,", "data:", " "])),
    st.sampled_from(["http://example.com/x.png", "https://[::1]/", "http://\ud800/", "file:///etc/passwd", "data:"]),
    TEXTS,
)


def query_of(operation: Operation) -> st.SearchStrategy[bytes]:
    """Its parameters as the document allows them; with odd values, unknown and repeated names; and no query at all."""
    parameters = [each for each in operation.parameters if each["in"] == "query"]
    if not parameters:
        return st.sampled_from([b"", b"x=1", b"%ff"])

    def written(pairs: list[tuple[str, Any]]) -> bytes:
        texts = []
        for name, value in pairs:
            repeated = value if isinstance(value, list) and name in ("text", "template") else [value]
            texts += [(name, ",".join(map(str, each)) if isinstance(each, list) else str(each)) for each in repeated]
        return urlencode(texts, errors="replace").encode()

    pair = st.one_of(
        *(st.tuples(st.just(each["name"]), allowed(each["schema"], strings=STRINGS)) for each in parameters)
    )
    odd = st.tuples(st.sampled_from([each["name"] for each in parameters]) | st.text(max_size=9), ODD)
    return st.one_of(
        st.just(b""),
        st.lists(pair, max_size=4).map(written),
        st.lists(st.one_of(pair, odd), max_size=5).map(written),
        st.binary(max_size=40),
        st.sampled_from([b"model=%00", b"model=%ff%fe", b"&&==&", b"text=" * 300, b"resolution=" + b"9" * 5000]),
    )


def written_json(pairs: list[tuple[str, Any]]) -> bytes:
    """An object whose names may come twice."""
    return ("{" + ",".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs) + "}").encode()


ODD_JSON = (
    b"",
    b"null",
    b"[" * 5000,
    b'{"a":' * 2000,
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\0}\0",
    b'{"images": ["\xff"]}',
    b'{"images": ["\\ud800"]}',
    b'{"images": [' + b"1" * 5000 + b"]}",
    b'{"images":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"images": ["x"], "layer": 1e400}',
    b'{"images": ["x"], "layer": ' + b"9" * 5000 + b"}",
    b'{"images": [' + b'"",' * 20 + b'""]}',
    b'{"texts": [' + b'"a",' * 2000 + b'"a"], "images": [""]}',
)
TYPES = (
    b"",
    b"\xff",
    b"a/b;c",
    b"x" * 3000,
    b"image/*",
    b"image/png",
    b"text/plain",
    b"application/json",
    b"APPLICATION/JSON; charset=utf-16",
    b"application/octet-stream",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data",
)


def json_of(schema: dict[str, Any]) -> st.SearchStrategy[bytes]:
    names = [*schema["properties"], "image", "text", "label", "", "\ud800"]
    properties = {
        **schema["properties"],
        "images": {"type": "array", "items": {"type": "string", "format": "image"}, "minItems": 1},
    }
    options = {name: about for name, about in properties.items() if name != "images"}
    sound = st.builds(
        lambda images, rest: [("images", images), *rest.items()],
        st.lists(TEXT_IMAGES, min_size=1, max_size=3),
        allowed({"type": "object", "properties": options}, strings=STRINGS),
    )
    bent = st.builds(
        lambda pairs, odd: pairs + odd, sound, st.lists(st.tuples(st.sampled_from(names), ODD), max_size=3)
    )
    return st.one_of(
        sound.map(written_json),
        bent.map(written_json),
        ODD.map(lambda value: json.dumps(value).encode()),
        st.builds(lambda content, end: content[: end % (len(content) + 1)], sound.map(written_json), st.integers(0)),
        st.sampled_from(ODD_JSON),
    )


@st.composite
def forms(draw: st.DrawFn, schema: dict[str, Any]) -> tuple[bytes, bytes]:
    """Content-Type and body."""
    boundary = draw(st.sampled_from([b"b", b"x" * 70, b"a b", b"--", b""]))
    names = st.one_of(st.sampled_from([*schema["properties"], "images", "text"]), TEXTS)
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        name = draw(names)
        values = schema["properties"].get(name, {})
        if name == "image":
            content = draw(RAW_IMAGES)
        elif values and draw(st.booleans()):
            content = str(draw(allowed(values, strings=STRINGS))).encode("utf-8", "replace")
        else:
            content = draw(st.one_of(st.binary(max_size=30), TEXTS.map(lambda text: text.encode("utf-8", "replace"))))
        said = quote(name, errors="replace") if draw(st.booleans()) else name
        head = b'Content-Disposition: form-data; name="' + said.encode("utf-8", "replace") + b'"'
        head += draw(st.sampled_from([b"", b'; filename="x.png"', b"; filename*=UTF-8''x", b'; name="image"', b";;=;"]))
        extra = [b"", b"\r\nContent-Type: image/png", b"\r\nX: " + b"y" * 300, b"\r\nContent-Type: ;;", b"\r\n:", b"\r"]
        parts.append(head + draw(st.sampled_from(extra)) + b"\r\n\r\n" + content)
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    if draw(st.integers(0, 4)) == 0:
        body = body[: draw(st.integers(0, len(body)))]
    given_as = draw(
        st.sampled_from([b"; boundary=" + boundary, b'; boundary="' + boundary + b'"', b"", b"; boundary="])
    )
    return b"multipart/form-data" + given_as, body


def body_of(operation: Operation) -> st.SearchStrategy[tuple[bytes, bytes]]:
    """Content-Type and body."""
    if not operation.bodies:
        return st.tuples(st.sampled_from([b"", b"application/json"]), st.binary(max_size=20))
    as_json = json_of(operation.bodies["application/json"])
    return st.one_of(
        st.tuples(st.just(b"application/json"), as_json),
        forms(operation.bodies["multipart/form-data"]),
        st.tuples(st.sampled_from([b"image/png", b"application/octet-stream"]), RAW_IMAGES),
        st.tuples(st.sampled_from(TYPES), st.one_of(RAW_IMAGES, as_json)),
    )


HEADERS = st.lists(
    st.one_of(
        st.tuples(
            st.just(b"accept"),
            st.sampled_from(
                [b"*/*", b"application/x-npy", b"application/vnd.safetensors", b"text/html", b"\xff", b",;q=x"]
            )
            | st.sampled_from([b"application/json;q=0", b"a" * 5000, b"application/octet-stream", b"image/*;q=nan"]),
        ),
        st.tuples(
            st.just(b"content-encoding"), st.sampled_from([b"gzip", b"deflate", b"br", b"identity", b"gzip, gzip"])
        ),
        st.tuples(
            st.just(b"content-length"), st.sampled_from([b"0", b"5", b"-1", b"x", b"9" * 30, b"9" * 5000, b"\xb2"])
        ),
        st.tuples(st.just(b"x-request-id"), st.binary(max_size=80)),
        st.tuples(st.binary(min_size=1, max_size=8).map(bytes.lower), st.binary(max_size=30)),
    ),
    max_size=3,
)


@dataclass(frozen=True)
class Request:
    operation: Operation
    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: tuple[bytes, ...]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    with_bodies = [operation for operation in OPERATIONS if operation.bodies]
    operation = draw(st.sampled_from([*with_bodies * 4, *OPERATIONS, *OPERATIONS]))
    path = operation.path
    for parameter in operation.parameters:
        if parameter["in"] == "path":
            known = st.sampled_from([*MODELS, "empty-image"])
            path = path.replace(f"{{{parameter['name']}}}", draw(known | TEXTS))
    other = st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", "FOO"])
    method = draw(other) if draw(st.integers(0, 15)) == 0 else operation.method
    content_type, body = draw(body_of(operation))
    headers = draw(HEADERS)
    if content_type:
        headers.append((b"content-type", content_type))
    if (b"content-encoding", b"gzip") in headers and draw(st.booleans()):
        body = gzip.compress(body, mtime=0)
    middle = draw(st.integers(0, len(body)))
    return Request(
        operation,
        method,
        path,
        draw(query_of(operation)),
        headers,
        draw(st.sampled_from([(body,), (body[:middle], body[middle:])])),
    )


# What must come back.


def assert_sound(request: Request, reply: Reply) -> None:
    operation, status = request.operation, reply.status
    is_own = request.method == operation.method
    assert status < 500 or status in (503, 504, 507), reply
    if status == 503 and operation.path == "/health/ready":
        return
    if status >= 400:
        assert reply.media_type == "application/problem+json", reply
        assert len(reply.content) < 2000, reply
        problem = json.loads(reply.content)
        assert problem["type"] in PROBLEM_TYPES, reply
        assert problem["status"] == status, reply
        assert not breaches(problem, problem_schema()), reply
    if not is_own or (status in (307, 404) and operation.path == "/problems/{slug}"):  # with a slash it is another path
        assert status in (307, 404, 405) or request.method in ("GET", "POST"), reply
        return
    said = operation.answers(status)
    assert reply.media_type in said, (status, reply, list(said))
    if reply.media_type == "application/json":
        assert not breaches(json.loads(reply.content), said["application/json"].get("schema", {})), reply


def problem_schema() -> dict[str, Any]:
    embed = next(operation for operation in OPERATIONS if operation.path == "/embed")
    found: dict[str, Any] = embed.answers(422)["application/problem+json"]["schema"]
    return found


@pytest.mark.parametrize("examples", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_whatever_is_sent_is_answered_as_the_document_says(service: Service, examples: int) -> None:
    """And leaves nothing behind: no permit, no byte of the account, no model that fails."""
    engine: Engine = service.app.state.engine
    statuses: dict[int, int] = {}

    @settings(
        max_examples=examples, derandomize=True, database=None, suppress_health_check=list(HealthCheck), deadline=None
    )
    @given(requests())
    def send(request: Request) -> None:
        reply = service.ask(
            request.method, request.path, query=request.query, headers=request.headers, body=request.body
        )
        statuses[reply.status] = statuses.get(reply.status, 0) + 1
        assert_sound(request, reply)
        assert engine.admission.inside("images") == engine.admission.inside("texts") == 0
        assert sum(size for stage, size in engine.account.held.items()) == 0

    send()
    assert service.ask("GET", "/health/ready").status == 200
    assert {200, 207, 400, 404, 405, 406, 413, 415, 422} <= set(statuses)
    assert statuses[200] > examples // 10
