"""The ASGI app: one list of middleware around one table of routes.

Every request passes the middleware, whatever its route. Behind it, the protocols' routes are looked up by method and
path. All others go through FastAPI's own layers, which cost a small model's request a noticeable part of its time.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from fastapi import FastAPI
from fastapi.routing import APIRoute
from opentelemetry.trace import TracerProvider
from pydantic_settings import SettingsError
from starlette.datastructures import MutableHeaders
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.gate import Gate
from service.engine.backend import Backend
from service.engine.engine import Engine
from service.http import openapi, problems, routes
from service.http.exchange import Dispatch, Exchange
from service.http.middleware import middleware
from service.http.protocol import Protocol
from service.http.protocols import PROTOCOLS
from service.http.readers import Readers
from service.http.siblings import Siblings
from service.http.web import pages
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracing

_log = logging.getLogger(__name__)


def create_app(
    settings: Settings,
    *,
    backend: Backend | None = None,
    clock: Callable[[], float] = time.monotonic,
    siblings: Siblings | None = None,
    protocols: Sequence[Protocol] | None = None,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """The app. Encoders load when it starts up.

    backend: as of Engine. siblings: the other processes behind the same port. protocols: to serve, in
    place of those that the settings name. tracer_provider: takes the traces; else the collector of the settings does,
    or OpenTelemetry's global provider, if there is one by now. Raises SettingsError for keys that cannot be read,
    and for a file that cannot keep what they have used.
    """
    if protocols is None:
        protocols = [PROTOCOLS[name] for name in settings.protocols]
    metrics = Metrics(settings.model, refusals=problems.REFUSALS)
    tracing = Tracing.of(settings.traces_endpoint, share=settings.traces_share, provider=tracer_provider)
    gate = None
    if settings.has_keys:
        gate = Gate(settings.keys, settings.keys_file, usage=settings.keys_usage, clock=clock)
    named = (settings.metrics_port, None if siblings is None else siblings.own)
    probe_ports = frozenset(port for port in named if port is not None)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            made = Engine(settings, backend=backend, metrics=metrics, clock=clock)
        except SettingsError as error:  # what raises in here is a traceback to uvicorn, which is not shown
            _log.critical("cannot serve: %s", error)
            raise
        async with made as engine:
            app.state.engine = engine
            if siblings is not None:
                await siblings.together()
            yield
            await engine.drain()
        readers.close()
        if gate is not None:
            gate.close()
        if tracing is not None:
            await tracing.close()

    readers = Readers()
    app = _App(
        readers=readers,
        title="visiontower",
        version=version("visiontower"),
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        middleware=middleware(
            settings,
            metrics=metrics,
            clock=clock,
            tracing=tracing,
            probe_ports=probe_ports,
            gate=gate,
            protocols=protocols,
        ),
        docs_url=None,  # FastAPI's pages load their code from elsewhere; ours must work offline
        redoc_url=None,
        # Nor does it look for OpenTelemetry's providers at each request: traces are ours (middleware/traced.py).
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.siblings = siblings
    app.state.metrics = metrics
    app.state.gate = gate
    app.state.probe_ports = probe_ports
    routes.add(app, has_probes=settings.metrics_port is None)
    pages.add(app)
    for each in [*app.routes]:
        if isinstance(each, APIRoute) and each.methods == {"GET"}:
            app.add_api_route(each.path, each.endpoint, methods=["HEAD"], include_in_schema=False)
    for protocol in protocols:
        app.add_protocol(protocol)
        for route in protocol.routes:
            metrics.know_route(route.path, protocol.name, has_keys=gate is not None)
    return app


class _App(FastAPI):
    """FastAPI's app, whose protocols' routes do without FastAPI's own layers. They do not do without the middleware."""

    def __init__(self, *, readers: Readers, **options: Any) -> None:
        super().__init__(**options)
        self._readers = readers
        self._exchanges: list[Exchange] = []
        self._protocols: list[Protocol] = []

    def add_protocol(self, protocol: Protocol) -> None:
        """Add its routes, to FastAPI's table too: for the schema, and for whoever asks for them by another method."""
        self._protocols.append(protocol)
        for route in protocol.routes:
            exchange = Exchange(protocol, route, readers=self._readers)
            self._exchanges.append(exchange)
            self.add_api_route(
                route.path, exchange.respond, methods=[route.method], tags=[protocol.name], **route.documentation
            )

    def protocol_of(self, path: str) -> Protocol | None:
        """The protocol whose form an error on this path has, if it is not ours: of the longest prefix."""
        prefixes = {prefix: each for each in self._protocols for prefix in each.under}
        matching = (prefix for prefix in prefixes if path == prefix or path.startswith(f"{prefix}/"))
        longest = max(matching, key=len, default=None)
        return None if longest is None else prefixes[longest]

    def route_of(self, scope: Scope) -> BaseRoute | None:
        """The route that takes such a request, else one that would by another method."""
        found = {route.matches(scope)[0]: route for route in reversed(self.routes)}  # of several the first
        return found.get(Match.FULL, found.get(Match.PARTIAL))

    def build_middleware_stack(self) -> ASGIApp:
        """As Starlette's: called once, before the first request. The whole of the list goes around everything.

        FastAPI's outermost layer answers an unforeseen error in plain text. It is left out: Observe answers it.
        """
        around, self.user_middleware = self.user_middleware, []
        others = super().build_middleware_stack()
        assert isinstance(others, ServerErrorMiddleware)
        app: ASGIApp = Dispatch(self._exchanges, others=_without_hosts(others.app))
        self.user_middleware = around
        for each in reversed(around):
            app = each.cls(app, *each.args, **each.kwargs)
        return app


def _without_hosts(app: ASGIApp) -> ASGIApp:
    """Redirects lead to a path alone.

    The framework redirects to a path with, or without, its last slash. The host in its address is whatever the request
    has named, and the scheme is not that of a proxy.
    """

    async def redirecting(scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.TEMPORARY_REDIRECT:
                headers = MutableHeaders(raw=message["headers"])
                headers["location"] = urlunsplit(urlsplit(headers["location"])._replace(scheme="", netloc=""))
            await send(message)

        await app(scope, receive, sending)

    return redirecting
