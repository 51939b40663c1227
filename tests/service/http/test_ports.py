"""The port for /metrics and /health: these are there and nowhere else, and nothing else is there."""

import ctypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from pydantic import ValidationError

from service.http.app import create_app
from service.http.siblings import Siblings
from service.settings import Settings
from tests.support.serving import PNG, assert_problem, backend_of, image_bytes

pytestmark = pytest.mark.anyio
PUBLIC, OWN = 8000, 40_000
PROBES = ("/metrics", "/health/live", "/health/ready")


@asynccontextmanager
async def ports(
    *numbers: int, metrics_port: int | None, siblings: Siblings | None = None
) -> AsyncIterator[list[httpx.AsyncClient]]:
    """A client of each port of one service."""
    settings = Settings(model=("fake:vit",), metrics_port=metrics_port)
    app = create_app(settings, backend=backend_of(), siblings=siblings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        yield [httpx.AsyncClient(transport=transport, base_url=f"http://service:{number}") for number in numbers]


async def test_metrics_and_health_are_there_and_nowhere_else() -> None:
    async with ports(PUBLIC, 9000, metrics_port=9000) as (public, probes):
        for path in PROBES:
            assert (await probes.get(path)).status_code == 200
            problem = assert_problem(await public.get(path), 404, "on-another-port")
            assert problem["port"] == 9000


async def test_nothing_else_is_there() -> None:
    async with ports(PUBLIC, 9000, metrics_port=9000) as (public, probes):
        for path in ("/", "/docs", "/web/page.js", "/models", "/problems", "/nowhere", "/metricsx", "/health"):
            assert_problem(await probes.get(path), 404, "on-another-port")
        assert_problem(await probes.post("/embed", content=image_bytes(), headers=PNG), 404, "on-another-port")
        in_form = await probes.post("/v1/embeddings", json={"input": "x"})
        assert (in_form.status_code, "error" in in_form.json()) == (404, True)
        assert (await public.get("/models")).status_code == 200
        assert (await public.post("/embed", content=image_bytes(), headers=PNG)).status_code == 200
        schema = (await public.get("/openapi.json")).json()
    assert not [path for path in schema["paths"] if path in PROBES]


async def test_without_one_all_are_on_the_service_s_port() -> None:
    async with ports(PUBLIC, metrics_port=None) as (public,):
        for path in (*PROBES, "/models"):
            assert (await public.get(path)).status_code == 200


@pytest.mark.parametrize("metrics_port", [None, 9000])
async def test_the_port_on_which_a_process_answers_for_itself_alone_has_nothing_but_them(
    metrics_port: int | None,
) -> None:
    siblings = Siblings(0, OWN, 1, (ctypes.c_bool * 1)(True), (ctypes.c_uint64 * 1)())
    async with ports(PUBLIC, OWN, metrics_port=metrics_port, siblings=siblings) as (public, own):
        assert (await own.get("/metrics")).status_code == 200
        assert_problem(await own.get("/models"), 404, "on-another-port")
        assert (await public.get("/health/live")).status_code == (200 if metrics_port is None else 404)


def test_it_is_another_port() -> None:
    with pytest.raises(ValidationError, match="metrics_port and port are both 9000"):
        Settings(port=9000, metrics_port=9000)
    assert Settings(port=0, metrics_port=0).metrics_port == 0
