"""Logs: for people on a terminal, else one JSON object a line. A request is one line, never its payload."""

import json
import logging
import os
import select
import sys
from collections.abc import Mapping
from typing import Literal, TextIO, TypeAlias

LogFormat: TypeAlias = Literal["auto", "text", "json"]

REQUESTS = "visiontower.requests"
"""The logger of the lines about requests."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_RESET, _GREY = "\x1b[0m", "\x1b[90m"
_COLOURS = {
    logging.DEBUG: _GREY,
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_SAID = ("method", "route", "status", "seconds", "stages")
"""Facts of a request that its line for people begins with."""
_LEAST = {
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,  # it tells the headers of answers, with their cookies and signed addresses
    "PIL": logging.WARNING,  # it tells what is in pictures
    "opentelemetry.trace.span": logging.ERROR,  # these three warn of headers by a caller's very bytes, at each request
    "opentelemetry.trace.propagation": logging.ERROR,
    "opentelemetry.baggage": logging.ERROR,
}
"""Levels of libraries' loggers, whatever the service's own is."""
_PATIENCE_S = 0.1
_PIPE_BYTES = 4096
"""A pipe that can be written to takes as many at once."""
_CHARACTER_BYTES = 4
"""At the most."""


class JsonFormatter(logging.Formatter):
    """A record as JSON: time, level, logger, message, and whatever `extra` held. Ray adds names with `_`."""

    def format(self, record: logging.LogRecord) -> str:
        """As logging.Formatter."""
        line: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(_extra(record))
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """A record as a line for people: time, level, message, and the `extra` facts as name=value; traces below it."""

    def __init__(self, *, has_colours: bool) -> None:
        super().__init__()
        self._has_colours = has_colours

    def format(self, record: logging.LogRecord) -> str:
        """As logging.Formatter."""
        extra = _extra(record)
        message = record.getMessage()
        if record.name == REQUESTS and "seconds" in extra:
            message = f"{message} {_milliseconds(extra)}"
            extra = {name: value for name, value in extra.items() if name not in _SAID}
        facts = " ".join(f"{name}={_plain(value)}" for name, value in extra.items())
        level = f"{record.levelname.lower():<8}"
        if self._has_colours:
            level = f"{_COLOURS.get(record.levelno, '')}{level}{_RESET}"
            facts = f"{_GREY}{facts}{_RESET}" if facts else ""
        line = " ".join(filter(None, (self.formatTime(record, "%H:%M:%S"), level, _plain(message), facts)))
        below = self.formatException(record.exc_info).splitlines() if record.exc_info else ()
        return "\n  ".join([line, *map(_plain, below)])  # an error's message may look like a line of the log


class _Handler(logging.StreamHandler[TextIO]):
    """Whoever reads the log may stall, and must not hold the service up: then lines are dropped, and counted."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._dropped = 0
        self._is_cut = False

    def emit(self, record: logging.LogRecord) -> None:
        """As logging.Handler."""
        try:
            if self._dropped:
                lost = f"{self._dropped} lines of the log are lost: nobody read them"
                if not self._put(logging.LogRecord(__name__, logging.WARNING, __file__, 0, lost, (), None), 0.0):
                    self._dropped += 1
                    return
                self._dropped = 0
            if not self._put(record, _PATIENCE_S):
                self._dropped += 1
        except Exception:
            self.handleError(record)

    def _put(self, record: logging.LogRecord, patience_s: float) -> bool:
        """Whether all of it was written."""
        line = self.format(record) + self.terminator
        if self._is_cut:
            line = self.terminator + line
        size = _PIPE_BYTES if line.isascii() else _PIPE_BYTES // _CHARACTER_BYTES
        for start in range(0, len(line), size):
            if not _has_room(self.stream, patience_s):
                return False
            self.stream.write(line[start : start + size])
            self.flush()
            self._is_cut = start + size < len(line)
        return True


def _has_room(stream: TextIO, seconds: float) -> bool:
    """Whether a piece can be written without waiting, within so many seconds."""
    try:
        return bool(select.select((), (stream,), (), seconds)[1])
    except (OSError, ValueError):  # no file of the system's: it has
        return True


def configure(level: str, *, form: LogFormat = "auto", stream: TextIO = sys.stderr) -> None:
    """Send all logs of the process there. auto: as text if it is a terminal, else as JSON."""
    logging.basicConfig(level=level.upper(), handlers=[handler(form, stream)], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.access").disabled = True  # service/http/middleware/observe.py writes that line
    # Of a start that fails Starlette tells uvicorn a traceback; service/engine/models.py has said what failed.
    logging.getLogger("uvicorn.error").addFilter(_is_no_traceback)
    for name, least in _LEAST.items():
        logging.getLogger(name).setLevel(least)


def handler(form: LogFormat, stream: TextIO) -> logging.Handler:
    """Writes logs there. Colours are for terminals, unless NO_COLOR is set (no-color.org), or they have none."""
    is_terminal = stream.isatty()
    is_text = form == "text" or (form == "auto" and is_terminal)
    made = _Handler(stream)
    has_colours = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    made.setFormatter(TextFormatter(has_colours=has_colours) if is_text else JsonFormatter())
    return made


def _extra(record: logging.LogRecord) -> Mapping[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"}


def _milliseconds(facts: Mapping[str, object]) -> str:
    """The time that a request took, and of which stages it is."""
    stages = facts.get("stages")
    parts = stages.items() if isinstance(stages, Mapping) else ()
    inside = ", ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in parts)
    total = facts["seconds"]
    assert isinstance(total, float)
    return f"{1000 * total:.1f} ms" + (f" ({inside})" if inside else "")


def _plain(value: object) -> str:
    """On one line, whatever a terminal would take as a command escaped."""
    text = str(value)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _is_no_traceback(record: logging.LogRecord) -> bool:
    # Anywhere: a group indents its own, and a chain may begin with a cause that was never raised.
    return "Traceback (most recent call last)" not in record.getMessage()
