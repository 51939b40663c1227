"""Forwards side by side, held inside the fake encoder until the test has seen who is there."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder
from encoders.contract.values import Encoded, ImageSize, Outputs, Pixels
from service.errors import DeviceLost
from service.scheduling.device_threads import Answer, Batcher
from service.scheduling.queue import BatchKey
from tests.service.scheduling.test_batcher import KEY, MODEL, NEVER, Later, image

pytestmark = pytest.mark.anyio
LARGE, WIDE = (replace(KEY, size=ImageSize(side, side)) for side in (16, 24))


class Room(FakeEncoder):
    """Forwards stay inside while the door is shut. A batch is known by its first image's value."""

    def __init__(self) -> None:
        super().__init__()
        self.door = threading.Event()
        self.door.set()
        self.inside: list[int] = []
        self.met: dict[int, set[int]] = {}
        """By value: who was ever inside at the same time."""
        self._changed = threading.Condition()

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        value = int(pixels[0, 0, 0, 0])
        with self._changed:
            self.inside.append(value)
            for each in self.inside:
                self.met[each] = self.met.get(each, set()) | set(self.inside) - {each}
            self._changed.notify_all()
        assert self.door.wait(30), "the test never opened the door"
        encoded = super().encode(pixels, outputs)
        with self._changed:
            self.inside.remove(value)
            self._changed.notify_all()
        return encoded

    async def holds(self, *values: int) -> None:
        """Wait until just these are inside."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: sorted(self.inside) == sorted(values), 30)

        assert await asyncio.to_thread(wait), f"{self.inside} are inside"


@asynccontextmanager
async def lanes(
    encoder: FakeEncoder,
    number: int = 2,
    *,
    runs_alone: Callable[[BatchKey], bool] = lambda key: False,
    take_cores: Callable[[int], None] = lambda part: None,
    on_lost: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[Batcher]:
    batcher = Batcher(
        ceiling=lambda key: 4,
        clock=clock,
        on_lost=on_lost,
        shares_cores=True,
        lanes=number,
        runs_alone=runs_alone,
        take_cores=take_cores,
    )
    batcher.start()
    await batcher.add(MODEL, lambda: encoder)
    try:
        yield batcher
    finally:
        await batcher.stop(timeout_s=30)


@asynccontextmanager
async def together(batcher: Batcher) -> AsyncIterator[None]:
    """What is submitted inside waits together: no lane is free meanwhile."""
    entered, left = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        assert left.wait(30)

    call = asyncio.create_task(batcher.call(wait))
    assert await asyncio.to_thread(entered.wait, 30)
    yield
    left.set()
    await call


async def both_lanes_taken(room: Room, batcher: Batcher) -> list[asyncio.Future[Answer[Encoded]]]:
    """The images 1 and 2, each inside by itself, with the door shut."""
    room.door.clear()
    async with together(batcher):
        futures = [batcher.submit(KEY, image(value), deadline=NEVER) for value in (1, 2)]
    await room.holds(1, 2)
    return futures


async def test_what_waits_is_divided_among_the_lanes() -> None:
    room = Room()
    async with lanes(room) as batcher:
        futures = await both_lanes_taken(room, batcher)
        futures += [batcher.submit(KEY, image(value), deadline=NEVER) for value in (3, 4)]
        room.door.set()
        answers = await asyncio.gather(*futures)
        room.batches.clear()
        room.door.clear()
        async with together(batcher):
            seven = [batcher.submit(KEY, image(value), deadline=NEVER) for value in range(7)]
        await room.holds(0, 4)
        room.door.set()
        await asyncio.gather(*seven)
        assert sorted(room.batches) == [3, 4]
    assert 3 not in room.met[1] & room.met[2]
    for value, answer in enumerate(answers, start=1):
        pooled = room.encode(image(value)[None], KEY.outputs).pooled
        assert pooled is not None
        assert answer.row.pooled is not None
        np.testing.assert_allclose(answer.row.pooled, pooled[0], rtol=1e-6)


async def test_what_another_lane_leaves_behind_is_not_left_waiting() -> None:
    """Of another key: whoever was woken for the first batch is inside, and the other lane must have been told."""
    room, pool = Room(), Later()
    async with lanes(room) as batcher:
        room.door.clear()
        made = [batcher.submit_made(KEY, partial(image, value), pool=pool, deadline=NEVER) for value in (1, 2)]
        pool.step()
        later = batcher.submit(LARGE, image(3, 16), deadline=NEVER)
        made[1].cancel()
        pool.step()
        await room.holds(1, 3)
        room.door.set()
        await asyncio.gather(made[0], later)


async def test_all_there_is_takes_all_cores_and_nothing_begins_beside_it() -> None:
    parts: list[int] = []
    room = Room()
    async with lanes(room, take_cores=parts.append) as batcher:
        room.door.clear()
        futures = [batcher.submit(KEY, image(3), deadline=NEVER)]
        await room.holds(3)
        futures += [batcher.submit(KEY, image(value), deadline=NEVER) for value in (4, 5)]
        room.door.set()
        await asyncio.gather(*futures)
        assert room.met[3] == set()
        assert parts[:2] == [1, 2]


async def test_an_item_is_not_all_there_is_while_another_is_on_its_way() -> None:
    parts: list[int] = []
    pool = Later()
    async with lanes(Room(), take_cores=parts.append) as batcher:
        coming = batcher.submit_made(LARGE, partial(image, 3, 16), pool=pool, deadline=NEVER)
        await batcher.submit(KEY, image(1), deadline=NEVER)
        assert parts == [2]
        pool.run()
        await coming


async def test_all_cores_are_always_taken_by_the_same_thread() -> None:
    """Each thread that ever takes them keeps a team of threads (OpenMP), and too many teams slow each other down."""
    taken: list[tuple[int, int]] = []
    room = Room()
    async with lanes(room, take_cores=lambda part: taken.append((part, threading.get_ident()))) as batcher:
        for value in range(10):
            await batcher.submit(KEY, image(value), deadline=NEVER)
            futures = await both_lanes_taken(room, batcher)
            room.door.set()
            await asyncio.gather(*futures)
    assert {part for part, _ in taken} == {1, 2}
    assert len({thread for part, thread in taken if part == 1}) == 1


async def test_what_must_run_alone_has_nothing_beside_it_and_is_not_passed_over() -> None:
    room = Room()
    async with lanes(room, runs_alone=lambda key: key == LARGE) as batcher:
        futures = await both_lanes_taken(room, batcher)
        futures.append(batcher.submit(LARGE, image(3, 16), deadline=NEVER))
        futures += [batcher.submit(WIDE, image(value, 24), deadline=NEVER) for value in (4, 5)]
        room.door.set()
        await asyncio.gather(*futures)
    assert room.met[3] == set()
    begun = list(room.met)
    assert begun.index(3) < min(begun.index(4), begun.index(5))


async def test_a_call_has_nothing_beside_it_and_is_not_passed_over() -> None:
    room = Room()
    async with lanes(room) as batcher:
        futures = await both_lanes_taken(room, batcher)
        seen: list[tuple[list[int], bool]] = []
        call = asyncio.create_task(batcher.call(lambda: seen.append((room.inside, 3 in room.met))))
        await asyncio.sleep(0)
        futures.append(batcher.submit(LARGE, image(3, 16), deadline=NEVER))
        room.door.set()
        await asyncio.gather(call, *futures)
    assert seen == [([], False)]


async def test_stopping_lets_every_lane_finish_what_it_has_begun() -> None:
    room = Room()
    async with lanes(room) as batcher:
        first, second = await both_lanes_taken(room, batcher)
        stopping = asyncio.create_task(batcher.stop(timeout_s=30))
        await asyncio.sleep(0)
        waiting = batcher.submit(KEY, image(3), deadline=NEVER)
        room.door.set()
        assert await stopping
        assert isinstance(await first, Answer)
        assert isinstance(await second, Answer)
        with pytest.raises(DeviceLost):
            await waiting


async def test_if_one_thread_ends_the_others_do_too_and_everyone_is_told() -> None:
    lost: list[bool] = []
    room = Room()

    def end(encoded: Encoded) -> Encoded:
        raise SystemExit

    async with lanes(room, on_lost=lambda: lost.append(True)) as batcher:
        futures = await both_lanes_taken(room, batcher)
        room.after = end
        room.door.set()
        for future in futures:
            with pytest.raises(DeviceLost):
                await future
        assert not batcher.is_alive
    assert lost == [True]


async def test_the_longest_forward_is_what_the_threads_are_at() -> None:
    now = [0.0]
    room = Room()
    async with lanes(room, clock=lambda: now[0]) as batcher:
        first, second = await both_lanes_taken(room, batcher)
        now[0] = 7.0
        assert batcher.busy_s == 7.0
        room.door.set()
        await asyncio.gather(first, second)
