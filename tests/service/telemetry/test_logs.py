"""Logs: a start that fails is told in one line, by whoever knows why."""

import io
import json
import logging
import os
import re
import traceback
from collections.abc import Iterator

import pytest

from service.telemetry import logs
from service.telemetry.request_record import RequestRecord
from service.telemetry.tracing import propagator


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the process logs, as the service has configured it."""
    names = (None, "uvicorn.error", "uvicorn.access", *logs._LEAST)
    loggers = [logging.getLogger(name) for name in names]
    before = [(each.handlers[:], each.filters[:], each.level, each.disabled) for each in loggers]
    stream = io.StringIO()
    logs.configure("info", stream=stream)
    yield stream
    for each, (handlers, filters, level, disabled) in zip(loggers, before, strict=True):
        each.handlers[:], each.filters[:], each.disabled = handlers, filters, disabled
        each.setLevel(level)


CHAIN = ValueError("a")
CHAIN.__cause__ = ConnectionError("https://huggingface.co/a/resolve/main/model.safetensors: offline mode is enabled")


@pytest.mark.parametrize("error", [CHAIN, ValueError("a"), ExceptionGroup("many", [ValueError("a"), TypeError("b")])])
def test_a_start_that_fails_leaves_no_traceback(error: Exception, lines: io.StringIO) -> None:
    uvicorn = logging.getLogger("uvicorn.error")
    try:
        raise error
    except Exception:
        uvicorn.error(traceback.format_exc())
    uvicorn.error("Application startup failed. Exiting.")
    (line,) = lines.getvalue().splitlines()
    assert json.loads(line)["message"] == "Application startup failed. Exiting."


def test_headers_of_traces_that_are_wrong_stay_out_of_the_log(lines: io.StringIO) -> None:
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    for state, baggage in (("secret", "secret"), ("a=1," * 40 + "secret", "k=" + "secret" * 2000)):
        propagator().extract({"traceparent": parent, "tracestate": state, "baggage": baggage})
    propagator().extract({"traceparent": "secret" * 1000})
    assert lines.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def line_of(form: logs.LogFormat, stream: io.StringIO, *, status: int = 200, message: str = "POST /embed 200") -> str:
    """One request's line, as a process with this form of logs writes it there."""
    handler = logs.handler(form, stream)
    record = RequestRecord("7", "POST", route="/embed", status=status, seconds=0.0183, model="demo:vit", images=2)
    record.stages = {"decode": 0.0019, "fetch": 0.0, "forward": 0.006}
    made = logging.makeLogRecord({"name": logs.REQUESTS, "levelno": logging.INFO, "levelname": "INFO", "msg": message})
    vars(made).update(record.facts())
    handler.emit(made)
    return stream.getvalue()


def test_a_line_for_machines_has_all_that_is_known_of_a_request() -> None:
    line = json.loads(line_of("auto", io.StringIO()))
    assert line.items() >= {"request_id": "7", "model": "demo:vit", "images": 2, "seconds": 0.0183}.items()
    assert line["stages"] == {"decode": 0.0019, "forward": 0.006}
    assert line.keys() & {"key", "texts", "failed", "cached", "resolution"} == set()


def test_a_line_for_people_says_the_time_first_and_each_fact_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    plain = line_of("text", io.StringIO())
    assert "POST /embed 200 18.3 ms (decode 1.9, forward 6.0) request_id=7" in plain
    assert "model=demo:vit" in plain
    assert "status=" not in plain
    assert "\x1b[" not in plain
    coloured = line_of("auto", Terminal())
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured)[8:] == plain[8:]
    assert "\x1b[" in coloured


def test_colours_are_left_out_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in line_of("auto", Terminal())
    assert "\x1b[" not in line_of("json", Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b[" not in line_of("auto", Terminal())


def test_what_a_caller_sends_gives_a_terminal_no_commands() -> None:
    line = line_of("text", io.StringIO(), message="POST /\x1b[2J\n 404")
    assert "\x1b" not in line
    assert line.count("\n") == 1


def test_an_error_s_message_makes_no_lines_of_its_own() -> None:
    stream = io.StringIO()
    handler = logs.handler("text", stream)
    try:
        raise ValueError("a\n08:00:00 info     all is well \x1b[2J")
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": (ValueError, error, error.__traceback__)})
    handler.emit(record)
    first, *below = stream.getvalue().splitlines()
    assert first.endswith("failed")
    assert "\x1b" not in stream.getvalue()
    assert below
    assert all(line.startswith("  ") for line in below)


def test_a_reader_that_stalls_holds_nobody_up_and_is_told_what_it_missed() -> None:
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as reader, open(write, "w") as stream:
        handler = logs.handler("json", stream)

        def emit(number: int) -> None:
            handler.emit(logging.makeLogRecord({"msg": f"{number} " + "x" * 5000}))

        for number in range(30):  # a pipe holds 64 KiB
            emit(number)
        os.set_blocking(read, False)
        text = reader.read(1_000_000)
        emit(30)
        text += reader.read(1_000_000)
    messages = []
    cut = 0
    for line in text.splitlines():
        try:
            messages.append(json.loads(line)["message"])
        except ValueError:
            cut += 1
    numbers = [int(message.split()[0]) for message in messages]
    (lost,) = (number for number, message in zip(numbers, messages, strict=True) if "are lost" in message)
    assert len(messages) - 1 + lost == 31
    assert numbers[-1] == 30
    assert cut <= 1
