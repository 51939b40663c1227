"""How Python runs a process that serves or embeds: its garbage collector, and how its threads take turns."""

import ctypes
import gc
import sys
from contextlib import suppress

_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
_SWITCH_S = 0.001
"""After so long a thread that waits for the interpreter gets it; Python's own is 5 ms. The event loop answers a batch
in one go; until it was through, decoding and forwards stood still with a core free. Below, they switch too often."""
_YOUNG = 10_000
"""New objects after which garbage is looked for among them; Python's own is 700, which dozens of small requests under
way have at any time."""


def begin_loading() -> None:
    """To be called before a process that serves imports and loads what it needs; `loaded` ends it.

    glibc's malloc gives all threads two heaps together from now on, where it would give each its own. Each keeps what
    was freed in it: the process grew by a twelfth over a hundred thousand requests. No garbage is looked for: that was
    a quarter of the time of the imports.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    gc.disable()


def loaded() -> None:
    """The work begins. The garbage collector need not look at the objects that are here to stay.

    They are some hundred thousand objects of torch and the models: looking through them held up all requests for a
    quarter of a second every few seconds.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG)
    gc.enable()
    sys.setswitchinterval(_SWITCH_S)
