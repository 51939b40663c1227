"""The routes that are no protocol's: models, metrics, health, problems, the API's description."""

from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated

from fastapi import FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from encoders.adapters.catalog import RECOMMENDED
from encoders.contract.errors import VisiontowerError
from service.access.keys import Key
from service.engine.engine import Engine
from service.http import openapi, problems
from service.http.allowed import require_model
from service.http.errors import MethodNotAllowed, NoSuchRoute
from service.http.exchange import own_path, record_of
from service.http.json import to_json
from service.http.noting import note_refusal
from service.http.protocol import Answer
from service.spec_json import spec_json
from service.telemetry.metrics import TEXT, Form


def add(app: FastAPI, *, has_probes: bool) -> None:
    """Add them, and the form of errors outside the protocols.

    has_probes: whether the API's description has /metrics and /health, which may be on another port.
    """
    app.add_exception_handler(VisiontowerError, _problem)
    app.add_exception_handler(HTTPException, _framework_problem)
    app.add_exception_handler(RequestValidationError, _framework_problem)

    @app.get("/models", summary="The served encoders", **openapi.MODELS)
    async def models(request: Request) -> Response:
        engine = _engine(request)
        key = _key(request)
        ids = engine.models.ids if key is None else key.usable(engine.models.ids)
        cards = [_card(engine, model) for model in ids]
        return _json({"object": "list", "data": cards, "recommended": [asdict(each) for each in RECOMMENDED]})

    @app.get("/models/{model:path}", summary="One encoder", **openapi.MODEL)
    async def model(request: Request, model: str) -> Response:
        engine, key = _engine(request), _key(request)
        if key is not None:
            require_model(model, key, engine.models)
        return _json(_card(engine, engine.models.id_of(model)))

    @app.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=PlainTextResponse,
        include_in_schema=has_probes,
        **openapi.METRICS,
    )
    async def metrics(request: Request) -> Response:
        engine = _engine(request)
        siblings = request.app.state.siblings
        # Several processes add up their counts, of which text is enough; exemplars cannot be added up.
        form = Form.of(request.headers.get("accept", "")) if siblings is None else TEXT
        exposition = engine.metrics.exposition(engine.now(), form=form)
        if siblings is not None:
            exposition = await siblings.exposition(exposition, port=request.scope["server"][1])
        return Response(exposition, headers={"content-type": form.content_type})

    @app.get("/health/live", summary="Whether the process answers", include_in_schema=has_probes)
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/health/ready", summary="Whether requests can be answered", include_in_schema=has_probes, **openapi.READY)
    async def ready(request: Request, model: str | None = None) -> Response:
        engine = _engine(request)
        asked = engine.models.ids if model is None else (engine.models.id_of(model),)
        reason = await engine.why_not_ready(model)
        states = {each: _state(engine, each) for each in asked}
        if reason is None:
            return _json({"status": "ready", "models": states})
        return _json({"status": "not ready", "reason": reason, "models": states}, 503)

    @app.get("/problems", summary="All problem types")
    async def problem_types() -> dict[str, list[str]]:
        return {"problems": [f"/problems/{slug}" for slug in problems.slugs()]}

    @app.get(
        "/problems/{slug}",
        summary="What a problem type means",
        response_class=PlainTextResponse,
        **openapi.PROBLEM_PAGE,
    )
    async def problem_page(slug: Annotated[str, Path(json_schema_extra={"example": "undecodable-image"})]) -> str:
        return problems.page(slug)


def _engine(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


def _key(request: Request) -> Key | None:
    """The access key of the request, if the server has keys."""
    key: Key | None = request.scope.get("key")
    return key


def _card(engine: Engine, model: str) -> dict[str, object]:
    """The public part of a spec, and the model's state."""
    return {**spec_json(engine.models.specs[model]), **_state(engine, model)}


def _state(engine: Engine, model: str) -> dict[str, object]:
    """state; of one that hangs or could not be loaded why, and of the latter in how many seconds it is tried again."""
    now = engine.models.state(model)
    about = {"state": now.state, "reason": now.reason, "retry_in_s": now.retry_in_s}
    return {name: value for name, value in about.items() if value is not None}


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, VisiontowerError)
    note_refusal(record_of(request.scope), error, _engine(request).metrics)
    return _response(problems.write_problem(error))


async def _framework_problem(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 422
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}  # Allow, of a wrong method
    record = record_of(request.scope)
    record.outcome = HTTPStatus(status).phrase.lower().replace(" ", "-")
    path = own_path(request.scope)  # the request's own `url` decodes the query, which may be anything
    protocol = request.app.protocol_of(path)
    if status in (404, 405):
        refused = (NoSuchRoute if status == 404 else MethodNotAllowed)(request.method, path)
        record.outcome = problems.problem_type(refused).slug
        if protocol is not None:
            request.scope["protocol"] = protocol
            return _response(protocol.write_error(refused), headers)
    return _json(problems.of_status(status), status, media_type=problems.MEDIA_TYPE, headers=headers)


def _response(answer: Answer, headers: Mapping[str, str] | None = None) -> Response:
    return Response(answer.content, answer.status, {**answer.headers, **(headers or {})}, answer.media_type)


def _json(
    value: object, status: int = 200, *, media_type: str = "application/json", headers: dict[str, str] | None = None
) -> Response:
    return Response(to_json(value), status, headers, media_type)
