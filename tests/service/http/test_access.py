"""Access keys over HTTP: every route of every protocol asks for one, and a key gets what it may have and no more."""

import asyncio
import json
import logging
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic_settings import SettingsError

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.encoder import Encoder
from service.access.keys import digest_of
from service.caller import CALLER
from service.engine.values import ModelsRequest
from service.http.app import create_app
from service.http.middleware.access import presented
from service.http.problems import write_problem
from service.http.protocol import Answer, Asked, Incoming, Protocol, Route
from service.settings import Settings
from tests.service.http.test_one_way_in import every_route
from tests.support.keys import bearer, file_of, secret_of
from tests.support.serving import PNG, Gate, app_of, assert_problem, backend_of, client_of, image_bytes, serving

pytestmark = pytest.mark.anyio

OPEN = {
    "/", "/docs", "/openapi.json", "/web/page.css", "/problems", "/problems/internal", "/health/live", "/health/ready",
    "/v2/health/live", "/v2/health/ready", "/ping",
}  # fmt: skip
EMBEDDINGS = {"model": "fake:vit", "input": ["a"]}


@asynccontextmanager
async def guarded(
    tmp_path: Path, *encoders: Encoder, settings: dict[str, Any] | None = None, **keys: dict[str, Any]
) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a key, of a server with these; without any, of one that has the key `a`."""
    path = file_of(tmp_path / "keys.toml", **(keys or {"a": {}}))
    async with serving(*encoders, keys_file=path, **(settings or {})) as client:
        yield client


async def post_image(client: httpx.AsyncClient, key: str = "a", **query: Any) -> httpx.Response:
    return await client.post("/embed", content=image_bytes(), headers=PNG | bearer(key), params=query)


async def nothing_comes() -> Any:
    raise AssertionError("the body was read")


def into(sent: list[Any]) -> Callable[[Any], Awaitable[None]]:
    """As ASGI's send."""

    async def send(message: Any) -> None:
        sent.append(message)

    return send


async def images_of_today(client: httpx.AsyncClient, key: str = "a", *, per_day: int) -> int:
    """By what is left of it."""
    files = [("image", image_bytes(size=(8, 8)))] * per_day
    answer = await client.post("/embed", files=files, headers=bearer(key))
    return per_day - int(assert_problem(answer, 429, "day-used-up")["left"])


async def test_every_route_asks_for_a_key_but_for_health_and_the_pages(tmp_path: Path) -> None:
    app = app_of(keys_file=file_of(tmp_path / "keys.toml", a={}))
    asked = [*every_route(app), ("GET", "/nowhere"), ("DELETE", "/embed"), ("OPTIONS", "/embed"), ("POST", "/v1/x")]
    async with client_of(app) as client:
        statuses = {}
        for method, path in asked:
            content = image_bytes() if method == "POST" else None
            statuses[path] = (await client.request(method, path, content=content)).status_code
            allowed = await client.request(method, path, content=content, headers=bearer("a"))
            assert allowed.status_code != 401, path
    assert {path for path, status in statuses.items() if status != 401} == OPEN
    assert {"/embed", "/metrics", "/models", "/v1/embeddings", "/v2/embed", "/predict", "/v2"} <= statuses.keys() - OPEN


KEY_HEADERS: list[dict[str, str]] = [
    {"authorization": f"Bearer {secret_of('a')}"},
    {"authorization": f"bearer   {secret_of('a')} "},
    {"x-api-key": secret_of("a")},
    {"api-key": secret_of("a")},
    {"authorization": f"BEARER {secret_of('a')}", "x-api-key": secret_of("a")},
    {"authorization": "Basic dTpw", "x-api-key": secret_of("a")},
]
NO_KEY: list[tuple[list[tuple[bytes, bytes]], str]] = [
    ([], "none was sent"),
    ([(b"authorization", b"")], "none was sent"),
    ([(b"authorization", b"Bearer")], "none was sent"),
    ([(b"authorization", b"Bearer ")], "none was sent"),
    ([(b"authorization", f"Basic {secret_of('a')}".encode())], "none was sent"),
    ([(b"authorization", secret_of("a").encode())], "none was sent"),
    ([(b"cookie", f"key={secret_of('a')}".encode())], "none was sent"),
    ([(b"authorization", b"Bearer vt_wrong")], "none of this server's"),
    ([(b"authorization", f"Bearer {secret_of('A')}".encode())], "none of this server's"),
    ([(b"authorization", b"Bearer \xff\xfe\x00")], "none of this server's"),
    ([(b"authorization", b"Bearer " + b"x" * 30_000)], "none of this server's"),
    ([(b"authorization", f"Bearer {digest_of(secret_of('a')).hex()}".encode())], "none of this server's"),
    (
        [(b"authorization", f"Bearer {secret_of('a')}".encode()), (b"authorization", b"Bearer vt_b")],
        "different keys were sent",
    ),
    ([(b"authorization", f"Bearer {secret_of('a')}".encode()), (b"api-key", b"vt_b")], "different keys were sent"),
]


async def test_a_key_comes_in_any_of_these_headers(tmp_path: Path) -> None:
    async with guarded(tmp_path) as client:
        for headers in KEY_HEADERS:
            assert (await client.get("/models", headers=headers)).status_code == 200, headers


async def test_whatever_else_is_sent_is_no_key(tmp_path: Path) -> None:
    in_query = f"/embed?api_key={secret_of('a')}&key={secret_of('a')}"
    async with guarded(tmp_path) as client:
        for headers, why in NO_KEY:
            answer = await client.post(in_query, headers=headers)
            assert why in assert_problem(answer, 401, "invalid-key")["detail"], headers
            assert answer.headers["www-authenticate"] == "Bearer"
            assert secret_of("a") not in answer.text


def test_the_same_key_in_two_headers_is_one() -> None:
    headers = [
        (b"authorization", b"Bearer x"),
        (b"Authorization", b"Bearer z"),
        (b"api-key", b"x"),
        (b"x-api-key", b""),
    ]
    assert presented(headers) == {b"x"}


async def test_a_body_is_not_read_before_the_key_is_known(tmp_path: Path) -> None:
    app = app_of(keys_file=file_of(tmp_path / "keys.toml", a={}))
    sent: list[Any] = []
    async with client_of(app):
        headers = [(b"content-type", b"image/png"), (b"content-length", b"1000000")]
        scope = {"type": "http", "method": "POST", "path": "/embed", "query_string": b"", "headers": headers}
        await app({**scope, "client": None, "server": ("s", 80), "http_version": "1.1"}, nothing_comes, into(sent))
    assert sent[0]["status"] == 401


async def test_no_spelling_of_a_path_goes_around_the_key(tmp_path: Path) -> None:
    """Whatever is not refused is a page, or nothing: no route takes a path in another spelling than the open ones."""
    app = app_of(keys_file=file_of(tmp_path / "keys.toml", a={}))
    spellings = [
        "/health/live/../../models", "/web/../models", "/web/..%2fmodels", "//models", "/./models", "/models/",
        "/problems/../models", "/Models", "/health/live/", "/web/%2e%2e/models", "/ping/../models", "", "/web//models",
    ]  # fmt: skip
    statuses = {}
    async with client_of(app):
        for path in spellings:
            for root in ("", "/vt"):
                sent: list[Any] = []
                scope: dict[str, Any] = {"type": "http", "method": "GET", "path": root + path, "root_path": root}
                scope |= {"query_string": b"", "headers": [], "client": None, "server": ("s", 80)}
                await app({**scope, "http_version": "1.1"}, nothing_comes, into(sent))
                statuses[root + path] = sent[0]["status"]
    assert set(statuses.values()) <= {401, 404, 307}, statuses


def said(answer: httpx.Response, protocol: str) -> str:
    """The message of an error, from where the protocol's clients read it."""
    error = answer.json()
    where = {"openai": lambda: error["error"]["message"], "cohere": lambda: error["message"]}
    where |= {"oip": lambda: error["error"], "immich": lambda: error["detail"]}
    return str(where[protocol]())


async def test_each_protocol_refuses_in_its_own_form(tmp_path: Path) -> None:
    """Without a key, of another model, too fast, too much at once, and the day used up."""
    limits: dict[str, dict[str, Any]] = {
        "fast": {"requests_per_second": 0.01},
        "other": {"models": ["fake:other"]},
        "few": {"images_in_flight": 1},
    }
    image = {"image": ("i.png", image_bytes(), "image/png")}
    entries = {"entries": json.dumps({"clip": {"visual": {"modelName": "ViT-B-32__openai"}}})}
    model = "openclip:ViT-B-32@openai"
    infer = {"inputs": [{"name": "texts", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}
    asked: dict[str, tuple[str, dict[str, Any]]] = {
        "openai": ("/v1/embeddings", {"json": {"model": model, "input": ["a"]}}),
        "cohere": ("/v2/embed", {"json": {"model": model, "texts": ["a"], "input_type": "search_query"}}),
        "oip": (f"/v2/models/{model}/infer", {"json": infer}),
        "immich": ("/predict", {"files": image, "data": entries}),
    }
    spec = fake_spec(model)
    async with guarded(tmp_path, FakeEncoder(spec), **limits) as client:
        for name, (path, body) in asked.items():
            none = await client.post(path, **body)
            other = await client.post(path, **body, headers=bearer("other"))
            assert (none.status_code, other.status_code) == (401, 403), name
            assert none.headers["www-authenticate"] == "Bearer"
            assert "asks for an access key" in said(none, name)
            assert "may not use" in said(other, name)
            assert "fake:other" in said(other, name)
        first = await client.post(*asked["openai"][:1], **asked["openai"][1], headers=bearer("fast"))
        assert first.status_code == 200, first.text
        for name, (path, body) in asked.items():
            fast = await client.post(path, **body, headers=bearer("fast"))
            assert fast.status_code == 429, name
            assert 90 <= int(fast.headers["retry-after"]) <= 100
        two = await client.post("/embed", files=[("image", image_bytes())] * 2, headers=bearer("few"))
        assert assert_problem(two, 413, "too-many-images-for-key")["limit"] == 1


async def test_openai_s_sdk_is_told_in_its_own_codes(tmp_path: Path) -> None:
    keys: dict[str, dict[str, Any]] = {"fast": {"requests_per_second": 0.01}, "day": {"images_per_day": 1}}
    picture = {**EMBEDDINGS, "input": ["data:image/png;base64,iVBORw0KGgo="]}
    async with guarded(tmp_path, settings={"keys": ()}, **keys) as client:
        await client.get("/v1/models", headers=bearer("fast"))
        unknown = await client.post("/v1/embeddings", json=EMBEDDINGS)
        fast = await client.post("/v1/embeddings", json=EMBEDDINGS, headers=bearer("fast"))
        await post_image(client, "day")
        day = await client.post("/v1/embeddings", json=picture, headers=bearer("day"))
    errors = [answer.json()["error"] for answer in (unknown, fast, day)]
    assert [(each["type"], each["code"]) for each in errors] == [
        ("invalid_request_error", "invalid_api_key"),
        ("requests", "rate_limit_exceeded"),
        ("insufficient_quota", "insufficient_quota"),
    ]
    assert day.headers["x-should-retry"] == "false"
    assert "x-should-retry" not in fast.headers


async def test_a_key_sees_and_uses_its_own_models(tmp_path: Path) -> None:
    encoders = [FakeEncoder(fake_spec(name)) for name in ("fake:a", "fake:b", "fake:c")]
    async with guarded(tmp_path, *encoders, all={}, some={"models": ["fake:b", "fake:c", "fake:gone"]}) as client:
        for key, seen in (("all", ["fake:a", "fake:b", "fake:c"]), ("some", ["fake:b", "fake:c"])):
            lists = {
                "native": [m["id"] for m in (await client.get("/models", headers=bearer(key))).json()["data"]],
                "openai": [m["id"] for m in (await client.get("/v1/models", headers=bearer(key))).json()["data"]],
                "oip": [m["name"] for m in (await client.post("/v2/repository/index", headers=bearer(key))).json()],
            }
            assert lists == dict.fromkeys(lists, seen), key
        assert (await post_image(client, "some", model="fake:b")).status_code == 200
        for asked in ({"model": "fake:a"}, {}, {"model": "fake:gone_too"}):
            problem = assert_problem(await post_image(client, "some", **asked), 403, "model-not-allowed")
            assert problem["allowed"] == ["fake:b", "fake:c", "fake:gone"]
        assert_problem(await client.get("/models/fake:a", headers=bearer("some")), 403, "model-not-allowed")
        assert_problem(await client.get("/vram?model=fake:a", headers=bearer("some")), 403, "model-not-allowed")
        for path in ("/v1/models/fake:a", "/v2/models/fake:a", "/v2/models/fake:a/ready"):
            assert (await client.get(path, headers=bearer("some"))).status_code == 403, path
            assert (await client.get(path, headers=bearer("all"))).status_code == 200, path
        assert (await client.get("/models/fake:b", headers=bearer("some"))).status_code == 200
        gone = assert_problem(await post_image(client, "some", model="fake:gone"), 404, "unknown-model")
        assert gone["served"] == ["fake:b", "fake:c"], "no others are named"
        assert (await client.get("/models/fake:gone", headers=bearer("some"))).json()["served"] == gone["served"]
        entries = {"entries": json.dumps({"clip": {"visual": {"modelName": "ViT-B-32__openai"}}})}
        of_immich = await client.post("/predict", data=entries, files={"image": b"1"}, headers=bearer("some"))
        assert of_immich.status_code == 403
        assert "fake:a" not in of_immich.text


async def test_images_in_flight_are_limited_for_each_key(tmp_path: Path) -> None:
    gate = Gate()
    keys: dict[str, dict[str, Any]] = {"a": {"images_in_flight": 1}, "b": {"images_in_flight": 1}}
    async with guarded(tmp_path, FakeEncoder(before=gate), **keys) as client:
        gate.close()
        first = asyncio.create_task(post_image(client, "a"))
        await gate.someone_inside()
        problem = assert_problem(await post_image(client, "a"), 429, "images-in-flight")
        assert (problem["limit"], problem["inside"], problem["retry_after_s"]) == (1, 1, 1)
        text = await asyncio.create_task(client.post("/v1/embeddings", json={**EMBEDDINGS, "input": []}))
        assert text.status_code == 401
        second = asyncio.create_task(post_image(client, "b"))
        gate.is_open.set()
        assert [(await each).status_code for each in (first, second)] == [200, 200]
        assert (await post_image(client, "a")).status_code == 200


async def test_who_leaves_gives_room_to_the_next(tmp_path: Path) -> None:
    gate = Gate()
    async with guarded(tmp_path, FakeEncoder(before=gate), a={"images_in_flight": 1, "images_per_day": 3}) as client:
        gate.close()
        first = asyncio.create_task(post_image(client))
        await gate.someone_inside()
        first.cancel()
        await asyncio.wait([first])
        gate.is_open.set()
        assert (await post_image(client)).status_code == 200


async def test_images_count_once_they_are_answered_be_it_by_an_error_of_theirs(tmp_path: Path) -> None:
    fails = False
    coming: list[bool] = []
    """Whether each of the next forwards works."""

    def before(batch: int) -> None:
        if fails or (coming and not coming.pop(0)):
            raise RuntimeError("broken")

    limits = {"images_per_day": 20, "images_in_flight": 20}
    async with guarded(tmp_path, FakeEncoder(before=before), a=limits, settings={"max_batch": 1}) as client:
        assert (await client.post("/embed", content=b"\x89PNG broken", headers=PNG | bearer("a"))).status_code == 415
        bad = [("image", image_bytes()), ("image", b"\x89PNG broken")]
        assert (await client.post("/embed", files=bad, headers=bearer("a"))).status_code == 207
        assert await images_of_today(client, per_day=20) == 3
        for refused in ({"layer": "99"}, {"model": "fake:none"}, {"resolution": "10000"}):
            assert (await post_image(client, **refused)).status_code in (404, 422), refused
        assert (await client.get("/vram", headers=bearer("a"))).status_code == 200
        assert await images_of_today(client, per_day=20) == 3, "refused ones do not count"
        pictures = ["data:;base64," + b64encode(each).decode() for each in (image_bytes(), image_bytes(), b"broken")]
        body = {"model": "fake:vit", "input": [{"image": each} for each in pictures]}
        assert (await client.post("/v1/embeddings", json=body, headers=bearer("a"))).status_code == 422
        assert await images_of_today(client, per_day=20) == 4, "one is refused for its own sake, and two with it"
        coming += [True, False]
        body = {"model": "fake:vit", "input": body["input"][:2]}
        assert (await client.post("/v1/embeddings", json=body, headers=bearer("a"))).status_code == 500
        assert await images_of_today(client, per_day=20) == 4, "nobody has the vector of the other"
        fails = True
        failed = await post_image(client)
        assert_problem(failed, 500, "encoder-failed")
        assert await images_of_today(client, per_day=20) == 4, "the server's failures do not"


async def test_metrics_and_logs_say_the_key_s_name_and_never_the_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with guarded(
        tmp_path, a={"models": ["fake:vit"]}, fast={"requests_per_second": 0.01}, idle={"images_per_day": 9}
    ) as client:
        await post_image(client)
        await post_image(client, model="fake:other")
        for method, path in (("GET", "/models"), ("POST", "/v2/models/guess/infer"), ("GET", "/guess")):
            await client.request(method, path, headers={"authorization": "Bearer vt_guess"})
        for _ in range(2):
            await client.get("/models", headers=bearer("fast"))
        text = (await client.get("/metrics", headers=bearer("a"))).text
    found = {
        (sample.name.removeprefix("visiontower_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["key_requests_total", "a", "200"] == 1
    assert found["key_requests_total", "a", "403"] == 1
    assert found["key_requests_total", "fast", "429"] == 1
    assert found["key_images_total", "a"] == 1
    assert found["key_refused_total", "a", "models"] == 1
    of_idle = {key[2]: value for key, value in found.items() if key[:2] == ("key_refused_total", "idle")}
    assert of_idle == {"images_per_day": 0}
    assert found["rejected_total", "invalid-key"] == 3
    assert found["requests_total", "native", "/models", "401"] == 1
    assert found["requests_total", "open-inference", "/v2/models/{model:path}/infer", "401"] == 1
    assert found["requests_total", "native", "other", "401"] == 1
    for status in ("401", "500"):
        assert found["requests_total", "native", "/similarity", status] == 0
    assert found["rejected_total", "requests-too-fast"] == 1
    assert found["rejected_total", "day-used-up"] == 0
    assert "vt_" not in text
    lines = [record for record in caplog.records if getattr(record, "route", "") == "/embed"]
    assert [line.key for line in lines] == ["a", "a"]  # type: ignore[attr-defined]  # a field of the log line
    assert all(secret not in str(vars(record)) for record in caplog.records for secret in ("vt_a", "vt_guess"))


async def test_protocols_whose_clients_send_none_may_be_opened(tmp_path: Path) -> None:
    async with guarded(tmp_path, settings={"keyless_protocols": ("immich", "cohere")}) as client:
        assert (await client.post("/v2/embed", json={})).status_code == 400
        assert (await client.post("/predict")).status_code == 415
        for path in ("/v1/embeddings", "/v2", "/v2/models/fake:vit/infer", "/embed"):
            assert (await client.post(path, json={})).status_code == 401, path


async def test_a_new_key_works_within_a_second_and_a_removed_one_no_longer(tmp_path: Path) -> None:
    path = file_of(tmp_path / "keys.toml", a={})
    ahead = 0.0
    settings = Settings(model=("fake:vit",), keys_file=path)
    app = create_app(settings, backend=backend_of(), clock=lambda: time.monotonic() + ahead)
    async with client_of(app) as client:
        assert (await post_image(client)).status_code == 200
        file_of(path, b={"models": ["fake:vit"]})
        ahead = 1.0
        assert (await post_image(client)).status_code == 200, "it may be that more of it is still to be written"
        ahead = 1.1
        assert (await post_image(client)).status_code == 401
        assert (await post_image(client, "b")).status_code == 200
        metrics = (await client.get("/metrics", headers=bearer("b"))).text
    assert 'visiontower_key_refused_total{key="b",reason="models"} 0.0' in metrics


async def test_turns_go_by_the_key_where_there_is_one(tmp_path: Path) -> None:
    """All clients behind a proxy have one address; their keys tell them apart."""
    callers: list[str | None] = []

    def read(incoming: Incoming) -> Asked:
        callers.append(CALLER.get())
        return Asked(ModelsRequest())

    def write(result: Any, reply: None) -> Answer:
        return Answer(b"", "text/plain")

    noting = Protocol("noting", (Route("/noted", read, write, method="GET"),), write_problem)
    settings = Settings(model=("fake:vit",), keys_file=file_of(tmp_path / "keys.toml", a={}))
    async with client_of(create_app(settings, backend=backend_of(), protocols=[noting])) as client:
        assert (await client.get("/noted", headers=bearer("a"))).status_code == 200
    assert callers == ["a"]


async def test_without_keys_whatever_a_client_sends_is_not_looked_at() -> None:
    async with serving() as client:
        for headers in ({}, {"authorization": "Bearer x"}, {"api-key": "y"}):
            answer = await client.post("/embed", content=image_bytes(), headers={**PNG, **headers})
            assert answer.status_code == 200
        text = (await client.get("/metrics")).text
    assert "visiontower_key_refused_total{" not in text


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"keys_file": "nowhere.toml"}, "nowhere.toml cannot be read: No such file"),
        ({"keys_file": "."}, "cannot be read: Is a directory"),
        ({"keys": "a"}, "an entry is not NAME=sha256:DIGEST"),
        ({"keys": f"a=sha256:{'0' * 64},a=sha256:{'1' * 64}"}, "two keys 'a'"),
        ({"keys_usage": "usage"}, "no access key is: set keys_file"),
        ({"keyless_protocols": "native"}, "Input should be 'openai'"),
    ],
)
def test_what_is_wrong_with_the_keys_is_said_at_start(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Settings(**settings)


def test_a_file_that_cannot_keep_what_keys_use_is_said_at_start() -> None:
    settings = Settings(keys=(f"a=sha256:{'0' * 64}",), keys_usage=Path("/nowhere/usage"))
    with pytest.raises(SettingsError, match=r"^keys_usage /nowhere/usage cannot keep .* unable to open"):
        create_app(settings)


def test_keys_that_break_between_the_settings_and_the_start_are_an_error_of_the_settings(tmp_path: Path) -> None:
    """As when one of several processes is replaced: it has the settings, and no others' keys."""
    settings = Settings(keys_file=file_of(tmp_path / "keys.toml", a={}))
    (tmp_path / "keys.toml").write_text("[a")
    with pytest.raises(SettingsError, match=r"keys\.toml: "):
        create_app(settings)


def test_settings_read_the_keys_and_make_nothing(tmp_path: Path) -> None:
    """`visiontower doctor` and `pull` have the server's settings, and may run as another user."""
    Settings(keys=(f"a=sha256:{'0' * 64}",), keys_usage=tmp_path / "usage")
    assert not list(tmp_path.iterdir())
