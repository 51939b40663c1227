"""Policy: on a GPU the next batch is begun behind the one that runs, so that the device has no pause. Pure.

It is begun only if waiting would not make a better batch of it. Two batches at most are on the device.
"""

from service.memory.shape import ImageShape
from service.scheduling.queue import Line, T


def may_follow(line: Line[T], *, running: int, ceiling: int) -> bool:
    """Whether a batch of this line may be begun behind one of `running` items.

    Yes if the line has as many items as the running batch, or as many as one forward may take. A shorter line waits and
    grows. A set cannot grow, so it follows at once. Texts never follow, because their forward ends before the call
    returns. Items past their deadline are counted too.
    """
    return isinstance(line.shape, ImageShape) and (line.is_set or len(line.waiting) >= min(running, ceiling))
