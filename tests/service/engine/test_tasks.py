"""Works side by side: their results, and what is left of them once one fails or nobody waits."""

import asyncio
import gc
import weakref

import pytest

from service.engine.tasks import together

pytestmark = pytest.mark.anyio


async def gives(number: int) -> int:
    await asyncio.sleep(0)
    return number


async def test_results_are_in_order() -> None:
    assert await together(gives(number) for number in range(3)) == [0, 1, 2]
    assert await together(gives(number) for number in range(0)) == []


async def test_if_one_fails_the_others_have_ended_when_its_error_comes() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("waits")

    async def fails() -> None:
        raise LookupError("its error")

    with pytest.raises(LookupError, match="its error"):
        await together([waits(), fails()])
    assert ended == ["waits"]


async def test_once_cancelled_nothing_is_kept_of_them() -> None:
    """Not until the collector comes either: works hold images."""

    class Image:
        pass

    images: list[weakref.ref[Image]] = []

    async def waits() -> None:
        image = Image()
        images.append(weakref.ref(image))
        await asyncio.Event().wait()

    async def request() -> None:
        await together(waits() for _ in range(3))

    gc.disable()
    try:
        task = asyncio.create_task(request())
        while len(images) < 3:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        del task
        await asyncio.sleep(0)
        assert [image() for image in images] == [None] * 3
    finally:
        gc.enable()
