"""What access keys cost: the check of a request, with its limits, in microseconds; reading a file of keys.

python -m benchmarks.keys
"""

import asyncio
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from starlette.types import Receive, Scope, Send

from service.access.gate import Gate
from service.access.keys import Key, digest_of, new_secret, read_file, written
from service.http.middleware.access import Access
from service.telemetry.metrics import Metrics
from service.telemetry.request_record import RequestRecord

_MANY = 1000
_CALLS, _ROUNDS = 500, 21
_NO_LIMIT = 10**9
"""High enough that nothing is refused."""


def main() -> None:
    """Print the table: medians of rounds."""
    with TemporaryDirectory() as folder:
        path, usage = Path(folder) / "keys.toml", Path(folder) / "usage"
        secrets = [new_secret() for _ in range(_MANY)]
        limited: dict[str, Any] = {"requests_per_second": _NO_LIMIT, "images_per_day": _NO_LIMIT}
        for number in (1, _MANY):
            _write(path, secrets[:number])
            gate = Gate([], path)
            _show(f"a request, 1 of {number:,} keys, no limits", _of_middleware(gate, secrets[number - 1]))
            _show(f"a request, none of {number:,} keys", _of_middleware(gate, "vt_wrong"))
        _show("reading the file of 1,000 keys", _median(lambda: read_file(path), calls=1))
        for where, file in (("in memory", None), ("in a file", usage)):
            _write(path, secrets, **limited)
            gate = Gate([], path, usage=file)
            _show(f"a request with a rate, counted {where}", _of_middleware(gate, secrets[0]))
            key = gate.enter({secrets[0].encode()})
            _show(f"its images of the day, counted {where}", _median(partial(_images, gate, key)))
            gate.close()


def _write(path: Path, secrets: list[str], **limits: Any) -> None:
    keys = [Key(f"key-{place}", digest_of(secret), **limits) for place, secret in enumerate(secrets)]
    path.write_text("\n".join(map(written, keys)))


def _images(gate: Gate, key: Key) -> None:
    with gate.images(key, 1):
        pass


def _of_middleware(gate: Gate, secret: str) -> float:
    """Seconds of the whole middleware, around an app that does nothing."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pass

    metrics = Metrics([])

    class _Owner:
        state = SimpleNamespace(metrics=metrics)

        def protocol_of(self, path: str) -> None:
            return None

    access = Access(app, gate=gate, metrics=metrics, protocols=(), keyless=())
    headers = [(b"host", b"server"), (b"content-type", b"image/png"), (b"authorization", f"Bearer {secret}".encode())]
    scope = {"type": "http", "path": "/embed", "headers": headers, "app": _Owner()}

    async def nothing(*_: Any) -> Any:
        return None

    async def ask() -> None:
        for _ in range(_CALLS):
            await access({**scope, "record": RequestRecord("id", "POST")}, nothing, nothing)

    with asyncio.Runner() as runner:
        return _median(lambda: runner.run(ask()), calls=1) / _CALLS


def _median(work: Callable[[], Any], *, calls: int = _CALLS) -> float:
    """Seconds of one call."""
    found = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        found.append((time.perf_counter() - started) / calls)
    return statistics.median(found)


def _show(what: str, seconds: float) -> None:
    print(f"{what:45}{1e6 * seconds:10,.0f} us")


if __name__ == "__main__":
    main()
