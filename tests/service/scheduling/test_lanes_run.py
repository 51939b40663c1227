"""Forwards side by side, held inside the fake encoder until the test has seen who is there."""

import asyncio
import gc
import math
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder
from encoders.contract.values import Encoded, Outputs, Pixels
from service.errors import DeviceLost
from service.memory.shape import Shape
from service.scheduling.items import Answer
from service.scheduling.lanes import Lanes
from service.scheduling.patience import Patience
from service.scheduling.resident import Resident
from tests.support.device_threads import Device, Later, alone, running
from tests.support.shapes import image_shape

pytestmark = pytest.mark.anyio
LARGE, WIDE = image_shape(side=16), image_shape(side=24)


class Room(FakeEncoder):
    """Forwards stay inside while the door is shut. A batch is known by its first image's value."""

    def __init__(self) -> None:
        super().__init__()
        self.door = threading.Event()
        self.door.set()
        self.inside: list[int] = []
        self.met: dict[int, set[int]] = {}
        """By value: who was ever inside at the same time."""
        self.values: list[list[int]] = []
        """Of each batch, in the order they began."""
        self._changed = threading.Condition()

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        values = [int(row[0, 0, 0]) for row in pixels]
        with self._changed:
            self.values.append(values)
            self.inside.append(values[0])
            for each in self.inside:
                self.met[each] = self.met.get(each, set()) | set(self.inside) - {each}
            self._changed.notify_all()
        assert self.door.wait(30), "the test never opened the door"
        encoded = super().encode(pixels, outputs)
        with self._changed:
            self.inside.remove(values[0])
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
    runs_alone: Collection[Shape] = (),
    take_cores: Callable[[int], None] = lambda part: None,
    clock: Callable[[], float] = lambda: 0.0,
    brief_s: float = 0.0,
) -> AsyncIterator[Device]:
    lanes = Lanes(number, take_cores=take_cores, brief_s=brief_s)
    patience = Patience()
    async with running(
        encoder, ceiling=4, runs_alone=runs_alone, clock=clock, lanes=lanes, patience=patience
    ) as device:
        yield device


async def both_lanes_taken(room: Room, device: Device) -> list[asyncio.Future[Answer[Encoded]]]:
    """The images 1 and 2, each inside by itself, with the door shut."""
    room.door.clear()
    futures = await device.submit_together(1, 2)
    await room.holds(1, 2)
    return futures


async def test_what_waits_is_divided_among_the_lanes() -> None:
    room = Room()
    async with lanes(room) as device:
        futures = await both_lanes_taken(room, device)
        futures += [device.submit(value) for value in (3, 4)]
        room.door.set()
        answers = await asyncio.gather(*futures)
        room.batches.clear()
        room.door.clear()
        seven = await device.submit_together(*range(7))
        await room.holds(0, 4)
        room.door.set()
        await asyncio.gather(*seven)
        assert sorted(room.batches) == [1, 2, 4]
    assert 3 not in room.met[1] & room.met[2]
    for value, answer in enumerate(answers, start=1):
        np.testing.assert_allclose(np.asarray(answer.row.pooled), alone(value), rtol=1e-6)


async def test_a_set_is_not_divided_among_the_lanes() -> None:
    room, parts = Room(), list[int]()
    async with lanes(room, take_cores=parts.append) as device:
        await asyncio.gather(*device.submit_set(0, 1, 2))
        assert room.values == [[0, 1, 2]]
        assert parts == [2]


async def test_a_set_of_one_that_is_all_there_is_takes_a_lane_s_part_of_the_cores() -> None:
    """Its rows are those that it has in any traffic."""
    parts: list[int] = []
    async with lanes(Room(), take_cores=parts.append) as device:
        await asyncio.gather(*device.submit_set(0))
        assert parts == [2]


async def test_a_set_above_its_ceiling_is_split_in_order_and_a_free_lane_takes_the_next_part() -> None:
    room = Room()
    async with lanes(room) as device:
        room.door.clear()
        async with device.occupied():
            futures = [*device.submit_set(*range(6)), device.submit(6)]
        await room.holds(0, 4)
        room.door.set()
        await asyncio.gather(*futures)
        assert sorted(room.values) == [[0, 1, 2, 3], [4, 5], [6]]


async def test_what_another_lane_leaves_behind_is_not_left_waiting() -> None:
    """Patience ends in one lane, which takes its batch: the other lane must be told of what is left."""
    now, room, pool = [0.0], Room(), Later()
    looked = threading.Semaphore(0)

    def tick(batch: int) -> None:
        now[0] += 0.005

    def clock() -> float:
        looked.release()
        return now[0]

    room.before = tick
    async with lanes(room, clock=clock) as device:
        await device.submit(0)
        await device.threads.call(lambda: None)
        room.door.clear()
        first, never_made = (device.submit_made(value, pool=pool) for value in (1, 2))
        pool.step()
        later = device.submit(3, LARGE)
        while looked.acquire(blocking=False):
            pass
        for _ in range(3):  # the one lane looks again and again, and by now the other sleeps
            assert await asyncio.to_thread(looked.acquire, timeout=30)
        now[0] += 0.02
        await room.holds(1, 3)
        room.door.set()
        await asyncio.gather(first, later)
        never_made.cancel()


async def test_what_waited_with_an_item_that_has_left_is_taken_by_both_lanes() -> None:
    room, pool = Room(), Later()
    async with lanes(room) as device:
        room.door.clear()
        made = [device.submit_made(value, pool=pool) for value in (1, 2)]
        pool.step()
        later = device.submit(3, LARGE)
        made[1].cancel()
        pool.step()
        await room.holds(1, 3)
        room.door.set()
        await asyncio.gather(made[0], later)


async def test_a_batch_that_leaves_others_to_another_lane_is_not_cut() -> None:
    room = Room()
    async with lanes(room) as device:
        room.door.clear()
        futures = await device.submit_together(*range(5))
        await room.holds(0, 3)
        room.door.set()
        await asyncio.gather(*futures)
        await device.threads.call(lambda: None)  # by now both are counted
    found = sorted((forward.items, forward.is_cut) for forward in device.metrics.forwards)
    assert found == [(1, False), (1, False), (3, False)]


async def test_all_there_is_takes_all_cores_and_nothing_begins_beside_it() -> None:
    parts: list[int] = []
    room = Room()
    async with lanes(room, take_cores=parts.append) as device:
        room.door.clear()
        futures = [device.submit(3)]
        await room.holds(3)
        futures += [device.submit(value) for value in (4, 5)]
        room.door.set()
        await asyncio.gather(*futures)
        assert room.met[3] == set()
        assert parts[:2] == [1, 2]


async def test_an_item_is_not_all_there_is_while_another_is_on_its_way() -> None:
    parts: list[int] = []
    pool = Later()
    async with lanes(Room(), take_cores=parts.append) as device:
        coming = device.submit_made(3, pool=pool, shape=LARGE)
        await device.submit(1)
        await device.threads.call(lambda: None)  # by now every lane is free
        pool.run()
        await coming
    assert parts == [2, 1]


async def test_cores_are_taken_only_when_a_lane_s_part_changes() -> None:
    taken: list[tuple[int, int]] = []
    room = Room()
    async with lanes(room, take_cores=lambda part: taken.append((threading.get_ident(), part))) as device:
        for value in (1, 2, 3):
            await device.submit(value)
        assert [part for _, part in taken] == [1]
        for _ in range(3):
            futures = await both_lanes_taken(room, device)
            room.door.set()
            await asyncio.gather(*futures)
        assert sorted(part for _, part in taken) == [1, 2, 2]
        assert len({thread for thread, part in taken if part == 2}) == 2
        await device.threads.call(lambda: None)  # by now every lane is free
        await device.submit(4)
    assert [part for _, part in taken][-1] == 1
    assert len(taken) == 4


@pytest.mark.parametrize("number", [2, 3])
async def test_all_cores_are_always_taken_by_the_same_thread(number: int) -> None:
    """Each thread that ever takes them keeps a team of threads (OpenMP), and too many teams slow each other down."""
    taken: list[tuple[int, int]] = []
    calls: set[int] = set()
    room = Room()
    async with lanes(room, number, take_cores=lambda part: taken.append((part, threading.get_ident()))) as device:
        for value in range(10):
            await device.submit(value)
            futures = await both_lanes_taken(room, device)
            room.door.set()
            await asyncio.gather(*futures)
            calls.add(await device.threads.call(threading.get_ident))
    assert {part for part, _ in taken} == {1, number}
    assert {thread for part, thread in taken if part == 1} == calls
    assert len(calls) == 1


async def test_what_must_run_alone_has_nothing_beside_it_and_is_not_passed_over() -> None:
    parts: list[int] = []
    room = Room()
    async with lanes(room, runs_alone=[LARGE], take_cores=parts.append) as device:
        futures = await both_lanes_taken(room, device)
        futures.append(device.submit(3, LARGE))
        futures += [device.submit(value, WIDE) for value in (4, 5)]
        room.door.set()
        await asyncio.gather(*futures)
    assert room.met[3] == set()
    begun = [values[0] for values in room.values]
    assert begun.index(3) < min(begun.index(4), begun.index(5))
    assert parts[:3] == [2, 2, 1]


async def test_a_set_that_must_run_alone_has_nothing_beside_it_either() -> None:
    parts: list[int] = []
    room = Room()
    async with lanes(room, runs_alone=[LARGE], take_cores=parts.append) as device:
        futures = await both_lanes_taken(room, device)
        futures += [*device.submit_set(3, 4, shape=LARGE), device.submit(5, WIDE)]
        room.door.set()
        await asyncio.gather(*futures)
    assert room.met[3] == set()
    assert parts[:3] == [2, 2, 1]


async def test_a_call_has_nothing_beside_it_and_is_not_passed_over() -> None:
    room = Room()
    async with lanes(room) as device:
        futures = await both_lanes_taken(room, device)
        call = asyncio.create_task(device.threads.call(lambda: (list(room.inside), 3 in room.met)))
        await asyncio.sleep(0)  # the call is in the queue after the next turn of the loop
        futures.append(device.submit(3, LARGE))
        room.door.set()
        assert await call == ([], False)
        await asyncio.gather(*futures)


async def test_nothing_begins_beside_a_call() -> None:
    room = Room()
    async with lanes(room) as device:
        async with device.occupied():
            futures = [device.submit(value) for value in (1, 2)]
            assert room.values == []
        await asyncio.gather(*futures)


async def test_an_encoder_that_was_removed_is_kept_by_no_lane() -> None:
    """Its memory is to be free, also if a lane has nothing else to do."""

    async def work() -> weakref.ref[Resident]:
        room = Room()
        guest = replace(device, resident=await device.threads.call(partial(Resident, room)))
        await both_lanes_taken(room, guest)
        room.door.set()
        await device.threads.call(lambda: None)
        return weakref.ref(guest.resident)

    async with lanes(Room()) as device:
        resident = await work()
        await device.threads.call(lambda: None)  # by now the threads are done with it
        gc.collect()
        assert resident() is None


async def test_a_brief_forward_waits_for_the_one_before_and_takes_all_that_came_meanwhile() -> None:
    room = Room()
    async with lanes(room, brief_s=math.inf) as device:
        room.door.clear()
        first = device.submit(1)
        await room.holds(1)
        futures = [first, device.submit(2), device.submit(3)]
        room.door.set()
        await asyncio.gather(*futures)
    assert room.values == [[1], [2, 3]]
    assert room.met == {1: set(), 2: set()}


async def test_stopping_lets_every_lane_finish_what_it_has_begun() -> None:
    room = Room()
    async with lanes(room) as device:
        first, second = await both_lanes_taken(room, device)
        stopping = asyncio.create_task(device.threads.stop(timeout_s=30))
        await asyncio.sleep(0)  # told to stop after the next turn of the loop
        waiting = device.submit(3)
        room.door.set()
        assert await stopping
        assert isinstance(await first, Answer)
        assert isinstance(await second, Answer)
        with pytest.raises(DeviceLost):
            await waiting


async def test_if_one_thread_ends_the_others_do_too_and_everyone_is_told(caplog: pytest.LogCaptureFixture) -> None:
    room = Room()

    def end(encoded: Encoded) -> Encoded:
        raise SystemExit

    async with lanes(room) as device:
        futures = await both_lanes_taken(room, device)
        futures.append(device.submit(3))
        room.after = end
        room.door.set()
        for future in futures:
            with pytest.raises(DeviceLost):
                await future
        assert not device.threads.is_alive
        assert await device.threads.stop(timeout_s=30)
        assert device.threads.is_lost
    assert "the device thread has ended" in caplog.text


async def test_if_one_thread_ends_those_who_wait_are_told_though_another_is_still_at_work() -> None:
    room = Room()

    class Ending(Room):
        def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
            raise SystemExit

    async with lanes(room) as device:
        ending = replace(device, resident=Resident(Ending()))
        room.door.clear()
        async with device.occupied():
            futures = [device.submit(1), ending.submit(2, WIDE), device.submit(3, LARGE)]
        for future in futures:
            with pytest.raises(DeviceLost):
                await future
        assert room.inside in ([], [1])
        room.door.set()


async def test_what_each_lane_is_at_is_known() -> None:
    now = [0.0]
    room = Room()
    async with lanes(room, clock=lambda: now[0]) as device:
        first, second = await both_lanes_taken(room, device)
        now[0] = 7.0
        assert [(work.lane, work.since) for work in device.threads.at_work()] == [(0, 0.0), (1, 0.0)]
        room.door.set()
        await asyncio.gather(first, second)
