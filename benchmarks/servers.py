"""The servers that are compared: how each is started, asked and read. And starting, waiting for and stopping one."""

import asyncio
import base64
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil

from benchmarks import peers, schemes
from benchmarks.http1 import Address, Connection, post
from benchmarks.load import Target
from benchmarks.works import FOLDER, Vectors, Work
from encoders.memory.machine import available_cores

_START_S = 180.0
_STOP_S = 20.0
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
}
"""No server may call home while it is measured."""


@dataclass(frozen=True)
class Body:
    """A picture as a server wants it."""

    content: bytes
    content_type: str


def _raw(jpeg: bytes) -> Body:
    return Body(jpeg, "image/jpeg")


def _multipart(field: str) -> Callable[[bytes], Body]:
    def body(jpeg: bytes) -> Body:
        head = f'--part\r\nContent-Disposition: form-data; name="{field}"; filename="a.jpg"\r\n'
        content = head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + jpeg + b"\r\n--part--\r\n"
        return Body(content, "multipart/form-data; boundary=part")

    return body


def _openai(jpeg: bytes) -> Body:
    image = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return Body(orjson.dumps({"model": "bench", "modality": "image", "input": [image]}), "application/json")


def _typed(jpeg: bytes) -> Body:
    image = {"type": "image_base64", "image_base64": base64.b64encode(jpeg).decode()}
    return Body(orjson.dumps({"model": "bench", "encoding_format": "float", "input": image}), "application/json")


def _at(*path: str | int) -> Callable[[bytes], list[float]]:
    """Reads the vector at this place of a JSON answer."""

    def vector(body: bytes) -> list[float]:
        found: Any = orjson.loads(body)
        for key in path:
            found = found[key]
        values: list[float] = found
        return values

    return vector


@dataclass(frozen=True)
class Server:
    """How a server is asked and read; its name says how it is started.

    model: what it is told to serve; raises NotServed if it cannot. projection: from its vectors to the reference's.
    """

    path: str
    body: Callable[[bytes], Body]
    vector: Callable[[bytes], Sequence[float]]
    model: Callable[[Work], str | Path] = lambda work: work.folder
    projection: Callable[[Work], Vectors] | None = None


OURS = "visiontower"
FLOOR = "floor"
_TWO, _OPENVINO = ("--processes", "2"), ("--runtime", "openvino")
FLAGS: dict[str, tuple[str, ...]] = {
    OURS: (),
    f"{OURS}-2": _TWO,
    f"{OURS}-openvino": _OPENVINO,
    f"{OURS}-openvino-2": _OPENVINO + _TWO,
    f"{OURS}-hf": (),
    f"{OURS}-timm": (),
    f"{OURS}-ray": ("--ray", "local", "--replica-cpus", str(available_cores())),
}
"""Our own server by name, and what it is started with."""
_OURS = Server("/embed?output=pooled", _raw, _at("data", 0, "pooled", "data"), lambda work: work.encoder_id)
SERVERS = {
    **dict.fromkeys(FLAGS, _OURS),
    f"{OURS}-hf": replace(_OURS, model=lambda work: f"hf:{schemes.transformers_folder(work)}"),
    f"{OURS}-timm": replace(_OURS, model=schemes.timm_id, projection=schemes.projection),
    FLOOR: Server("/", _raw, _at()),
    "fastapi": Server("/embed", _raw, _at("embedding")),
    "litserve": Server("/predict", _multipart("image"), _at("embedding")),
    "rayserve": Server("/embed", _raw, _at("embedding")),
    "bentoml": Server("/embed", _multipart("images"), _at(0)),
    "infinity": Server("/embeddings", _openai, _at("data", 0, "embedding"), schemes.transformers_folder),
    "intel": Server("/embeddings", _typed, _at("embedding"), schemes.transformers_folder),
}


def command(name: str, work: Work, *, port: int, dtype: str, flags: Sequence[str] = ()) -> list[str | Path]:
    """Of the server's process. dtype: auto, float32 or bfloat16; peers take auto for float32, which is their own."""
    model = SERVERS[name].model(work)
    if name in FLAGS:
        serve: list[str | Path] = [sys.executable, "-m", "service.cli", "serve", "--model", model]
        return [*serve, "--port", str(port), "--dtype", dtype, "--log-level", "warning", *FLAGS[name], *flags]
    if name == FLOOR:
        runtime = f"eager-{'bfloat16' if dtype == 'auto' else dtype}"
        floor = [sys.executable, "-m", "benchmarks.floor", "--work", work.name]
        return [*floor, "--port", str(port), "--runtime", runtime]
    program: list[str | Path] = [peers.python(name), peers.script(name), "--model", model]
    return [*program, "--port", str(port), "--dtype", "float32" if dtype == "auto" else dtype]


def target(name: str, work: Work, address: Address, *, pid: int) -> Target:
    """What is asked of a server that is up."""
    server = SERVERS[name]
    bodies = [server.body(jpeg) for jpeg in work.pictures]
    requests = [post(address, server.path, body.content, content_type=body.content_type) for body in bodies]
    vector = server.vector if server.projection is None else _projected(server.vector, server.projection(work))
    return Target(address, requests, work.references, vector, pid)


def _projected(vector: Callable[[bytes], Sequence[float]], matrix: Vectors) -> Callable[[bytes], Sequence[float]]:
    def projected(body: bytes) -> list[float]:
        values: list[float] = (matrix @ np.asarray(vector(body), np.float32)).tolist()
        return values

    return projected


@contextmanager
def running(
    name: str, work: Work, *, dtype: str = "auto", flags: Sequence[str] = (), program: Sequence[str | Path] = ()
) -> Iterator[Target]:
    """The server, up and answering, until the block ends.

    program: in place of the server's own command up to its flags. Raises RuntimeError, which shows the end of its log,
    if it does not come up. A SIGTERM ends the block, and so the server.
    """
    address = Address("127.0.0.1", free_port())
    line = command(name, work, port=address.port, dtype=dtype, flags=flags)
    if program:
        line[: line.index("serve")] = program
    log = FOLDER / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        print(shlex.join(map(str, line)), file=out, flush=True)
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        process = subprocess.Popen(line, stdout=out, stderr=out, env=os.environ | _QUIET, start_new_session=True)
    try:
        asked = target(name, work, address, pid=process.pid)
        asyncio.run(_until_it_answers(asked, process, log))
        yield asked
    finally:
        _stop(process)
        signal.signal(signal.SIGTERM, before)


def free_port() -> int:
    """Of 127.0.0.1; free a moment ago."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


async def _until_it_answers(asked: Target, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    said = "nothing"
    while time.monotonic() < deadline and process.poll() is None:
        status, said = await _try(asked)
        if status == 200:
            return
        await asyncio.sleep(0.2)
    end = log.read_text()[-2000:]
    raise RuntimeError(f"{log.stem} did not come up; it answered {said}. The end of {log}:\n{end}")


async def _try(asked: Target) -> tuple[int, str]:
    """Status and text of an answer; the status is 0 if there was none."""
    try:
        connection = await Connection.open(asked.address)
    except OSError as error:
        return 0, str(error)
    try:
        async with asyncio.timeout(30):
            answer = await connection.ask(asked.requests[0])
    except (OSError, TimeoutError) as error:
        return 0, repr(error)
    finally:
        connection.close()
    return answer.status, f"{answer.status}: {answer.body[:500].decode(errors='replace')}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it has started; a session of their own does not hold all of Ray's."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(children, timeout=3)
    for child in alive:
        child.kill()  # psutil checks that the id has not passed to another process
    psutil.wait_procs(alive, timeout=5)
