"""One server, several protocols: the same images through each of its doors, in turn.

    python -m benchmarks.doors --work small
    python -m benchmarks.doors --work small,vit-b-32 --seconds 20 --rounds 5 --flags '--runtime openvino'

Rates and times are medians of the rounds. Run it on an idle machine.
"""

import argparse
import asyncio
import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
from rich.console import Console

from benchmarks import report
from benchmarks.http1 import post
from benchmarks.load import Target, closed_loop
from benchmarks.report import Results, Row, Setting
from benchmarks.serve import names, say
from benchmarks.servers import OURS, running
from benchmarks.works import FOLDER, WORKS, Work

_WIDTH = 150
_JSON = "application/json"


@dataclass(frozen=True)
class Question:
    """A request for the vector of one image."""

    path: str
    content: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Door:
    """ask: for a JPEG file's vector by the model of that id. vector: reads an answer; raises ValueError or the like."""

    ask: Callable[[bytes, str], Question]
    vector: Callable[[bytes], Sequence[float]]

    def target(self, server: Target, work: Work) -> Target:
        """The server, asked through this door."""
        questions = [self.ask(jpeg, work.encoder_id) for jpeg in work.pictures]
        requests = [
            post(server.address, each.path, each.content, content_type=each.content_type, headers=each.headers)
            for each in questions
        ]
        return replace(server, requests=requests, vector=self.vector)


def _ask_raw(jpeg: bytes, model: str) -> Question:
    return Question("/embed?output=pooled", jpeg, "image/jpeg")


def _ask_raw_for_bytes(jpeg: bytes, model: str) -> Question:
    return Question("/embed?output=pooled&format=raw", jpeg, "image/jpeg")


def _ask_json(jpeg: bytes, model: str) -> Question:
    body = {"images": [_data_uri(jpeg)], "output": "pooled", "encoding_format": "base64"}
    return Question("/embed", orjson.dumps(body), _JSON)


def _ask_openai(jpeg: bytes, model: str) -> Question:
    body = {"model": model, "input": [_data_uri(jpeg)], "encoding_format": "base64"}
    return Question("/v1/embeddings", orjson.dumps(body), _JSON)


def _ask_inference(jpeg: bytes, model: str) -> Question:
    element = len(jpeg).to_bytes(4, "little") + jpeg
    image = {"name": "images", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}}
    head = orjson.dumps({"inputs": [image], "outputs": [{"name": "pooled", "parameters": {"binary_data": True}}]})
    path = f"/v2/models/{quote(model)}/infer"
    length = {"Inference-Header-Content-Length": str(len(head))}
    return Question(path, head + element, "application/octet-stream", length)


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _numbers(body: bytes) -> Sequence[float]:
    values: list[float] = _first(body)["pooled"]["data"]
    return values


def _base64(body: bytes) -> Sequence[float]:
    return _float32(base64.b64decode(_first(body)["pooled"]["data"]))


def _openai_base64(body: bytes) -> Sequence[float]:
    return _float32(base64.b64decode(_first(body)["embedding"]))


def _inference_bytes(body: bytes) -> Sequence[float]:
    """Those of the one output stand behind the JSON, which ends with its list of outputs."""
    end = body.index(b"}]}") + 3
    return _float32(body[end:])


def _first(body: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = orjson.loads(body)["data"][0]
    return entry


def _float32(content: bytes) -> Sequence[float]:
    values: list[float] = np.frombuffer(content, "<f4").tolist()
    return values


DOORS = {
    "/embed, bytes to numbers": Door(_ask_raw, _numbers),
    "/embed, bytes to bytes": Door(_ask_raw_for_bytes, _float32),
    "/embed, data: URI to base64": Door(_ask_json, _base64),
    "/v1/embeddings, data: URI to base64": Door(_ask_openai, _openai_base64),
    "/v2 infer, bytes to bytes": Door(_ask_inference, _inference_bytes),
}


def measure(
    work: Work, *, concurrency: int, seconds: float, warmup_s: float, rounds: int, flags: Sequence[str]
) -> Iterator[Row]:
    """A row a door and round, each round in the other order. Raises RuntimeError if the server does not come up."""
    with running(OURS, work, flags=flags) as server:
        targets = {name: door.target(server, work) for name, door in DOORS.items()}
        for round in range(1, rounds + 1):
            for name in list(targets)[:: 1 if round % 2 else -1]:
                setting = Setting(work.name, name, " ".join(flags), concurrency)
                loop = closed_loop(targets[name], concurrency=concurrency, seconds=seconds, warmup_s=warmup_s)
                window = asyncio.run(loop)
                yield report.of_window(setting, window, targets[name], round=round, warmup_s=warmup_s)


def main() -> None:
    """All doors, round after round, and a table of them."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.doors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=names(WORKS), default=["small"], help=f"of {', '.join(WORKS)} [small]")
    parser.add_argument("--concurrency", type=int, default=32, help="callers [32]")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each window [8]")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before each [2]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    parser.add_argument("--flags", type=str.split, default=[], help="of visiontower, such as '--max-batch 16'")
    parser.add_argument("-o", "--out", type=Path, default=FOLDER / "doors.csv", help=f"[{FOLDER}/doors.csv]")
    a = parser.parse_args()
    results = Results(a.out)
    for work in (WORKS[name] for name in a.work):
        _ = work.references  # made now, not while something runs
        for row in measure(
            work, concurrency=a.concurrency, seconds=a.seconds, warmup_s=a.warmup, rounds=a.rounds, flags=a.flags
        ):
            results.add(row)
            say(row)
    Console(width=_WIDTH).print(report.table(results.rows))


if __name__ == "__main__":
    main()
