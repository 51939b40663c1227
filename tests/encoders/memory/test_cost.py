"""The arithmetic of predictions, for all curves: lines, their inverse, overheads, and sums that add up."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from encoders.adapters.fake import FakeBlueprint
from encoders.contract.cost import Cost, Curve
from encoders.contract.values import ImageSize, Outputs
from encoders.memory.plan import largest_size
from encoders.memory.prediction import CPU, CUDA, MIB, Overhead, overhead_of, predict

Moments = list[tuple[int, int]]
"""Lines (fixed, an item), one for each moment of a forward."""

moments = st.lists(
    st.builds(lambda at_two, item: (at_two - 2 * item, item), st.integers(0, 5_000), st.integers(0, 500)),
    min_size=1,
    max_size=8,
)
"""Of any forward: at two items no moment is below nothing, and no line falls."""
some_bytes = st.lists(st.integers(0, 5_000), min_size=1, max_size=5)
limits = st.integers(-100, 50_000)

BATCHES = 300
"""Batches tried one by one, where an inverse is checked against all of them."""


def bytes_at(batch: int, moments: Moments) -> list[int]:
    """The bytes alive at each moment of a forward of `batch` items."""
    return [fixed + item * batch for fixed, item in moments]


def through(alone: int, moments: Moments) -> Curve:
    """The curve that forwards of one, two and four items give."""
    return Curve.through([alone], bytes_at(2, moments), bytes_at(4, moments))


@given(moments, st.integers(2, 100_000))
def test_a_curve_is_the_greatest_of_its_moments(moments: Moments, batch: int) -> None:
    assert through(0, moments)(batch) == max(bytes_at(batch, moments))


@given(moments)
def test_a_curve_keeps_no_line_twice_nor_out_of_order(moments: Moments) -> None:
    """A forward has hundreds of moments, its curve a line or two: evaluating it costs nothing."""
    kept = through(0, moments).lines
    assert set(kept) <= set(moments)
    assert [item for _, item in kept] == sorted({item for _, item in kept})


@given(st.integers(0, 5_000), moments)
def test_one_item_has_its_own_value(alone: int, moments: Moments) -> None:
    """Kernels may take another way at a batch of one: nothing is said of it by the lines, nor of them by it."""
    assert through(alone, moments)(1) == alone


@given(st.integers(0, 20_000), moments, limits)
def test_the_largest_batch_of_a_curve_is_its_exact_inverse(alone: int, moments: Moments, limit: int) -> None:
    curve = through(alone, moments)
    by_trying = max((batch for batch in range(1, BATCHES) if curve(batch) <= limit), default=0)
    assert min(curve.largest(limit), BATCHES - 1) == by_trying


@given(some_bytes, some_bytes)
def test_forwards_that_differ_in_length_give_the_line_through_their_peaks(two: list[int], four: list[int]) -> None:
    """Moments cannot be told apart then, so the peaks are all that is known; what was seen is never understated."""
    two, four = sorted((two, four), key=max)
    assume(len(two) != len(four))
    curve = Curve.through([0], two, four)
    assert curve(2) == max(two)
    assert max(four) <= curve(4) <= max(four) + 1
    assert curve(6) - curve(4) == curve(4) - curve(2)


@given(some_bytes)
def test_what_only_the_larger_forward_does_is_counted(four: list[int]) -> None:
    """As where matrix products begin at some batch size."""
    assert Curve.through([], [], four)(4) >= max(four)


def test_a_forward_that_makes_nothing_takes_nothing() -> None:
    nothing = Curve.through([], [], [])
    assert (nothing(1), nothing(1000)) == (0, 0)
    assert nothing.largest(0) >= 2**31
    assert nothing.largest(-1) == 0


@st.composite
def costs(draw: st.DrawFn) -> Cost:
    """Of any forward: products are among its moments, and one item takes no more than two."""
    during = draw(moments)
    every = during + draw(moments)
    alone = draw(st.integers(0, max(bytes_at(2, every))))
    return Cost(
        requested=through(alone, every),
        during_products=through(draw(st.integers(0, min(alone, max(bytes_at(2, during))))), during),
        input_bytes=draw(st.integers(0, 100)),
        output_bytes=draw(st.integers(0, 100)),
        flops=draw(st.integers(0, 10**12)),
        tokens=draw(st.integers(1, 4096)),
    )


overheads = st.builds(Overhead, context=st.integers(0, 500), workspace=st.integers(0, 500), page=st.integers(0, 500))


@given(costs(), overheads, st.integers(1, 1000))
def test_each_measure_is_at_least_the_one_before(cost: Cost, overhead: Overhead, batch: int) -> None:
    assert cost.requested(batch) <= overhead.allocated(cost, batch) <= overhead.reserved(cost, batch)


@given(costs(), overheads, st.integers(1, 1000))
def test_a_larger_batch_never_needs_less(cost: Cost, overhead: Overhead, batch: int) -> None:
    assert overhead.reserved(cost, batch) <= overhead.reserved(cost, batch + 1)


@given(costs(), overheads, limits)
def test_the_largest_batch_fits_what_is_free(cost: Cost, overhead: Overhead, free: int) -> None:
    batch = min(overhead.largest_batch(cost, free), BATCHES)
    assert batch == 0 or overhead.reserved(cost, batch) <= free


@given(costs(), overheads, limits)
def test_one_more_than_the_largest_batch_does_not_fit(cost: Cost, overhead: Overhead, free: int) -> None:
    batch = overhead.largest_batch(cost, free)
    assert batch >= BATCHES or overhead.reserved(cost, batch + 1) > free


@given(st.integers(0, 5_000), st.integers(0, 500))
def test_the_largest_batch_uses_the_last_byte(free: int, page: int) -> None:
    """Of items of one byte: rounding of what pages lose costs none of them."""
    byte = Curve(1, ((0, 1),))
    cost = Cost(byte, byte, input_bytes=0, output_bytes=0, flops=0, tokens=1)
    overhead = Overhead(page=page)
    by_trying = max((batch for batch in range(1, free + 1) if overhead.reserved(cost, batch) <= free), default=0)
    assert overhead.largest_batch(cost, free) == by_trying


@given(costs(), st.integers(1, 1000))
def test_a_cpu_takes_what_tensors_ask_for(cost: Cost, batch: int) -> None:
    assert CPU.reserved(cost, batch) == max(cost.requested(batch), cost.during_products(batch))
    assert predict(cost, batch, weights_bytes=0, overhead=CPU).overhead_bytes == 0


@given(costs(), st.integers(1, 1000))
def test_a_workspace_comes_on_top_of_products_only(cost: Cost, batch: int) -> None:
    none = dataclasses.replace(cost, during_products=Curve.through([], [], []))
    assert Overhead(workspace=MIB).allocated(none, batch) == max(cost.requested(batch), MIB)
    with_products = Overhead(workspace=MIB).allocated(cost, batch)
    assert with_products == max(cost.requested(batch), cost.during_products(batch) + MIB)


@given(costs(), st.integers(1, 1000), st.integers(0, 10**9), overheads)
def test_the_parts_of_a_prediction_add_up(cost: Cost, batch: int, weights_bytes: int, overhead: Overhead) -> None:
    prediction = predict(cost, batch, weights_bytes=weights_bytes, overhead=overhead)
    assert prediction.total_bytes == weights_bytes + overhead.context + overhead.reserved(cost, batch)
    assert prediction.io_bytes + prediction.activation_bytes == cost.requested(batch)
    assert prediction.input_bytes == batch * cost.input_bytes
    assert prediction.output_bytes == batch * cost.output_bytes
    assert (prediction.tokens, prediction.flops) == (batch * cost.tokens, batch * cost.flops)


def test_a_device_that_is_not_at_hand_has_its_overhead() -> None:
    assert (overhead_of("cpu"), overhead_of("cuda")) == (CPU, CUDA)
    assert CUDA.workspace >= 32 * MIB  # Hopper's and Blackwell's, the largest that cuBLAS takes by default


@pytest.mark.parametrize(("alone", "lines"), [(1, ()), (-1, ((0, 1),)), (1, ((0, -1),))])
def test_no_curve_is_below_nothing(alone: int, lines: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="a forward cannot take"):
        Curve(alone, lines)


def test_of_forwards_that_take_nothing_any_size_fits() -> None:
    """A plug-in may not know what they take."""

    class Unknowing(FakeBlueprint):
        def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
            nothing = Curve(0, ((0, 0),))
            return Cost(nothing, nothing, 0, 0, 0, 0)

    drawn, pooled = Unknowing(), Outputs(pooled=True)
    size = largest_size(drawn, pooled, batch=1, device="cpu", overhead=CPU, free=100, like=drawn.spec.image_size)
    assert size == drawn.spec.resolutions.maximum
