"""How the metrics of several processes that serve as one are put together."""

from collections.abc import Callable, Mapping
from typing import Literal

Together = Literal["sum", "highest", "lowest"]

_HIGHEST = (
    "visiontower_queue_oldest_seconds",
    "visiontower_vram_prediction_ratio",
    "visiontower_batch_padding_ratio",
    "visiontower_model_state",  # of any process
    "visiontower_model_info",
    "visiontower_build_info",
    "process_start_time_seconds",  # of the youngest: it changes when any is replaced
)
_LOWEST = ("visiontower_model_ready",)
_OF_THE_DEVICE = ("free", "total")
"""Kinds of visiontower_vram_bytes that every process sees whole."""
_SHARED = "disk"
"""The store of visiontower_cache_bytes that all processes share."""
_COMBINE: Mapping[Together, Callable[[tuple[float, float]], float]] = {"sum": sum, "highest": max, "lowest": min}


def together(family: str, labels: Mapping[str, str]) -> Together:
    """What stands for all processes: what cannot be added is shown as it is in the worst."""
    if family in _HIGHEST or labels.get("kind") in _OF_THE_DEVICE or labels.get("store") == _SHARED:
        return "highest"
    return "lowest" if family in _LOWEST else "sum"


def combined(family: str, labels: Mapping[str, str], values: tuple[float, float]) -> float:
    """Two processes' values of one series as one."""
    return _COMBINE[together(family, labels)](values)
