"""Logs: a start that fails is told in one line, by whoever knows why."""

import io
import json
import logging
import traceback
from collections.abc import Iterator

import pytest

from service.telemetry import logs


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the process logs, as the service has configured it."""
    loggers = [logging.getLogger(name) for name in (None, "uvicorn.error", "uvicorn.access", "httpx")]
    before = [(each.handlers[:], each.filters[:], each.level, each.disabled) for each in loggers]
    stream = io.StringIO()
    logs.configure("info", stream=stream)
    yield stream
    for each, (handlers, filters, level, disabled) in zip(loggers, before, strict=True):
        each.handlers[:], each.filters[:], each.disabled = handlers, filters, disabled
        each.setLevel(level)


@pytest.mark.parametrize("error", [ValueError("a"), ExceptionGroup("many", [ValueError("a"), TypeError("b")])])
def test_a_start_that_fails_leaves_no_traceback(error: Exception, lines: io.StringIO) -> None:
    uvicorn = logging.getLogger("uvicorn.error")
    try:
        raise error
    except Exception:
        uvicorn.error(traceback.format_exc())
    uvicorn.error("Application startup failed. Exiting.")
    (line,) = lines.getvalue().splitlines()
    assert json.loads(line)["message"] == "Application startup failed. Exiting."
