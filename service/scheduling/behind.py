"""Policy: on a GPU the next batch is begun behind the one that runs, so that the device has no pause. Pure.

It is begun only if waiting would not make a better batch of it. Two batches at most are on the device.
"""

from service.memory.shape import ImageShape
from service.scheduling.queue import Line, T


def may_follow(line: Line[T], *, running: int, ceiling: int) -> bool:
    """Whether a batch of this line may be begun behind one of `running` items.

    It must be as large already, or as large as it may be: a smaller one had better grow meanwhile, unless it is a set.
    Texts never follow, as their forwards are waited for at once. Images past their deadline are counted, as nobody has
    looked at them yet.
    """
    return isinstance(line.shape, ImageShape) and (line.is_set or len(line.waiting) >= min(running, ceiling))
