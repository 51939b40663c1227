"""Plans from costs: of the fake encoder, whose costs are known in closed form, and of a real one."""

from hypothesis import given
from hypothesis import strategies as st

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.adapters.registry import blueprint
from encoders.contract.cost import Cost
from encoders.contract.encoder import Encoder
from encoders.contract.spec import Resolutions
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.memory.plan import largest_size, plan
from encoders.memory.prediction import CPU, CUDA, MIB, Overhead, predict

TOKENS = Outputs(tokens=TokenKind.HIDDEN)
NATIVE = ImageSize(32, 32)
PATCH = ImageSize(8, 8)
SQUARES = [ImageSize(side, side) for side in range(8, 513, 8)]
"""All that the fake encoder can run at of the proportions of its native size."""


class Counting(FakeEncoder):
    """Counts how often its costs are asked for, which takes a real encoder a good part of a second."""

    asked = 0

    def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
        self.asked += 1
        return super().cost(size, outputs, device=device)


def needed(encoder: Encoder, size: ImageSize, batch: int, overhead: Overhead) -> int:
    return overhead.reserved(encoder.cost(size, TOKENS, device="cpu"), batch)


def found(
    encoder: Encoder,
    *,
    free: int,
    batch: int = 1,
    overhead: Overhead = CPU,
    like: ImageSize = NATIVE,
    at_most: ImageSize | None = None,
) -> ImageSize | None:
    return largest_size(
        encoder, TOKENS, batch=batch, device="cpu", overhead=overhead, free=free, like=like, at_most=at_most
    )


def test_a_plan_has_a_row_for_every_size_and_batch_in_their_order() -> None:
    sizes, batches = [ImageSize(64, 64), ImageSize(32, 96)], [8, 1]
    rows = plan(FakeEncoder(), sizes, batches, TOKENS, device="cpu", overhead=CPU, room=None)
    assert [(row.size, row.prediction.batch) for row in rows] == [(size, batch) for size in sizes for batch in batches]
    assert {row.dtype for row in rows} == {"float32"}


def test_a_row_is_the_prediction_for_its_size_and_batch() -> None:
    encoder = FakeEncoder(fake_spec(weights_bytes=1000))
    (row,) = plan(encoder, [NATIVE], [3], TOKENS, device="cuda", overhead=CUDA, room=None)
    cost = encoder.cost(NATIVE, TOKENS, device="cuda")
    assert row.prediction == predict(cost, 3, weights_bytes=1000, overhead=CUDA)


def test_a_plan_without_room_names_no_largest_batch() -> None:
    rows = plan(FakeEncoder(), [NATIVE], [1], TOKENS, device="cpu", overhead=CPU, room=None)
    assert [row.max_batch for row in rows] == [None]


@given(room=st.integers(0, 2000 * MIB), weights=st.integers(0, 100 * MIB))
def test_the_largest_batch_fits_the_room_with_weights_and_context_and_one_more_does_not(
    room: int, weights: int
) -> None:
    encoder = FakeEncoder(fake_spec(weights_bytes=weights))
    (row,) = plan(encoder, [NATIVE], [1], TOKENS, device="cuda", overhead=CUDA, room=room)
    fixed, fits = weights + CUDA.context, row.max_batch
    assert fits is not None
    assert fits == 0 or fixed + needed(encoder, NATIVE, fits, CUDA) <= room
    assert fixed + needed(encoder, NATIVE, fits + 1, CUDA) > room


def test_a_size_is_traced_once_for_all_its_batches() -> None:
    encoder = Counting()
    plan(encoder, [NATIVE, ImageSize(64, 64)], [1, 2, 4, 8], TOKENS, device="cpu", overhead=CPU, room=10**9)
    assert encoder.asked == 2


@given(free=st.integers(-MIB, 2000 * MIB), batch=st.integers(1, 64), overhead=st.sampled_from([CPU, CUDA]))
def test_the_largest_size_is_the_last_that_fits(free: int, batch: int, overhead: Overhead) -> None:
    encoder = FakeEncoder()
    fitting = [size for size in SQUARES if needed(encoder, size, batch, overhead) <= free]
    assert found(encoder, free=free, batch=batch, overhead=overhead) == (fitting[-1] if fitting else None)


@given(free=st.integers(0, 100 * MIB), side=st.integers(1, 600))
def test_no_side_is_above_the_bound(free: int, side: int) -> None:
    bound = ImageSize(side, 600)
    fitting = [size for size in SQUARES if size.height <= side and needed(FakeEncoder(), size, 1, CPU) <= free]
    assert found(FakeEncoder(), free=free, at_most=bound) == (fitting[-1] if fitting else None)


@given(rows=st.integers(1, 64), cols=st.integers(1, 64))
def test_proportions_are_kept_exactly_and_sides_are_whole_patches(rows: int, cols: int) -> None:
    size = found(FakeEncoder(), free=10**12, like=ImageSize(rows * 8, cols * 8))
    assert size is not None
    assert size.height * cols == size.width * rows
    assert fake_spec().resolutions.problem(size) is None
    assert (size.height % 8, size.width % 8) == (0, 0)


def test_an_encoder_that_takes_any_size_is_tried_in_whole_patches_alone() -> None:
    """Pixels beyond the last whole patch cost memory and give no token."""
    anything = Resolutions(ImageSize(1, 1), PATCH, ImageSize(500, 500))
    size = found(FakeEncoder(fake_spec(resolutions=anything)), free=10**12, like=ImageSize(97, 97))
    assert size == ImageSize(496, 496)


def test_an_encoder_of_one_size_has_that_or_none() -> None:
    fixed = FakeEncoder(fake_spec(resolutions=Resolutions(PATCH, PATCH, ImageSize(512, 512), only=NATIVE)))
    enough = needed(fixed, NATIVE, 1, CPU)
    assert found(fixed, free=enough) == NATIVE
    assert found(fixed, free=enough - 1) is None
    assert found(fixed, free=enough, like=ImageSize(64, 128)) == NATIVE


@given(free=st.integers(0, 2000 * MIB), batch=st.integers(1, 64), overhead=st.sampled_from([CPU, CUDA]))
def test_few_costs_are_asked_for_among_64_sizes(free: int, batch: int, overhead: Overhead) -> None:
    encoder = Counting()
    found(encoder, free=free, batch=batch, overhead=overhead)
    assert encoder.asked <= 5


def test_of_a_real_encoder_the_largest_size_fits_and_the_next_does_not() -> None:
    drawn = blueprint("demo:resnet")
    native, patch = drawn.spec.image_size, drawn.spec.patch_size
    free = 3 * needed(drawn, native, 4, CPU)
    size = found(drawn, free=free, batch=4, like=native)
    assert size is not None
    assert size > native
    larger = ImageSize(size.height + patch.height, size.width + patch.width)
    assert needed(drawn, size, 4, CPU) <= free < needed(drawn, larger, 4, CPU)
