"""Policy: how many replicas the work that waits needs. Pure; Ray calls it in its controller.

Ray adds the bounds and the delays: the load must last for a while before replicas come or go.
"""

import math
from collections.abc import Mapping
from typing import Any

WAITS_S = 1.0
"""Seconds that the oldest item of a replica may wait; from then on a replica is missing."""
FULL = 0.5
"""This part of a replica's queue may be taken; the rest is for what comes while another replica starts."""
SLACK = 0.5
"""Below this part of what it could bear, a replica may be taken away."""

PRESSURE = "pressure"
"""The name under which a replica tells Ray its own."""


def pressure(*, oldest_s: float, fullness: float) -> float:
    """What a replica bears, 1 being all that it should.

    oldest_s: seconds that its oldest item has waited. fullness: the part of its queue that is taken, from 0 to 1.
    """
    return max(oldest_s / WAITS_S, fullness / FULL)


def wanted(now: int, pressures: Mapping[Any, float], *, requests: float) -> int:
    """Replicas by the mean of their pressures, at most twice as many as now. requests: that have no answer yet."""
    if now == 0:
        return 1 if requests else 0
    if not pressures:
        return now
    mean = sum(pressures.values()) / len(pressures)
    if mean > 1:
        return min(2 * now, math.ceil(now * mean))
    if mean >= SLACK:
        return now
    left = math.ceil(now * mean / SLACK)
    return left if left else int(requests > 0)


def by_waiting(context: Any) -> tuple[int, dict[str, Any]]:
    """As Ray calls it, with its AutoscalingContext; gives replicas and a state, of which there is none."""
    told = (context.aggregated_metrics or {}).get(PRESSURE, {})
    return wanted(context.target_num_replicas, told, requests=context.total_num_requests), {}
