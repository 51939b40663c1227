"""The road of one image: how many functions and files of ours a POST /embed enters, and how often it changes file.

    python -m benchmarks.road            # the counts
    python -m benchmarks.road --calls    # every call, in order

Counted as `sys.setprofile` sees calls, warm, over ASGI in process, with demo:vit on the CPU. A comprehension is a
function of its own before Python 3.12, and a coroutine is entered again each time it is resumed. A thread changes file
where a call lies in another file than its call before. The model's own forward is left out, from Encoder.begin to the
end of Forward.wait.
"""

import argparse
import asyncio
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from service.http.app import create_app
from service.settings import Settings

_ROOT = Path(__file__).parent.parent
_OURS = tuple(f"{_ROOT / room}/" for room in ("encoders", "service"))
_FORWARD = ("begin", "wait")
"""Encoder.begin and Forward.wait."""
_WARM_UP = 5
_ALIKE = 3
"""Rounds as short as the shortest before it is believed: on a busy machine, planning ahead outlasts the warming up."""
_MOST_ROUNDS = 60
_QUIET_S = 0.1
"""After each request, for all threads to come to rest."""


@dataclass(frozen=True)
class Call:
    """A function of ours that was entered."""

    thread: int
    file: str
    function: str


@dataclass
class Road:
    """Records the calls of one request. is_open: whether to record; alike: rounds as short as the one kept."""

    is_open: bool = False
    calls: list[Call] = field(default_factory=list)
    alike: int = 0
    _round: list[Call] = field(default_factory=list)
    _inside: dict[int, FrameType] = field(default_factory=dict)  # thread -> the forward it is in

    def end_round(self) -> None:
        """Keep the shortest round: planning ahead, or a client that is looked after, may have come between."""
        if self._round and (not self.calls or len(self._round) < len(self.calls)):
            self.calls, self.alike = self._round, 0
        self.alike += len(self._round) == len(self.calls) > 0
        self._round = []

    def watch(self, frame: FrameType, event: str, argument: Any) -> None:
        """As sys.setprofile calls it."""
        thread = threading.get_ident()
        if event == "return" and self._inside.get(thread) is frame:
            del self._inside[thread]
        if not self.is_open or event != "call" or thread in self._inside:
            return
        code = frame.f_code
        if not code.co_filename.startswith(_OURS):
            return
        file = str(Path(code.co_filename).relative_to(_ROOT))
        if file.startswith("encoders/") and code.co_name in _FORWARD:
            self._inside[thread] = frame
            return
        self._round.append(Call(thread, file, code.co_qualname))

    @property
    def functions(self) -> int:
        """Different functions."""
        return len({(call.file, call.function) for call in self.calls})

    @property
    def files(self) -> list[str]:
        """Different files, in the order of the first call."""
        return list(dict.fromkeys(call.file for call in self.calls))

    @property
    def changes(self) -> int:
        """Changes of file, thread by thread; the first call of each thread is one."""
        by_thread: defaultdict[int, list[str]] = defaultdict(list)
        for call in self.calls:
            by_thread[call.thread].append(call.file)
        return sum(
            before != now for files in by_thread.values() for before, now in zip(["", *files], files, strict=False)
        )


def measure() -> Road:
    """The road of docs/example.png."""
    road = Road()
    image = (_ROOT / "docs" / "example.png").read_bytes()
    asyncio.run(_post(Road(), image, rounds=1))  # what is imported once takes ten times as long when it is watched
    threading.setprofile(road.watch)
    sys.setprofile(road.watch)
    try:
        asyncio.run(_post(road, image, rounds=_WARM_UP + _MOST_ROUNDS))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return road


async def _post(road: Road, image: bytes, *, rounds: int) -> None:
    app = create_app(Settings(model=("demo:vit",), device="cpu"))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client,
    ):
        for number in range(rounds):
            road.is_open = number >= _WARM_UP
            response = await client.post("/embed", content=image, headers={"content-type": "image/png"})
            response.raise_for_status()
            await asyncio.sleep(_QUIET_S)
            road.is_open = False
            road.end_round()
            if road.alike == _ALIKE:
                return


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser("python -m benchmarks.road", description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", action="store_true", help="every call, in order")
    road = measure()
    if parser.parse_args().calls:
        threads = list(dict.fromkeys(call.thread for call in road.calls))
        for call in road.calls:
            print(f"{threads.index(call.thread)}  {call.file:45} {call.function}")
    print(f"{road.functions} functions in {len(road.files)} files, {road.changes} changes of file")


if __name__ == "__main__":
    main()
