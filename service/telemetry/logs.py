"""Logs: one JSON object a line; a request is one line with its id, route, status and time, never its payload."""

import json
import logging
import sys
from typing import TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


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
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str, *, stream: TextIO = sys.stderr) -> None:
    """Send all logs of the process there, as JSON lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.access").disabled = True  # service/http/middleware/observe.py writes that line
    # Of a start that fails Starlette tells uvicorn a traceback; service/engine/models.py has said what failed.
    logging.getLogger("uvicorn.error").addFilter(_is_no_traceback)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _is_no_traceback(record: logging.LogRecord) -> bool:
    return "Traceback (most recent call last)" not in record.getMessage()[:60]  # a group indents its own
