"""Every route passes the same list of middleware: one that denies everything stops every route there is."""

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.middleware.cross_site import RefuseCrossSite
from service.http.middleware.observe import Observe
from tests.support.serving import app_of, assert_problem, client_of, image_bytes

pytestmark = pytest.mark.anyio


class DenyAll:
    """Lets nothing but the lifespan through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": b"denied"})


def every_route(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path, parameters filled in; of the whole table."""
    found = []
    for route in app.routes:
        assert isinstance(route, Route), f"{route} is no plain route: say here how it is asked"
        path = route.path.replace("{model:path}", "fake:vit").replace("{slug}", "internal")
        path = path.replace("{path:path}", "page.css")
        assert "{" not in path, path
        found += [(method, path) for method in sorted(route.methods or ())]
    return found


async def test_a_middleware_that_denies_everything_stops_every_route() -> None:
    app = app_of()
    app.add_middleware(DenyAll)
    async with client_of(app) as client:
        asked: dict[tuple[str, str], Any] = {
            (method, path): await client.request(method, path, content=image_bytes() if method == "POST" else None)
            for method, path in [*every_route(app), ("GET", "/nowhere"), ("DELETE", "/embed")]
        }
    assert {"/embed", "/similarity", "/classify", "/vram", "/models", "/metrics", "/health/ready", "/docs"} <= {
        p for _, p in asked
    }
    assert {route: answer.status_code for route, answer in asked.items() if answer.status_code != 403} == {}


async def test_the_same_routes_answer_without_it() -> None:
    app = app_of()
    async with client_of(app) as client:
        for method, path in every_route(app):
            answer = await client.request(method, path, content=image_bytes() if method == "POST" else None)
            assert answer.status_code not in (403, 404, 405), (method, path)
            assert answer.headers["x-request-id"], "observed"
            if method == "GET":
                assert (await client.head(path)).status_code == answer.status_code, path


async def test_an_unforeseen_error_is_a_problem_with_the_request_s_id(caplog: pytest.LogCaptureFixture) -> None:
    """On FastAPI's own routes too: FastAPI would answer in plain text."""
    app = app_of()

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("secret")

    async with client_of(app) as client:
        answer = await client.get("/broken")
    problem = assert_problem(answer, 500, "internal")
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text
    assert "secret" in caplog.text


async def test_the_list_stands_in_one_place() -> None:
    assert [each.cls for each in app_of().user_middleware] == [Observe, RefuseCrossSite]  # type: ignore[comparison-overlap]  # starlette has factories
