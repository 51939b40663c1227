"""A forward that does not end is noticed in time, and costs nobody else their answer. The clock is the test's."""

import asyncio

import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from service.errors import DeviceHangs
from service.scheduling.lanes import Lanes
from service.scheduling.resident import Resident
from service.scheduling.watchdog import CALL_S, Watchdog
from tests.support.device_threads import NEVER, SHAPE, Device, Gate, image, running
from tests.support.shapes import image_shape
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
OTHER = "fake:other"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Watch:
    """A watchdog of a device, looked at four times a second of the test's clock."""

    def __init__(self, device: Device, clock: Clock) -> None:
        self.dog = Watchdog(device.threads, device.limits, clock=clock)
        self.clock = clock

    def pass_s(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + 0.25)
            self.dog.look()


@pytest.mark.parametrize(("forward_s", "limit_s"), [(0.01, 5.0), (2.0, 20.0)])
async def test_a_forward_hangs_after_five_seconds_and_ten_times_its_usual_time(
    forward_s: float, limit_s: float
) -> None:
    gate, clock = Gate(), Clock()
    encoder = FakeEncoder(before=gate)
    async with running(encoder, clock=clock) as device:
        watch = Watch(device, clock)
        first = await gate.shut_with_one_inside(lambda: device.submit(0))
        clock.now += forward_s
        gate.open.set()
        await first
        inside = await gate.shut_with_one_inside(lambda: device.submit(1))
        waiting = device.submit(2)
        watch.pass_s(limit_s)
        assert watch.dog.hang is None
        watch.pass_s(0.5)
        for future in (inside, waiting):
            with pytest.raises(DeviceHangs, match=f"longer than {limit_s:.1f} s"):
                await future
        with pytest.raises(DeviceHangs):
            device.submit(3)
        gate.open.set()


async def test_the_first_forward_of_a_shape_may_take_a_minute() -> None:
    gate, clock = Gate(), Clock()
    async with running(FakeEncoder(before=gate), clock=clock) as device:
        watch = Watch(device, clock)
        await device.submit(0)
        inside = await gate.shut_with_one_inside(lambda: device.submit(1, image_shape(side=64)))
        watch.pass_s(60)
        assert watch.dog.hang is None
        watch.pass_s(0.5)
        with pytest.raises(DeviceHangs):
            await inside
        gate.open.set()


async def test_a_call_that_hangs_is_noticed_too() -> None:
    gate, clock = Gate(), Clock()
    async with running(FakeEncoder(), clock=clock) as device:
        watch = Watch(device, clock)
        gate.open.clear()
        call = asyncio.create_task(device.threads.call(lambda: gate(0)))
        assert await asyncio.to_thread(gate.entered.wait, 30)
        watch.pass_s(CALL_S)
        assert watch.dog.hang is None
        watch.pass_s(0.5)
        with pytest.raises(DeviceHangs):
            await call
        gate.open.set()


async def test_if_the_forward_returns_everything_is_as_before() -> None:
    gate, clock = Gate(), Clock()
    async with running(FakeEncoder(before=gate), clock=clock) as device:
        watch = Watch(device, clock)
        await device.submit(0)
        inside = await gate.shut_with_one_inside(lambda: device.submit(1))
        watch.pass_s(6)
        with pytest.raises(DeviceHangs):
            await inside
        gate.open.set()
        await until(lambda: not device.threads.at_work())
        watch.pass_s(0.25)
        assert watch.dog.hang is None
        await device.submit(2)


async def test_other_models_are_answered_in_the_other_lane_meanwhile() -> None:
    gate, clock = Gate(), Clock()
    sick, well = FakeEncoder(before=gate), Resident(FakeEncoder(fake_spec(OTHER)))
    shape = image_shape(model=OTHER)
    async with running(sick, clock=clock, lanes=Lanes(2), other_models=[OTHER]) as device:
        watch = Watch(device, clock)
        first, second = [device.submit(value) for value in (0, 1)]
        await asyncio.gather(first, second)
        async with device.occupied():  # two wait, so neither runs alone
            gate.open.clear()
            gate.entered.clear()
            inside = device.submit(2)
            other = device.threads.submit(well, shape, image(3, shape), deadline=NEVER)
        await other
        assert await asyncio.to_thread(gate.entered.wait, 30)
        await until(lambda: len(device.threads.at_work()) == 1)
        made = device.threads.expect(device.resident, SHAPE, deadline=NEVER)
        watch.pass_s(6)
        made.fill(image(4))
        for future in (inside, made.future):
            with pytest.raises(DeviceHangs):
                await future
        with pytest.raises(DeviceHangs):
            device.submit(5)
        call = asyncio.create_task(device.threads.call(lambda: None))
        await asyncio.sleep(0)
        watch.pass_s(0.25)
        with pytest.raises(DeviceHangs):  # it would need the device for itself
            await call
        await device.threads.submit(well, shape, image(6, shape), deadline=NEVER)
        gate.open.set()
        await until(lambda: not device.threads.at_work())
        watch.pass_s(0.25)
        await device.submit(7)


async def test_a_process_that_stood_still_does_not_blame_its_device() -> None:
    gate, clock = Gate(), Clock()
    async with running(FakeEncoder(before=gate), clock=clock) as device:
        watch = Watch(device, clock)
        await device.submit(0)
        inside = await gate.shut_with_one_inside(lambda: device.submit(1))
        clock.now += 1000
        watch.dog.look()
        assert watch.dog.hang is None
        gate.open.set()
        await inside


async def test_a_batch_whose_items_fail_one_by_one_is_not_one_long_forward() -> None:
    clock = Clock()
    watch: list[Watch] = []

    def fail(batch: int) -> None:
        clock.now += 4
        raise RuntimeError

    encoder = FakeEncoder()
    async with running(encoder, clock=clock) as device:
        watch.append(Watch(device, clock))
        await device.submit(0)
        encoder.before = fail
        since = []
        gate = Gate()

        def fail_and_look(batch: int) -> None:
            since.append(device.threads.at_work()[0].since)
            fail(batch)

        encoder.before = fail_and_look
        await asyncio.gather(*await device.submit_together(1, 2), return_exceptions=True)
        await device.threads.call(lambda: None)
        assert gate.open.is_set()
    assert since == [100.0, 104.0, 108.0, 112.0]
