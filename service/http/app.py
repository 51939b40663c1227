"""The ASGI app: routes, and what HTTP needs around the service. Knows HTTP; the work is core.py's."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from encoders.contract.errors import VisiontowerError
from service.engine.engine import Backend, Service
from service.errors import ClientGone, DeadlineExceeded
from service.http import openapi as docs
from service.http import problems
from service.http import request as requests
from service.http.middleware.observe import Observe
from service.http.protocols.native import options as opts
from service.http.protocols.native.responses import Rendered, to_json
from service.http.request import Body
from service.http.web import docs as pages
from service.run.workers import Place
from service.settings import Settings
from service.spec_json import card
from service.telemetry.metrics import CONTENT_TYPE, Metrics

Work: TypeAlias = Callable[..., Coroutine[Any, Any, Rendered]]
Endpoint: TypeAlias = Callable[[Request], Coroutine[Any, Any, Response]]

_PARSE_INLINE_BYTES = 65_536
"""Bodies up to this size are taken apart on the event loop."""


def create_app(
    settings: Settings,
    *,
    backend: Backend,
    clock: Callable[[], float] = time.monotonic,
    on_lost: Callable[[], None] = lambda: None,
    place: Place | None = None,
) -> FastAPI:
    """The app. Encoders load when it starts up.

    backend: the device and its encoders. on_lost: called if the device thread ends on its own. place: among other
    processes behind the same port.
    """
    metrics = Metrics(settings.model, refusals=problems.REFUSALS)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = Service(settings, backend=backend, metrics=metrics, clock=clock, on_lost=on_lost)
        try:
            await service.start()
            app.state.service = service
            if place is not None:
                await place.together()
            yield
            await service.drain()
        finally:
            await service.stop()

    app = _App(
        observed=partial(Observe, metrics=metrics, clock=clock),
        title="visiontower",
        version=version("visiontower"),
        description=docs.DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their code from elsewhere; ours must work offline
        redoc_url=None,
    )
    app.state.metrics = metrics
    app.add_exception_handler(VisiontowerError, _problem)
    app.add_exception_handler(HTTPException, _framework_problem)
    app.add_exception_handler(RequestValidationError, _framework_problem)

    async def embed(request: Request) -> Response:
        return await _answer(request, _service(request).embed, clock=clock)

    async def similarity(request: Request) -> Response:
        return await _answer(request, _service(request).similarity, clock=clock)

    app.add_busy_route("/embed", embed, summary="Images to tokens and pooled vectors", **docs.EMBED)
    app.add_busy_route("/similarity", similarity, summary="Images against texts", **docs.SIMILARITY)

    @app.get("/models", summary="What is served", **docs.MODELS)
    async def models(request: Request) -> Response:
        service = _service(request)
        return _json({"object": "list", "data": [_about(service, model) for model in settings.model]})

    @app.get("/models/{model:path}", summary="One encoder", **docs.MODEL)
    async def model(request: Request, model: str) -> Response:
        service = _service(request)
        return _json(_about(service, service.fleet.id_of(model)))

    @app.get("/vram", summary="What a forward would take, before it runs", **docs.VRAM)
    async def vram(request: Request) -> Response:
        return _json(await _service(request).vram(query=request.query_params.multi_items()))

    @app.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics_page(request: Request) -> Response:
        exposition = metrics.exposition()
        if place is not None:
            exposition = await place.exposition(exposition, port=request.scope["server"][1])
        return Response(exposition, media_type=CONTENT_TYPE)

    @app.get("/health/live", summary="Whether the process answers")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/health/ready", summary="Whether requests can be answered", **docs.READY)
    async def ready(request: Request) -> Response:
        reason = await _service(request).why_not_ready()
        if reason is None:
            return _json({"status": "ready"})
        return _json({"status": "not ready", "reason": reason}, 503)

    @app.get("/problems", summary="All problem types")
    async def problem_types() -> dict[str, list[str]]:
        return {"problems": [f"/problems/{slug}" for slug in problems.slugs()]}

    @app.get("/problems/{slug}", summary="What a problem type means", response_class=PlainTextResponse)
    async def problem_page(slug: str) -> str:
        return problems.page(slug)

    @app.get("/docs", include_in_schema=False)
    async def docs_page() -> Response:
        return HTMLResponse(pages.docs_page(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return RedirectResponse("/docs")

    return app


class _App(FastAPI):
    """FastAPI's app; its busy routes are reached without the layers that it puts around every one.

    A small model's requests notice them. The routes stand in FastAPI's table as well: for the schema, and for whoever
    asks for them by another method.

    observed: goes around all there is.
    """

    def __init__(self, *, observed: Callable[[ASGIApp], ASGIApp], **options: Any) -> None:
        super().__init__(**options)
        self._observed = observed(self._dispatch)
        self._busy: dict[str, tuple[BaseRoute, Endpoint]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI."""
        await self._observed(scope, receive, send)

    def add_busy_route(self, path: str, endpoint: Endpoint, **documentation: Any) -> None:
        """A POST route whose endpoint takes the request as it is and gives the response."""
        self.add_api_route(path, endpoint, methods=["POST"], **documentation)
        self._busy[path] = self.routes[-1], endpoint

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        busy = self._busy.get(scope["path"]) if is_post else None
        if busy is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        scope["route"], endpoint = busy
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except VisiontowerError as error:
            response = await _problem(request, error)
        await response(scope, receive, send)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _answer(request: Request, work: Work, *, clock: Callable[[], float]) -> Response:
    """Read the body, do the work, stop if the deadline passes or the client leaves."""
    service = _service(request)
    started = clock()
    service.door.check()
    try:
        async with asyncio.timeout(service.settings.request_timeout_s):
            body = await _body(request, service.settings)
            query = _query(request.scope["query_string"])
            accept = ",".join(request.headers.getlist("accept"))
            rendered = await _while_present(request, work(body, query=query, accept=accept, started=started))
    except TimeoutError as error:
        raise DeadlineExceeded from error
    except ClientDisconnect as error:
        raise ClientGone from error
    return Response(rendered.content, rendered.status, dict(rendered.headers), rendered.media_type)


@lru_cache(maxsize=64)
def _query(text: bytes) -> opts.Query:
    """Names and values, in order. Kept for a few: most callers send the same again and again."""
    return tuple(parse_qsl(text.decode("latin-1"), keep_blank_values=True))


async def _body(request: Request, settings: Settings) -> Body:
    content = await requests.read(
        request.stream(), content_length=request.headers.get("content-length"), max_bytes=settings.max_body_bytes
    )
    parse = partial(
        requests.parse,
        content,
        content_type=request.headers.get("content-type", ""),
        max_images=settings.max_images,
    )
    return parse() if len(content) <= _PARSE_INLINE_BYTES else await asyncio.to_thread(parse)


async def _while_present(request: Request, work: Coroutine[Any, Any, Rendered]) -> Rendered:
    """The work's result; if the client leaves first, the work is cancelled. Raises ClientGone.

    The work stays in the request's own task: a second one, and waiting for two, was a good part of a small request.
    """
    task = asyncio.current_task()
    assert task is not None
    is_gone = is_done = False

    def on_left(leaving: "asyncio.Task[None]") -> None:
        nonlocal is_gone
        if not is_done and not leaving.cancelled():
            is_gone = True
            task.cancel()

    leaving = asyncio.create_task(_left(request))
    leaving.add_done_callback(on_left)
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and task.uncancel() == 0:
            raise ClientGone from None
        raise  # the deadline's, or the server's own end
    finally:
        is_done = True
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _problem(request: Request, error: Exception) -> Response:
    slug = problems.problem_type(error).slug
    if slug in problems.REFUSALS:
        request.app.state.metrics.rejected(slug)
    members = problems.problem(error)
    return _json(members, members["status"], media_type=problems.MEDIA_TYPE, headers=problems.headers(error))


async def _framework_problem(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 422
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return _json(problems.of_status(status), status, media_type=problems.MEDIA_TYPE, headers=headers)


def _json(
    value: object, status: int = 200, *, media_type: str = "application/json", headers: dict[str, str] | None = None
) -> Response:
    return Response(to_json(value), status, headers, media_type)


def _about(service: Service, model: str) -> dict[str, object]:
    """The public part of a spec, and the model's state."""
    state = "failed"
    if model not in service.fleet.loaded:
        state = "not loaded"
    elif service.is_model_ready(model):
        state = "ready"
    return {**card(service.fleet.specs[model]), "state": state}
