"""Accept header -> the format of the answer (RFC 9110, section 12.5.1). Pure."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, TypeAlias

from service.http.errors import NotAcceptable

Format: TypeAlias = Literal["json", "safetensors", "npy", "raw", "vllm", "vllm-npy"]

MEDIA_TYPES: Mapping[Format, str] = {
    "json": "application/json",
    "safetensors": "application/vnd.safetensors",
    "npy": "application/x-npy",
    "raw": "application/octet-stream",
}
"""In order of preference: the first wins among equals."""
PARTS: frozenset[Format] = frozenset(("vllm", "vllm-npy"))
"""JSON too, and only asked for by name: see handoff.py."""
_RANGES = 64
"""Of an Accept header, that are read."""


@lru_cache(maxsize=64)
def choose(accept: str, *, asked: Format | None, offered: tuple[Format, ...] = tuple(MEDIA_TYPES)) -> Format:
    """The format asked for by name, else the offered one that the header likes best. Raises NotAcceptable."""
    names = [MEDIA_TYPES[name] for name in offered]
    if asked is not None:
        if asked not in offered:
            raise NotAcceptable(asked, offered=offered)
        return asked
    ranges = [_range(part) for part in accept.split(",", _RANGES)[:_RANGES] if part.strip()]
    if not ranges:
        return offered[0]
    quality, _, best = max((_quality(MEDIA_TYPES[name], ranges), -place, name) for place, name in enumerate(offered))
    if quality <= 0:
        raise NotAcceptable(accept, offered=names)
    return best


def _range(part: str) -> tuple[str, float]:
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media, min(1.0, max(0.0, float(value)))
            except ValueError:
                return media, 0.0
    return media, 1.0


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """Of the most specific range that matches."""
    for candidate in (media_type, f"{media_type.split('/')[0]}/*", "*/*"):
        found = [quality for media, quality in ranges if media == candidate]
        if found:
            return max(found)
    return 0.0
