"""Runs a transformers vision model's own forward, and catches the outputs of some of its blocks on the way.

A forward hook on every block hands its output over, if the forward that runs in this context asked for it. A forward
that is wanted for nothing behind the last of them ends there. Knows modules; knows no architecture.
"""

from collections.abc import Callable, Collection, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn


class _Stop(BaseException):
    """Ends a forward whose last wanted block has run. No Exception: no library is to take it for a failure."""


@dataclass
class _Catch:
    """What one forward is to hand over, and what it has handed over so far."""

    blocks: frozenset[int]
    stops: bool
    caught: dict[int, Any] = field(default_factory=dict)


_catch: ContextVar[_Catch | None] = ContextVar("_catch", default=None)
"""Of the forward that runs in this context: several threads may run one model at once."""


def _hand_over(index: int, block: nn.Module, given: Any, output: Any) -> None:
    catch = _catch.get()
    if catch is None or index not in catch.blocks:
        return
    catch.caught[index] = output
    if catch.stops and len(catch.caught) == len(catch.blocks):
        raise _Stop


def watch(blocks: Iterable[nn.Module]) -> int:
    """Puts a hook on every block, in order; how many there are. Once for a model."""
    count = 0
    for index, block in enumerate(blocks):
        block.register_forward_hook(partial(_hand_over, index))
        count += 1
    return count


def run(forward: Callable[[], Any], blocks: Collection[int], *, stops: bool) -> tuple[Any, dict[int, Any]]:
    """`forward()`, and the outputs of these of its watched blocks by their index; nothing else is kept.

    stops: whether nothing behind the last of the blocks is wanted. Then it does not run, and the first value is None.
    """
    catch = _Catch(frozenset(blocks), stops=stops and bool(blocks))
    token = _catch.set(catch)
    try:
        return forward(), catch.caught
    except _Stop:
        return None, catch.caught
    finally:
        _catch.reset(token)
