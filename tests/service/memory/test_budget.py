"""What may run, in bytes: pure arithmetic over costs, and whole workloads on a device that is simulated."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.contract.cost import Cost, Curve
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.memory.prediction import CPU, CUDA, MIB, Overhead
from service.memory.budget import Budget
from service.scheduling.queue import BatchKey, ImageKey, Queue, TextKey

SIZE = ImageSize(224, 224)
KEY = ImageKey("a", SIZE, Outputs(pooled=True))


def linear(item: int, fixed: int = 0) -> Cost:
    curve = Curve(fixed + item, ((fixed, item),))
    return Cost(curve, curve, input_bytes=0, output_bytes=0, flops=1, tokens=1)


def budget_of(limit: int, cost: Cost, *, overhead: Overhead = CPU) -> Budget:
    budget = Budget(limit=limit, overhead=overhead)
    budget.learn(KEY, cost)
    return budget


def test_weights_and_the_largest_batch_fill_the_budget_and_no_more() -> None:
    budget = budget_of(1000, linear(30, fixed=10))
    budget.hold("a", 400)
    assert budget.ceiling(KEY) == 19
    assert budget.weights + budget.need(KEY, 19) <= 1000 < budget.weights + budget.need(KEY, 20)


def test_a_ceiling_leaves_room_for_pixels_on_their_way_but_a_single_item_needs_none() -> None:
    """Two batches of 3 * 224 * 224 bytes an image beside a forward that takes ten times that of each."""
    pixels = 3 * 224 * 224
    budget = budget_of(120 * pixels, linear(10 * pixels), overhead=Overhead(uploads=2))
    assert budget.ceiling(KEY) == 10
    assert budget.need(KEY, 1) == 10 * pixels
    tight = budget_of(10 * pixels, linear(10 * pixels), overhead=Overhead(uploads=2))
    assert tight.ceiling(KEY) == 1


def test_texts_leave_room_for_no_pixels() -> None:
    budget = budget_of(100, linear(10), overhead=Overhead(uploads=2))
    budget.learn(TextKey("a"), linear(10))
    assert budget.ceiling(TextKey("a")) == 10


def test_weights_of_another_model_leave_less_room_until_they_are_dropped() -> None:
    budget = budget_of(1000, linear(100))
    budget.hold("b", 500)
    assert budget.ceiling(KEY) == 5
    budget.drop("b")
    assert budget.ceiling(KEY) == 10


def test_what_was_admitted_runs_alone_however_tight_it_gets() -> None:
    budget = budget_of(1000, linear(600))
    budget.hold("b", 500)
    assert budget.ceiling(KEY) == 1


def test_forwards_side_by_side_divide_the_room_and_what_needs_more_than_its_share_runs_alone() -> None:
    budget = Budget(limit=1000, overhead=CPU, lanes=2)
    budget.hold("a", 200)
    budget.learn(KEY, linear(100))
    assert budget.ceiling(KEY) == 4
    assert not budget.runs_alone(KEY)
    large = replace(KEY, size=ImageSize(448, 448))
    budget.learn(large, linear(401))
    assert budget.ceiling(large) == 1
    assert budget.runs_alone(large)
    budget.hold("a", 198)
    assert not budget.runs_alone(large)


def test_the_only_lane_has_nothing_beside_it_anyway() -> None:
    assert not budget_of(100, linear(90)).runs_alone(KEY)


@given(limit=st.integers(10, 10_000), item=st.integers(1, 500), ratio=st.floats(1.0, 3.0), batch=st.integers(1, 50))
def test_one_forward_that_took_more_than_predicted_lowers_the_ceiling_in_proportion(
    limit: int, item: int, ratio: float, batch: int
) -> None:
    budget = budget_of(limit, linear(item))
    peak = int(item * batch * ratio)
    measured = budget.measured(KEY, batch, peak)
    assert measured == pytest.approx(peak / (item * batch))
    ceiling = budget.ceiling(KEY)
    larger = max(ceiling, batch)
    excess = peak - batch * item
    assert ceiling == 1 or ceiling * item + excess * (larger / batch if larger > 2 * batch else 1) <= limit + 1


def test_an_excess_that_is_the_same_for_small_forwards_and_large_does_not_grow_with_the_batch() -> None:
    """A workspace of 600, which at one item looks like 61 times what was predicted."""
    budget = budget_of(1000, linear(10))
    ceilings = []
    for _ in range(6):
        batch = budget.ceiling(KEY)
        ceilings.append(batch)
        budget.measured(KEY, min(batch, len(ceilings)), 600 + 10 * min(batch, len(ceilings)))
    assert ceilings == [100, 2, 40, 40, 40, 40]
    assert budget.need(KEY, 40) == 1000
    assert budget.ceiling(KEY) == 40


def test_an_excess_that_grows_with_the_forward_is_extrapolated() -> None:
    budget = budget_of(10_000, linear(10))
    budget.measured(KEY, 1, 10 + 100 + 1)
    budget.measured(KEY, 11, 110 + 100 + 11)
    assert budget.need(KEY, 101) == pytest.approx(1010 + 100 + 101, abs=2)


def test_a_correction_fades_when_it_is_no_longer_needed_but_not_at_once() -> None:
    budget = budget_of(1000, linear(10))
    budget.measured(KEY, 10, 150)
    assert budget.excess("a", 100) == 50
    budget.measured(KEY, 10, 100)
    assert 40 < budget.excess("a", 100) < 50
    for _ in range(500):
        budget.measured(KEY, 10, 100)
    assert budget.excess("a", 100) == 0
    assert budget.ceiling(KEY) == 100


def test_a_forward_that_took_less_raises_nothing() -> None:
    budget = budget_of(1000, linear(10))
    assert budget.measured(KEY, 1, 5) == 0.5
    assert budget.ceiling(KEY) == 100


def test_another_model_is_not_corrected() -> None:
    budget = budget_of(1000, linear(10))
    budget.measured(KEY, 1, 100)
    assert budget.excess("b", 1000) == 0


def test_an_out_of_memory_halves_the_shape_s_ceiling_and_is_remembered() -> None:
    budget = budget_of(1000, linear(10))
    budget.ran_out(KEY, 100)
    assert budget.ceiling(KEY) == 50
    budget.ran_out(KEY, 50)
    assert budget.ceiling(KEY) == 25
    other = replace(KEY, size=ImageSize(448, 448))
    budget.learn(other, linear(10))
    assert budget.ceiling(other) == 100


def test_a_ceiling_lowered_by_an_out_of_memory_grows_again_with_full_batches_alone() -> None:
    budget = budget_of(1000, linear(10))
    budget.ran_out(KEY, 8)
    for _ in range(100):
        budget.ran(KEY, 2)
    assert budget.ceiling(KEY) == 4
    for _ in range(8):
        budget.ran(KEY, 4)
    assert budget.ceiling(KEY) == 5


def test_what_is_inside_is_spoken_for() -> None:
    budget = budget_of(1000, linear(30))
    with budget.inside(KEY), budget.inside(KEY, TextKey("a")):
        assert budget.spoken_for == 30
    assert budget.spoken_for == 0


def test_shapes_are_forgotten_least_recently_used_first() -> None:
    budget = budget_of(1000, linear(10))
    for side in range(1, 10_001):
        budget.cost(KEY)
        budget.learn(replace(KEY, size=ImageSize(side, 1)), linear(1))
    assert budget.cost(KEY) is not None
    assert budget.cost(replace(KEY, size=ImageSize(1, 1))) is None


# Whole workloads. One forward at a time on a device that counts bytes and takes time; what a forward truly takes is the
# prediction or less, by a share that the planner is not told.

_MODELS = {"vit": (600 * MIB, 12, 1.0), "resnet": (80 * MIB, 56, 0.93), "convnext": (180 * MIB, 24, 0.87)}
"""Weights, activation bytes a pixel, and the true share of what is predicted."""
_SIDES = (64, 96, 224, 336, 448, 672)
_OUTPUTS = (Outputs(pooled=True), Outputs(tokens=TokenKind.HIDDEN), Outputs(tokens=TokenKind.HIDDEN, layer=3))


@dataclass
class Run:
    """What became of a workload. longest_wait: the batches an item saw go by, beyond those of older items."""

    items: int
    seconds: float
    out_of_memory: int
    overtaken: int


def workload(seed: int, items: int) -> list[BatchKey]:
    """Keys in order of arrival: bursts of one shape, a rare giant, texts between."""
    rng = random.Random(seed)
    keys: list[BatchKey] = []
    while len(keys) < items:
        model = rng.choice(list(_MODELS))
        if rng.random() < 0.1:
            keys += [TextKey(model)] * rng.randint(1, 20)
            continue
        side = rng.choices(_SIDES, weights=(5, 5, 8, 4, 2, 1))[0]
        shape = ImageSize(side, side if rng.random() < 0.7 else 2 * side)
        keys += [ImageKey(model, shape, rng.choice(_OUTPUTS))] * rng.choice((1, 1, 1, 4, 16))
    return keys[:items]


def cost_of(key: BatchKey) -> Cost:
    if isinstance(key, TextKey):
        return linear(2 * MIB)
    pixels = key.size.height * key.size.width
    return linear(_MODELS[key.model][1] * pixels, fixed=MIB)


def true_bytes(key: BatchKey, batch: int) -> int:
    return int(cost_of(key).requested(batch) * _MODELS[key.model][2])


def seconds(key: BatchKey, batch: int) -> float:
    """A launch, and work that grows with pixels."""
    pixels = 20_000 if isinstance(key, TextKey) else key.size.height * key.size.width
    return 0.002 + batch * pixels * 2e-7


def run(keys: list[BatchKey], ceiling: Callable[[BatchKey], int], *, room: int, queued: int = 64) -> Run:
    """Closed loop: `queued` items wait at any time, as long as there are more."""
    queue: Queue[int] = Queue(ceiling=ceiling)
    upcoming = list(enumerate(keys))[::-1]
    now, out_of_memory, done, overtaken = 0.0, 0, 0, 0
    waiting: dict[int, int] = {}  # item -> batches of younger items that went by
    while len(queue) or upcoming:
        while upcoming and len(queue) < queued:
            number, key = upcoming.pop()
            queue.put(key, number, now=now, deadline=float("inf"))
            waiting[number] = 0
        formed = queue.form_batch(now)
        key, numbers = formed.batch[0].key, [each.item for each in formed.batch]
        out_of_memory += true_bytes(key, len(numbers)) > room
        now += seconds(key, len(numbers))
        done += len(numbers)
        for number in numbers:
            del waiting[number]
        for number in waiting:
            waiting[number] += number < min(numbers)
        overtaken = max([overtaken, *waiting.values()])
    return Run(done, now, out_of_memory, overtaken)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tightness", [1.0, 1.05, 1.3, 2.0, 5.0, 30.0])
@pytest.mark.parametrize("overhead", [CPU, CUDA], ids=["cpu", "cuda"])
def test_under_any_budget_nothing_runs_out_of_memory_nothing_starves_and_the_oracle_is_hardly_faster(
    overhead: Overhead, tightness: float, seed: int
) -> None:
    """Zero out-of-memory; nobody is overtaken; 85 % of the throughput of ceilings that know the true cost.

    tightness 1: the largest single image just fits beside the weights.
    """
    keys = workload(seed, 1500)
    weights = sum(weights for weights, _, _ in _MODELS.values())
    largest = max(overhead.reserved(cost_of(key), 1) for key in keys)
    budget = Budget(limit=weights + int(largest * tightness), overhead=overhead)
    for model, (size, _, _) in _MODELS.items():
        budget.hold(model, size)
    for key in keys:
        budget.learn(key, cost_of(key))

    def oracle(key: BatchKey) -> int:
        batch = 1
        while batch < 64 and true_bytes(key, batch + 1) <= budget.room:
            batch += 1
        return batch

    planned = run(keys, budget.ceiling, room=budget.room)
    best = run(keys, oracle, room=budget.room)
    assert planned.items == best.items == len(keys)
    assert planned.out_of_memory == 0
    assert planned.overtaken == 0
    assert best.seconds >= 0.85 * planned.seconds
