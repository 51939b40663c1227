"""What is made of forwards on a device that counts bytes."""

import weakref
from typing import Any

import pytest

from encoders.adapters.fake import FakeEncoder, FakeMemory
from encoders.contract.encoder import Forward
from encoders.contract.errors import EncoderFailed, OutOfMemory
from encoders.contract.values import Encoded, Outputs, Pixels
from encoders.memory.prediction import CPU
from service.memory.budget import Budget
from service.memory.measurement import Measurement
from service.memory.shape import ImageShape, Shape
from service.scheduling.batch import Batch
from service.telemetry.metrics import Metrics
from tests.support.device_threads import SHAPE, AtWork, image
from tests.support.shapes import MODEL, image_shape, linear


class Card(FakeEncoder):
    """Takes and gives back its memory as a batch is begun; fails when one larger than `room` is waited for."""

    room = 100

    def begin(self, pixels: Pixels, outputs: Outputs) -> Forward:
        encoded = self.encode(pixels, outputs)

        def finish() -> Encoded:
            if len(pixels) > self.room:
                raise OutOfMemory(encoder=self.spec.id)
            return encoded

        return AtWork(finish)


class Slow(FakeMemory):
    """Reading it slows a forward, as on a CPU; and `released` counts."""

    reads_freely = False

    def __init__(self) -> None:
        super().__init__(10**9)
        self.released = 0

    def release(self) -> None:
        self.released += 1


class Bench:
    """A measurement, and what it tells."""

    def __init__(self, memory: FakeMemory | None = None, *, true_cost: float = 1.0) -> None:
        self.memory = memory or FakeMemory(10**9)
        self.budget = Budget(limit=10**9, overhead=CPU)
        self.metrics = Metrics([MODEL], refusals=())
        self.measurement = Measurement(self.memory, self.budget, self.metrics)
        self.card = Card(memory=self.memory, true_cost=true_cost)

    def begin(self, count: int, shape: ImageShape = SHAPE) -> Batch:
        return Batch(self.card, shape, [image(value, shape) for value in range(count)], self.measurement)

    def sample(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"visiontower_{name}", {"model": MODEL})


def test_a_reading_is_of_one_batch_though_another_runs() -> None:
    """Each takes twice what is predicted, and so no more than that is learnt of them."""
    bench = Bench(true_cost=2.0)
    begun = [bench.begin(4) for _ in range(2)]
    predicted = bench.budget.predicted(SHAPE, 4)
    assert bench.budget.excess(MODEL, predicted) == predicted
    assert [len(batch.wait()) for batch in begun] == [4, 4]
    assert bench.budget.excess(MODEL, predicted) == predicted


def test_a_forward_is_held_against_its_prediction_in_the_metrics() -> None:
    bench = Bench(true_cost=1.5)
    bench.begin(4).wait()
    assert bench.sample("vram_prediction_ratio") == pytest.approx(1.5)


def test_an_out_of_memory_found_when_it_is_waited_for_is_recovered_from_and_remembered() -> None:
    bench = Bench()
    bench.card.room = 2
    outcomes = bench.begin(4).wait()
    assert [type(outcome) for outcome in outcomes] == [Encoded] * 4
    assert bench.budget.allowance(SHAPE).ceiling == 2
    assert bench.sample("out_of_memory_total") == 1


def test_an_out_of_memory_found_when_it_is_begun_is_recovered_from_and_remembered() -> None:
    bench = Bench()
    bench.memory.limit(SHAPE.cost.requested(2))
    outcomes = bench.begin(8).wait()
    assert [type(outcome) for outcome in outcomes] == [Encoded] * 8
    assert bench.budget.allowance(SHAPE).ceiling == 2
    assert bench.sample("out_of_memory_total") == bench.memory.failures == 3


def test_what_is_kept_for_later_is_given_back_to_a_device_without_room() -> None:
    memory = Slow()
    bench = Bench(memory)
    bench.card.room = 2
    bench.begin(4).wait()
    assert memory.released == 1


def test_full_batches_that_find_room_let_a_lowered_ceiling_grow() -> None:
    bench = Bench()
    bench.budget.ran_out(SHAPE, 4)
    for _ in range(8):
        bench.begin(2).wait()
    assert bench.budget.allowance(SHAPE).ceiling == 3


def test_where_reading_is_free_every_forward_is_measured() -> None:
    bench = Bench()
    for _ in range(5):
        bench.begin(1).wait()
    bench.card.true_cost = 2.0
    bench.begin(1).wait()
    assert bench.sample("vram_prediction_ratio") == pytest.approx(2.0)


def test_where_reading_slows_a_forward_the_first_two_of_each_shape_are_measured() -> None:
    bench, other = Bench(Slow()), image_shape(side=16)
    ratios = []
    for true_cost in (1.0, 2.0, 3.0, 4.0):
        bench.card.true_cost = true_cost
        bench.begin(1).wait()
        ratios.append(bench.sample("vram_prediction_ratio"))
    assert ratios == pytest.approx([1.0, 2.0, 2.0, 2.0], rel=0.01)
    bench.begin(1, other).wait()
    assert bench.sample("vram_prediction_ratio") == pytest.approx(4.0, rel=0.01)


def test_a_forward_that_is_not_measured_counts_as_one_that_found_room() -> None:
    bench = Bench(Slow())
    bench.budget.ran_out(SHAPE, 4)
    for _ in range(8):
        bench.begin(2).wait()
    assert bench.budget.allowance(SHAPE).ceiling == 3


def test_where_nothing_was_predicted_nothing_is_told() -> None:
    bench = Bench()
    shape = image_shape(cost=linear(0))
    with bench.measurement.forward(shape, 1):
        bench.memory.take(5, by=MODEL)
    assert bench.sample("vram_prediction_ratio") is None
    assert bench.budget.excess(MODEL, 100) == 0


def test_a_forward_that_fails_says_nothing() -> None:
    bench = Bench(Slow())
    bench.budget.ran_out(SHAPE, 2)

    def fail(batch: int) -> None:
        bench.memory.take(10**6, by=MODEL)
        bench.memory.give(10**6)
        raise EncoderFailed("broken")

    bench.card.before = fail
    for _ in range(10):
        assert [type(outcome) for outcome in bench.begin(1).wait()] == [EncoderFailed]
    assert bench.sample("vram_prediction_ratio") is None
    assert bench.budget.excess(MODEL, 100) == 0
    assert bench.budget.allowance(SHAPE).ceiling == 1
    assert bench.measurement.settled == set()


def test_where_reading_slows_a_forward_a_shape_is_settled_after_two_and_where_it_is_free_never() -> None:
    for bench, settled in ((Bench(Slow()), {SHAPE}), (Bench(), set[Shape]())):
        bench.begin(1).wait()
        assert bench.measurement.settled == set()
        for _ in range(2):
            bench.begin(1).wait()
            assert bench.measurement.settled == settled


def test_a_shape_that_ran_out_is_not_settled_again_before_its_ceiling_is_forgotten() -> None:
    bench = Bench(Slow())
    for _ in range(2):
        bench.begin(1).wait()
    bench.measurement.ran_out(SHAPE, 4)
    assert bench.measurement.settled == set()
    for _ in range(8):
        bench.begin(2).wait()
    assert bench.budget.allowance(SHAPE).ceiling == 3
    assert bench.measurement.settled == set()
    bench.budget.caps.clear()
    bench.begin(1).wait()
    assert bench.measurement.settled == {SHAPE}


@pytest.mark.parametrize("forwards", [1, 2])
def test_shapes_are_kept_up_to_a_bound(forwards: int) -> None:
    """Those that are asked for once, too."""
    bench = Bench(Slow())
    shapes: list[weakref.ref[Shape]] = []
    for _ in range(10_100):
        shape = image_shape(cost=SHAPE.cost)
        shapes.append(weakref.ref(shape))
        for _ in range(forwards):
            with bench.measurement.forward(shape, 1):
                pass
    assert sum(each() is not None for each in shapes) <= 10_001
    assert (shape in bench.measurement.settled) == (forwards == 2)


def test_a_shape_that_runs_out_in_one_lane_while_a_forward_of_it_ends_in_another_is_not_settled() -> None:
    """Else its ceiling would never grow again."""
    bench = Bench(Slow())

    class Caps(dict[Shape, Any]):
        def __contains__(self, shape: object) -> bool:
            answer = super().__contains__(shape)
            if not self:
                bench.measurement.ran_out(SHAPE, 4)
            return answer

    bench.begin(1).wait()
    bench.budget.caps = Caps()
    bench.begin(1).wait()
    assert bench.budget.caps
    assert bench.measurement.settled == set()
