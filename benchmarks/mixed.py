"""Two models and two resolutions at once, against what each reaches alone on the same server."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.http1 import post
from benchmarks.load import Target, Window, closed_loop
from benchmarks.servers import OURS, SERVERS, running
from benchmarks.works import WORKS

_CALLERS = 32
_WARMUP_S = 4.0
_MAIN = WORKS["vit-b-32"]
_SMALL = WORKS["small"]


@dataclass(frozen=True)
class Traffic:
    """A kind of request. alone, mixed: images a second by itself, and beside the others."""

    name: str
    alone: float
    mixed: float

    @property
    def share(self) -> float:
        """Of the device's time that its answers would have taken alone."""
        return self.mixed / self.alone


def measure(*, seconds: float, flags: Sequence[str]) -> str:
    """A line a kind, and what their shares come to. Raises RuntimeError if a request failed."""
    with running(OURS, _MAIN, flags=[*flags, "--model", _SMALL.encoder_id]) as target:
        kinds = {
            "ViT-B/32 at 224": target,
            "ViT-B/32 at 160x224": _asking(target, "&resolution=160x224"),
            "small at 64": _asking(target, f"&model={_SMALL.encoder_id}", pictures=_SMALL.pictures),
        }
        alone = [asyncio.run(_together([kind], seconds))[0] for kind in kinds.values()]
        mixed = asyncio.run(_together(list(kinds.values()), seconds))
    if failed := [window.errors for window in (*alone, *mixed) if window.errors]:
        raise RuntimeError(f"not every request was answered: {failed}")
    found = [
        Traffic(name, one.images_per_s, other.images_per_s)
        for name, one, other in zip(kinds, alone, mixed, strict=True)
    ]
    lines = [f"{each.name}: alone {each.alone:.1f}/s, mixed {each.mixed:.1f}/s, {each.share:.1%}" for each in found]
    return "\n".join([*lines, f"together {sum(each.share for each in found):.1%} of what each reaches alone"])


def _asking(target: Target, query: str, *, pictures: Sequence[bytes] = ()) -> Target:
    """The same server, asked for something else. Here it counts that there is an answer, not what it says."""
    server = SERVERS[OURS]
    bodies = [server.body(jpeg) for jpeg in pictures or _MAIN.pictures]
    path = server.path + query
    requests = [post(target.address, path, body.content, content_type=body.content_type) for body in bodies]
    return replace(target, requests=requests)


async def _together(targets: Sequence[Target], seconds: float) -> list[Window]:
    loops = (closed_loop(t, concurrency=_CALLERS, seconds=seconds, warmup_s=_WARMUP_S) for t in targets)
    return list(await asyncio.gather(*loops))
