"""The settings of an engine that has a part of a machine, and not all of it."""

from typing import Any

from service.memory.account import automatic_limit
from service.settings import Settings


def part_of(settings: Settings, *, host: float, device: float, cores: int) -> Settings:
    """What is `auto` becomes the engine's part; what the operator has named stays.

    host, device: the parts of the host's memory and of the device's, from 0 to 1. cores: how many are its own.
    """
    part: dict[str, Any] = {"vram_share": settings.vram_share * device}
    if settings.memory_budget == "auto":
        part["memory_budget"] = automatic_limit(host)
    if settings.preprocess_threads == "auto":
        part["preprocess_threads"] = max(1, cores)
    return settings.model_copy(update=part)
