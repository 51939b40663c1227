"""How large a batch may be: by the budget of memory, by the time a forward may last, and by the operator's word.

Memory alone would let hundreds of images into one forward of a minute on a CPU: nobody's answer would come before the
last one's. So the speed of each tower is learnt, in floating-point operations a second. From the same forwards it
knows how long one may take before the device counts as hung.

Who comes while a forward runs waits for its end. So forwards are kept short while several shapes are asked for.
"""

import math
from typing import NamedTuple

from service.memory.budget import Allowance, Budget
from service.memory.shape import Shape

_SHARED_S = 0.2
"""Seconds that a forward may last while several shapes are served in turn: who comes meanwhile waits for its end."""
_LATELY = 8
"""Forwards in which another shape is looked for."""
_FORGETS = 0.9
"""The best speed shrinks to this share after a slower forward."""
_SHAPES = 10_000
"""Shapes whose allowance is kept."""
_HUNG_TIMES = 10
_HUNG_S = 5.0
"""The device hangs if a forward takes longer than this, and longer than so many times its usual time."""
_FIRST_S = 60.0
"""The first forward of a shape gets at least this: libraries choose and compile their kernels in it."""
_SLOWEST_FLOPS_A_SECOND = 5e9
"""The first forward of a tower is allowed to be as slow as this, a tenth of what one core of a processor does."""
_GROWS = 4.0
"""How many times slower a shape's usual forward may become at once: one that hung must not set the measure."""
_ANY = 2**31
"""More items than any queue holds: the time may be unlimited."""


class Limit(NamedTuple):
    """For one shape, now. ceiling: the most items in one forward, at least 1.

    runs_alone: the forward may have nothing beside it. forward_s: seconds that the model's last forward took.
    """

    ceiling: int
    runs_alone: bool
    forward_s: float


class BatchLimits:
    """Stands beside the queue. Learns on the device threads, and is asked on any.

    longest_s: seconds that a forward may last; may be infinite. most: items in one forward by the operator's word.
    """

    def __init__(self, budget: Budget, *, longest_s: float, most: int | None = None) -> None:
        self._budget = budget
        self._longest_s = longest_s
        self._most = _ANY if most is None else most
        self._allowances: dict[Shape, Allowance] = {}
        self._flops_a_second: dict[tuple[type, str], float] = {}
        self._forward_s: dict[str, float] = {}
        self._item_s: dict[Shape, float] = {}  # of the slowest forward lately
        self._lately: tuple[Shape, ...] = ()  # of the last forwards; one thread may read while another writes

    def of(self, shape: Shape) -> Limit:
        """The limit of this shape. Where time is limited, its ceiling is 1 until a forward of its tower has run."""
        allowance = self._allowances.get(shape)
        if allowance is None or allowance.state != self._budget.state:
            allowance = self._ask(shape)
        in_time: float = _ANY
        if self._longest_s < math.inf:
            is_shared = any(other != shape for other in self._lately)
            longest_s = min(self._longest_s, _SHARED_S) if is_shared else self._longest_s
            flops_a_second = self._flops_a_second.get((type(shape), shape.model), 0.0)
            in_time = min(_ANY, longest_s * flops_a_second / max(1, shape.cost.flops))
        ceiling = min(allowance.ceiling, max(1, int(in_time)), self._most)
        return Limit(ceiling, allowance.runs_alone, self._forward_s.get(shape.model, 0.0))

    def is_full(self, shape: Shape, items: int) -> bool:
        """Whether the budget of memory allows no larger batch."""
        return items >= self._ask(shape).ceiling

    def _ask(self, shape: Shape) -> Allowance:
        if len(self._allowances) > _SHAPES:
            self._allowances.clear()
        allowance = self._allowances[shape] = self._budget.allowance(shape)
        return allowance

    def ran(self, shape: Shape, items: int, seconds: float) -> None:
        """A forward has run. Small forwards are slow, so the best speed counts."""
        self._lately = (*self._lately, shape)[-_LATELY:]
        self._forward_s[shape.model] = seconds
        if seconds > 0:
            tower = (type(shape), shape.model)
            best = self._flops_a_second.get(tower, 0.0)
            self._flops_a_second[tower] = max(shape.cost.flops * items / seconds, best * _FORGETS)
        item_s = seconds / items
        before = self._item_s.get(shape, item_s)
        if len(self._item_s) > _SHAPES:
            self._item_s.clear()
        self._item_s[shape] = max(min(item_s, _GROWS * before), before * _FORGETS)

    def hangs_after_s(self, shape: Shape, items: int) -> float:
        """Seconds after which such a forward hangs, and is not merely slow."""
        flops = shape.cost.flops * items
        flops_a_second = self._flops_a_second.get((type(shape), shape.model))
        usual_s = flops / flops_a_second if flops_a_second else 0.0
        item_s = self._item_s.get(shape)
        if item_s is None:
            return max(_FIRST_S, _HUNG_TIMES * usual_s if flops_a_second else flops / _SLOWEST_FLOPS_A_SECOND)
        return max(_HUNG_S, _HUNG_TIMES * max(usual_s, item_s * items))
