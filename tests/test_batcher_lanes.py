"""Forwards side by side, held inside the fake encoder until the test has seen who is there."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from encoders.fake import FakeEncoder
from encoders.types import Encoded, ImageSize, Outputs, Pixels
from service.batcher import Answer, Batcher
from service.batching import BatchKey
from service.errors import DeviceLost
from tests.test_batcher import KEY, MODEL, NEVER, Later, image

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
) -> AsyncIterator[Batcher]:
    batcher = Batcher(
        ceiling=lambda key: 4,
        clock=lambda: 0.0,
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


async def test_as_many_forwards_run_side_by_side_as_there_are_lanes() -> None:
    room = Room()
    async with lanes(room) as batcher:
        room.door.clear()
        futures = [batcher.submit(KEY, image(1), deadline=NEVER)]
        await room.holds(1)
        futures.append(batcher.submit(KEY, image(2), deadline=NEVER))
        await room.holds(1, 2)
        futures += [batcher.submit(KEY, image(value), deadline=NEVER) for value in (3, 4)]
        room.door.set()
        answers = await asyncio.gather(*futures)
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
        pool.step()
        await room.holds(1, 3)
        room.door.set()
        await asyncio.gather(*made, later)


async def test_a_lane_takes_all_cores_only_where_nobody_is_beside_it_and_nothing_comes() -> None:
    parts: list[int] = []
    room, pool = Room(), Later()
    async with lanes(room, take_cores=parts.append) as batcher:
        await batcher.submit(KEY, image(1), deadline=NEVER)
        assert parts == [1]
        room.door.clear()
        first = batcher.submit(KEY, image(1), deadline=NEVER)
        await room.holds(1)
        beside = batcher.submit(KEY, image(2), deadline=NEVER)
        await room.holds(1, 2)
        assert parts == [1, 1, 2]
        room.door.set()
        await asyncio.gather(first, beside)
        parts.clear()
        coming = batcher.submit_made(LARGE, partial(image, 3, 16), pool=pool, deadline=NEVER)
        await batcher.submit(KEY, image(1), deadline=NEVER)
        pool.run()
        await coming
        assert parts == [2, 1]


async def test_all_cores_are_always_taken_by_the_same_thread() -> None:
    """Each thread that ever takes them keeps a team of threads (OpenMP), and too many teams slow each other down."""
    taken: list[tuple[int, int]] = []
    room = Room()
    async with lanes(room, take_cores=lambda part: taken.append((part, threading.get_ident()))) as batcher:
        for value in range(10):
            await batcher.submit(KEY, image(value), deadline=NEVER)
            room.door.clear()
            first = batcher.submit(KEY, image(1), deadline=NEVER)
            await room.holds(1)
            second = batcher.submit(KEY, image(2), deadline=NEVER)
            await room.holds(1, 2)
            room.door.set()
            await asyncio.gather(first, second)
    assert {part for part, _ in taken} == {1, 2}
    assert len({thread for part, thread in taken if part == 1}) == 1


async def test_what_must_run_alone_has_nothing_beside_it_and_is_not_passed_over() -> None:
    parts: list[int] = []
    room = Room()
    async with lanes(room, runs_alone=lambda key: key == LARGE, take_cores=parts.append) as batcher:
        room.door.clear()
        futures = [batcher.submit(KEY, image(1), deadline=NEVER)]
        await room.holds(1)
        futures.append(batcher.submit(LARGE, image(2, 16), deadline=NEVER))
        futures += [batcher.submit(WIDE, image(value, 24), deadline=NEVER) for value in (3, 4)]
        room.door.set()
        await asyncio.gather(*futures)
    assert room.met[2] == set()
    assert list(room.met) == [128, 1, 2, 3]
    assert parts[1] == 1


async def test_a_call_has_nothing_beside_it_and_is_not_passed_over() -> None:
    room = Room()
    async with lanes(room) as batcher:
        room.door.clear()
        first = batcher.submit(KEY, image(1), deadline=NEVER)
        await room.holds(1)
        seen: list[list[int]] = []
        call = asyncio.create_task(batcher.call(lambda: seen.append([*room.inside, len(room.met)])))
        await asyncio.sleep(0)
        others = [batcher.submit(key, image(2, key.size.width), deadline=NEVER) for key in (KEY, LARGE)]
        room.door.set()
        await asyncio.gather(first, call, *others)
    assert seen == [[2]]  # the grey image of the start and the first: none inside, none begun since


async def test_stopping_lets_every_lane_finish_what_it_has_begun() -> None:
    room = Room()
    async with lanes(room) as batcher:
        room.door.clear()
        first = batcher.submit(KEY, image(1), deadline=NEVER)
        await room.holds(1)
        second = batcher.submit(KEY, image(2), deadline=NEVER)
        await room.holds(1, 2)
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
        room.door.clear()
        first = batcher.submit(KEY, image(1), deadline=NEVER)
        await room.holds(1)
        second = batcher.submit(KEY, image(2), deadline=NEVER)
        await room.holds(1, 2)
        room.after = end
        room.door.set()
        for future in (first, second):
            with pytest.raises(DeviceLost):
                await future
        assert not batcher.is_alive
    assert lost == [True]


async def test_the_longest_forward_is_what_the_threads_are_at() -> None:
    now = [0.0]
    room = Room()
    batcher = Batcher(ceiling=lambda key: 4, clock=lambda: now[0], lanes=2)
    batcher.start()
    await batcher.add(MODEL, lambda: room)
    room.door.clear()
    futures = [batcher.submit(KEY, image(1), deadline=NEVER)]
    await room.holds(1)
    now[0] = 5.0
    futures.append(batcher.submit(KEY, image(2), deadline=NEVER))
    await room.holds(1, 2)
    now[0] = 7.0
    assert batcher.busy_s == 7.0
    room.door.set()
    await asyncio.gather(*futures)
    await batcher.stop(timeout_s=30)
