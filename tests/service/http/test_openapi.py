"""The OpenAPI document is sound and true, and nothing that is sent to its routes breaks the service.

Requests are made from the document itself: as it allows them, and bent in many ways. They go to the app as ASGI, where
also such get in as no server would let through.
"""

import asyncio
import base64
import gzip
import json
from collections import Counter
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


IN_JSON = {"text": "texts", "template": "templates"}
"""Options that a query and a form repeat, and their lists in JSON."""


def listed(name: str, value: Any) -> list[tuple[str, Any]]:
    """An option as a form and a query have it: repeated, or its values with commas."""
    if name in IN_JSON:
        return [(name, each) for each in value]
    return [(name, ",".join(map(str, value)) if isinstance(value, list) else value)]


def written_query(pairs: list[tuple[str, Any]]) -> bytes:
    return urlencode([(name, str(value)) for name, value in pairs], errors="replace").encode()


def written_json(pairs: list[tuple[str, Any]]) -> bytes:
    """An object whose names may come twice."""
    return ("{" + ",".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs) + "}").encode()


def written_form(parts: list[tuple[bytes, bytes]], boundary: bytes = b"b") -> bytes:
    """parts: headers and content."""
    body = b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, *part) for part in parts)
    return body + b"--" + boundary + b"--\r\n"


def queries(operation: Operation) -> st.SearchStrategy[bytes]:
    """Its parameters as the document allows them; with odd values, unknown and repeated names; and no query at all."""
    parameters = [each for each in operation.parameters if each["in"] == "query"]
    if not parameters:
        return st.sampled_from([b"", b"x=1", b"%ff"])
    pair = st.one_of(
        *(st.tuples(st.just(each["name"]), allowed(each["schema"], strings=STRINGS)) for each in parameters)
    )
    odd = st.tuples(st.sampled_from([each["name"] for each in parameters]) | st.text(max_size=9), ODD)
    pairs = st.lists(pair | odd, max_size=5).map(
        lambda pairs: [
            one for name, value in pairs for one in listed(name, value if isinstance(value, list) else [value])
        ]
    )
    return st.one_of(
        st.just(b""),
        pairs.map(written_query),
        st.binary(max_size=40),
        st.sampled_from([b"model=%00", b"model=%ff%fe", b"&&==&", b"text=" * 300, b"resolution=" + b"9" * 5000]),
    )


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


def odd_json(schema: dict[str, Any]) -> st.SearchStrategy[bytes]:
    names = [*schema["properties"], "image", "text", "label", "", "\ud800"]
    options = {name: about for name, about in schema["properties"].items() if name != "images"}
    nearly = st.builds(
        lambda images, rest, odd: written_json([("images", images), *rest.items(), *odd]),
        st.lists(TEXT_IMAGES, min_size=1, max_size=3),
        allowed({"type": "object", "properties": options}, strings=STRINGS),
        st.lists(st.tuples(st.sampled_from(names), ODD), max_size=3),
    )
    return st.one_of(
        nearly,
        ODD.map(lambda value: json.dumps(value).encode()),
        st.builds(lambda content, end: content[: end % (len(content) + 1)], nearly, st.integers(0)),
        st.sampled_from(ODD_JSON),
    )


@st.composite
def odd_forms(draw: st.DrawFn, schema: dict[str, Any]) -> tuple[bytes, bytes]:
    """Content-Type and body."""
    boundary = draw(st.sampled_from([b"b", b"x" * 70, b"a b", b"--", b""]))
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from([*schema["properties"], "images", "text"]) | TEXTS)
        about = schema["properties"].get(name)
        values = allowed(about, strings=STRINGS) if about and name != "image" and draw(st.booleans()) else TEXTS
        content = draw(RAW_IMAGES) if name == "image" else str(draw(values)).encode("utf-8", "replace")
        said = quote(name, errors="replace") if draw(st.booleans()) else name
        head = b'Content-Disposition: form-data; name="' + said.encode("utf-8", "replace") + b'"'
        head += draw(st.sampled_from([b"", b'; filename="x.png"', b"; filename*=UTF-8''x", b'; name="image"', b";;=;"]))
        extra = [b"", b"\r\nContent-Type: image/png", b"\r\nX: " + b"y" * 300, b"\r\nContent-Type: ;;", b"\r\n:", b"\r"]
        parts.append((head + draw(st.sampled_from(extra)), content))
    body = written_form(parts, boundary)
    if draw(st.integers(0, 4)) == 0:
        body = body[: draw(st.integers(0, len(body)))]
    given_as = draw(
        st.sampled_from([b"; boundary=" + boundary, b'; boundary="' + boundary + b'"', b"", b"; boundary="])
    )
    return b"multipart/form-data" + given_as, body


def odd_bodies(operation: Operation) -> st.SearchStrategy[tuple[bytes, bytes]]:
    """Content-Type and body."""
    if not operation.bodies:
        return st.tuples(st.sampled_from([b"", b"application/json"]), st.binary(max_size=20))
    as_json = odd_json(operation.bodies["application/json"])
    return st.one_of(
        st.tuples(st.just(b"application/json"), as_json),
        odd_forms(operation.bodies["multipart/form-data"]),
        st.tuples(st.sampled_from([b"image/png", b"application/octet-stream"]), RAW_IMAGES),
        st.tuples(st.sampled_from(TYPES), RAW_IMAGES | as_json),
    )


PLAIN = {
    "model": st.sampled_from(MODELS),
    "resolution": st.sampled_from(["32", 64, "48x32"]),
    "layer": st.integers(-5, 4),
    "texts": st.lists(st.sampled_from(["a cat", "ein Vogel", "\N{CAT}", "long " * 40]), min_size=1, max_size=3),
    "templates": st.lists(st.sampled_from(["{}", "a photo of a {}"]), min_size=1, max_size=2),
}
"""Of options that the document leaves open, values that make sense."""


@st.composite
def plain(draw: st.DrawFn, operation: Operation) -> tuple[bytes, bytes, bytes]:
    """Query, Content-Type and body of a request that makes sense. It may ask for what this model does not give."""
    options: list[tuple[str, Any]] = []
    for parameter in operation.parameters:
        name = parameter["name"]
        is_needed = name == "text"
        if parameter["in"] == "query" and (is_needed or draw(st.integers(0, 3)) == 0):
            options.append(
                (name, draw(PLAIN.get(IN_JSON.get(name, name), allowed(parameter["schema"], strings=st.just("32")))))
            )
    pairs = [one for name, value in options if value is not None for one in listed(name, value)]
    if not operation.bodies:
        return written_query(pairs), b"", b""
    images = draw(st.lists(st.sampled_from(PICTURES) | RAW_IMAGES, min_size=1, max_size=3))
    match draw(st.sampled_from(list(operation.bodies))):
        case "application/json":
            texts: list[Any] = [
                _as_text(image, draw(st.sampled_from(["", "data:image/png;base64,"]))) for image in images
            ]
            return (
                b"",
                b"application/json",
                written_json([("images", texts), *((IN_JSON.get(name, name), value) for name, value in options)]),
            )
        case "multipart/form-data":
            named = b'Content-Disposition: form-data; name="%b"'
            parts = [(named % name.encode(), str(value).encode()) for name, value in pairs]
            parts += [(named % b"image" + b'; filename="x"\r\nContent-Type: image/png', image) for image in images]
            return b"", b"multipart/form-data; boundary=b", written_form(parts)
        case "image/*":
            return written_query(pairs), b"image/png", images[0]
        case other:
            return written_query(pairs), other.encode(), images[0]


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
    """Every second one makes sense."""
    some = [operation for operation in OPERATIONS if operation.bodies or operation.path == "/vram"]
    operation = draw(st.sampled_from([*some * 6, *OPERATIONS]))
    path = operation.path
    for parameter in operation.parameters:
        if parameter["in"] == "path":
            known = st.sampled_from([*MODELS, "empty-image"])
            path = path.replace(f"{{{parameter['name']}}}", draw(known | TEXTS))
    method = operation.method
    if draw(st.booleans()):
        query, content_type, body = draw(plain(operation))
        accepted = [b"*/*", b"application/json", b"application/x-npy", b"application/vnd.safetensors"]
        headers = draw(st.sampled_from([[], *([(b"accept", each)] for each in accepted)]))
    else:
        query, (content_type, body), headers = draw(queries(operation)), draw(odd_bodies(operation)), draw(HEADERS)
        if draw(st.sampled_from([*[False] * 9, True])):
            method = draw(st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", "FOO"]))
    if content_type:
        headers = [*headers, (b"content-type", content_type)]
    if (b"content-encoding", b"gzip") in headers and draw(st.booleans()):
        body = gzip.compress(body, mtime=0)
    middle = draw(st.integers(0, len(body)))
    bodies = draw(st.sampled_from([(body,), (body[:middle], body[middle:])]))
    return Request(operation, method, path, query, headers, bodies)


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


def found(path: str, *headers: tuple[bytes, bytes]) -> Request:
    operation = next(
        each for each in OPERATIONS if path.startswith(each.path.partition("{")[0]) and each.path != "/problems"
    )
    return Request(operation, operation.method, path, b"", [(b"content-type", b"image/png"), *headers], (PICTURE,))


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (found("/problems/" + "x" * 5000), 404),
        (found("/embed", (b"accept", b"a" * 5000)), 406),
        (found("/embed", (b"content-length", b"9" * 5000)), 413),
    ],
    ids=["a long name of a problem", "a long Accept", "a Content-Length of more digits than Python reads"],
)
def test_what_was_found_once(service: Service, request_: Request, status: int) -> None:
    reply = service.ask(request_.method, request_.path, headers=request_.headers, body=request_.body)
    assert_sound(request_, reply)
    assert reply.status == status


@pytest.mark.parametrize("examples", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_whatever_is_sent_is_answered_as_the_document_says(service: Service, examples: int) -> None:
    """And leaves nothing behind: no permit, no byte of the account, no model that fails."""
    engine: Engine = service.app.state.engine
    answered: Counter[tuple[str, int]] = Counter()

    @settings(
        max_examples=examples, derandomize=True, database=None, suppress_health_check=list(HealthCheck), deadline=None
    )
    @given(requests())
    def send(request: Request) -> None:
        reply = service.ask(
            request.method, request.path, query=request.query, headers=request.headers, body=request.body
        )
        answered[request.operation.path, reply.status] += 1
        assert_sound(request, reply)
        assert engine.admission.inside("images") == engine.admission.inside("texts") == 0
        assert sum(engine.account.held.values()) == 0

    send()
    assert service.ask("GET", "/health/ready").status == 200
    assert {400, 404, 405, 406, 415, 422} <= {status for _, status in answered}  # it was odd enough
    for path in ("/embed", "/similarity", "/vram"):  # and made sense
        assert answered[path, 200] + answered[path, 207] > examples // 50
