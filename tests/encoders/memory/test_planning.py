"""Plans from costs: of the fake blueprint, whose costs are known in closed form, and of a real one."""

from hypothesis import given
from hypothesis import strategies as st

from encoders.adapters import registry
from encoders.adapters.fake import FakeBlueprint, fake_spec
from encoders.contract.cost import Cost
from encoders.contract.encoder import Blueprint
from encoders.contract.spec import Resolutions
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.memory.plan import largest_size, plan
from encoders.memory.prediction import CPU, CUDA, MIB, Overhead, predict

TOKENS = Outputs(tokens=TokenKind.HIDDEN)
NATIVE = ImageSize(32, 32)
PATCH = ImageSize(8, 8)
SQUARES = [ImageSize(side, side) for side in range(8, 513, 8)]
"""All that the fake can run at of the proportions of its native size."""


class Counting(FakeBlueprint):
    """Counts how often its costs are asked for, which takes a real blueprint a good part of a second."""

    asked = 0

    def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
        self.asked += 1
        return super().cost(size, outputs, device=device)


def needed(blueprint: Blueprint, size: ImageSize, batch: int, overhead: Overhead) -> int:
    return overhead.reserved(blueprint.cost(size, TOKENS, device="cpu"), batch)


def found(
    blueprint: Blueprint,
    *,
    free: int,
    batch: int = 1,
    overhead: Overhead = CPU,
    like: ImageSize = NATIVE,
    at_most: ImageSize | None = None,
) -> ImageSize | None:
    return largest_size(
        blueprint, TOKENS, batch=batch, device="cpu", overhead=overhead, free=free, like=like, at_most=at_most
    )


def test_a_plan_has_a_row_for_every_size_and_batch_in_their_order() -> None:
    sizes, batches = [ImageSize(64, 64), ImageSize(32, 96)], [8, 1]
    rows = plan(FakeBlueprint(), sizes, batches, TOKENS, device="cpu", overhead=CPU, room=None)
    assert [(row.size, row.prediction.batch) for row in rows] == [(size, batch) for size in sizes for batch in batches]
    assert {row.dtype for row in rows} == {"float32"}


def test_a_row_is_the_prediction_for_its_size_and_batch() -> None:
    drawn = FakeBlueprint(fake_spec(weights_bytes=1000))
    (row,) = plan(drawn, [NATIVE], [3], TOKENS, device="cuda", overhead=CUDA, room=None)
    cost = drawn.cost(NATIVE, TOKENS, device="cuda")
    assert row.prediction == predict(cost, 3, weights_bytes=1000, overhead=CUDA)


def test_a_plan_without_room_names_no_largest_batch() -> None:
    rows = plan(FakeBlueprint(), [NATIVE], [1], TOKENS, device="cpu", overhead=CPU, room=None)
    assert [row.max_batch for row in rows] == [None]


@given(room=st.integers(0, 2000 * MIB), weights=st.integers(0, 100 * MIB))
def test_the_largest_batch_fits_the_room_with_weights_and_context_and_one_more_does_not(
    room: int, weights: int
) -> None:
    drawn = FakeBlueprint(fake_spec(weights_bytes=weights))
    (row,) = plan(drawn, [NATIVE], [1], TOKENS, device="cuda", overhead=CUDA, room=room)
    fixed, fits = weights + CUDA.context, row.max_batch
    assert fits is not None
    assert fits == 0 or fixed + needed(drawn, NATIVE, fits, CUDA) <= room
    assert fixed + needed(drawn, NATIVE, fits + 1, CUDA) > room


def test_a_size_is_traced_once_for_all_its_batches() -> None:
    drawn = Counting()
    plan(drawn, [NATIVE, ImageSize(64, 64)], [1, 2, 4, 8], TOKENS, device="cpu", overhead=CPU, room=10**9)
    assert drawn.asked == 2


@given(free=st.integers(-MIB, 2000 * MIB), batch=st.integers(1, 64), overhead=st.sampled_from([CPU, CUDA]))
def test_the_largest_size_is_the_last_that_fits(free: int, batch: int, overhead: Overhead) -> None:
    drawn = FakeBlueprint()
    fitting = [size for size in SQUARES if needed(drawn, size, batch, overhead) <= free]
    assert found(drawn, free=free, batch=batch, overhead=overhead) == (fitting[-1] if fitting else None)


@given(free=st.integers(0, 100 * MIB), side=st.integers(1, 600))
def test_no_side_is_above_the_bound(free: int, side: int) -> None:
    bound = ImageSize(side, 600)
    fitting = [size for size in SQUARES if size.height <= side and needed(FakeBlueprint(), size, 1, CPU) <= free]
    assert found(FakeBlueprint(), free=free, at_most=bound) == (fitting[-1] if fitting else None)


@given(rows=st.integers(1, 64), cols=st.integers(1, 64))
def test_proportions_are_kept_exactly_and_sides_are_whole_patches(rows: int, cols: int) -> None:
    size = found(FakeBlueprint(), free=10**12, like=ImageSize(rows * 8, cols * 8))
    assert size is not None
    assert size.height * cols == size.width * rows
    assert fake_spec().resolutions.problem(size) is None
    assert (size.height % 8, size.width % 8) == (0, 0)


def test_an_encoder_that_takes_any_size_is_tried_in_whole_patches_alone() -> None:
    """Pixels beyond the last whole patch cost memory and give no token."""
    anything = Resolutions(ImageSize(1, 1), PATCH, ImageSize(500, 500))
    size = found(FakeBlueprint(fake_spec(resolutions=anything)), free=10**12, like=ImageSize(97, 97))
    assert size == ImageSize(496, 496)


def test_an_encoder_of_one_size_has_that_or_none() -> None:
    fixed = FakeBlueprint(fake_spec(resolutions=Resolutions(PATCH, PATCH, ImageSize(512, 512), only=NATIVE)))
    enough = needed(fixed, NATIVE, 1, CPU)
    assert found(fixed, free=enough) == NATIVE
    assert found(fixed, free=enough - 1) is None
    assert found(fixed, free=enough, like=ImageSize(64, 128)) == NATIVE


@given(free=st.integers(0, 2000 * MIB), batch=st.integers(1, 64), overhead=st.sampled_from([CPU, CUDA]))
def test_few_costs_are_asked_for_among_64_sizes(free: int, batch: int, overhead: Overhead) -> None:
    drawn = Counting()
    found(drawn, free=free, batch=batch, overhead=overhead)
    assert drawn.asked <= 5


def test_of_a_real_encoder_the_largest_size_fits_and_the_next_does_not() -> None:
    drawn = registry.blueprint("demo:resnet")
    native, patch = drawn.spec.image_size, drawn.spec.patch_size
    free = 3 * needed(drawn, native, 4, CPU)
    size = found(drawn, free=free, batch=4, like=native)
    assert size is not None
    assert size > native
    larger = ImageSize(size.height + patch.height, size.width + patch.width)
    assert needed(drawn, size, 4, CPU) <= free < needed(drawn, larger, 4, CPU)
