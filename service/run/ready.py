"""Is a server of this container ready? `python -m service.run.ready` ends with 0 if one is: deploy/Dockerfile asks so.

Every port that is listened on is asked: no flag, variable, free port (0) or proxy leads the question astray.
"""

import http.client
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

import psutil

_WITHIN_S = 2.0
"""Readiness is answered within a second."""


def is_ready(processes: Iterable[psutil.Process]) -> bool:
    """Whether one that listens answers that it is ready."""
    return any(map(_answers, dict.fromkeys(_addresses(processes))))


def _addresses(processes: Iterable[psutil.Process]) -> Iterator[tuple[str, int]]:
    for process in processes:
        with suppress(psutil.Error):  # of another user, or gone
            for each in process.net_connections("tcp"):
                if each.status == psutil.CONN_LISTEN:
                    yield each.laddr


def _answers(address: tuple[str, int]) -> bool:
    connection = http.client.HTTPConnection(*address, timeout=_WITHIN_S)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not is_ready(psutil.process_iter()))
