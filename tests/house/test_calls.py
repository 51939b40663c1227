"""Nothing below is handed a bound method of somebody above, to call back."""

import inspect
from collections.abc import Iterator
from functools import partial

import pytest

from service.engine import EmbedRequest, Engine, SimilarityRequest
from service.settings import Settings
from tests.house.test_structure import SERVICE, floor
from tests.support.serving import backend_of, noise

pytestmark = pytest.mark.anyio


def parts(value: object) -> Iterator[object]:
    """What a value holds: items, and what a partial, a method or a closure binds."""
    if isinstance(value, dict):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif inspect.ismethod(value):
        yield value.__self__
    elif inspect.isfunction(value):
        yield from (cell.cell_contents for cell in value.__closure__ or ())


def height(value: object) -> int | None:
    """The floor of an object's class; None for what is not of the service."""
    found = floor(type(value).__module__, SERVICE)
    return None if found is None else found[0]


def held(holder: object) -> Iterator[object]:
    """The objects of the service in its attributes, and in anything that these hold."""
    seen: set[int] = set()
    waiting = list(vars(holder).values()) if hasattr(holder, "__dict__") else []
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if height(part) is None:
            waiting += parts(part)
        else:
            yield part


def upwards(start: object) -> list[str]:
    """Objects that hold an object of a floor above, whichever way."""
    found: list[str] = []
    known = [start]
    for holder in known:
        for part in held(holder):
            if (height(part) or 0) > (height(holder) or 0):
                found.append(f"{type(holder).__qualname__} holds {type(part).__qualname__}")
            if all(part is not each for each in known):
                known.append(part)
    return found


async def test_nobody_below_is_handed_a_bound_method_of_somebody_above() -> None:
    async with Engine(Settings(model=("fake:vit",)), backend=backend_of()) as engine:
        await engine.embed(EmbedRequest([noise(1), noise(2)]))
        await engine.similarity(SimilarityRequest([noise(1)], ["a"]))
        assert upwards(engine) == []


@pytest.mark.parametrize("form", ["method", "partial", "closure", "object"])
def test_whatever_is_handed_down_is_found(form: str) -> None:
    engine = Engine(Settings(model=("fake:vit",)), backend=backend_of())
    handed = {"method": engine.now, "partial": partial(engine.drain), "closure": lambda: engine.now(), "object": engine}
    engine.budget.callback = {"each": [handed[form]]}  # type: ignore[attr-defined]  # as nobody should
    assert upwards(engine) == ["Budget holds Engine"]
