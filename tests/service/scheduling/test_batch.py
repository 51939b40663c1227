"""One batch through an encoder: whose failure is whose, and what is left of it."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, FakeMemory
from encoders.contract.encoder import Forward
from encoders.contract.errors import EncoderFailed, OutOfMemory
from encoders.contract.values import Encoded, Floats, Grid, Outputs, Pixels, TokenIds, TokenKind
from encoders.memory.device import Reading
from encoders.memory.prediction import CPU
from service.memory.budget import Budget
from service.memory.measurement import Measurement
from service.scheduling.batch import Batch, Outcome
from service.telemetry.metrics import Metrics
from tests.support.device_threads import SHAPE, TEXT, AtWork, alone, image
from tests.support.shapes import MODEL, image_shape

POISON = 255


class Card(FakeEncoder):
    """Leaves its device at work. `on`: called in each of its steps, begin and wait, with the values of the images."""

    def __init__(self, *, on: dict[str, Callable[[list[int]], None]]) -> None:
        super().__init__()
        self.on = on
        self.log: list[tuple[str, list[int]]] = []

    def begin(self, pixels: Pixels, outputs: Outputs) -> Forward:
        values = [int(row[0, 0, 0]) for row in pixels]
        self._step("begin", values)

        def finish() -> Encoded:
            self._step("wait", values)
            return self.encode(pixels, outputs)

        return AtWork(finish)

    def _step(self, name: str, values: list[int]) -> None:
        self.log.append((name, values))
        if name in self.on:
            self.on[name](values)


def raising(error: BaseException, *, above: int = 0) -> Callable[[list[int]], None]:
    """An error of batches with poison in them, or of more than `above` images."""

    def check(values: list[int]) -> None:
        if POISON in values or len(values) > above > 0:
            raise error

    return check


@dataclass
class Bench:
    """Where batches are run, and what is learnt of them."""

    encoder: FakeEncoder
    memory: FakeMemory = field(default_factory=lambda: FakeMemory(2**40))

    def __post_init__(self) -> None:
        self.budget = Budget(limit=2**40, overhead=CPU)
        self.metrics = Metrics([MODEL], refusals=())
        self.measurement = Measurement(self.memory, self.budget, self.metrics)

    def begin(self, *values: int) -> Batch:
        return Batch(self.encoder, SHAPE, [image(value) for value in values], self.measurement)

    def run(self, *values: int) -> list[Outcome]:
        return self.begin(*values).wait()

    @property
    def out_of_memory(self) -> float | None:
        return self.metrics.registry.get_sample_value("visiontower_out_of_memory_total", {"model": MODEL})


def is_its_row(outcome: Outcome, value: int) -> bool:
    return isinstance(outcome, Encoded) and np.allclose(np.asarray(outcome.pooled), alone(value), rtol=1e-6)


def test_every_image_is_given_its_own_row_in_order() -> None:
    outcomes = Bench(FakeEncoder()).run(3, 1, 2)
    assert [is_its_row(outcome, value) for outcome, value in zip(outcomes, (3, 1, 2), strict=True)] == [True] * 3


def test_every_text_is_given_its_own_row_in_order() -> None:
    encoder = FakeEncoder()
    ids = encoder.tokenize(["one", "two"]).ids
    batch = Batch(encoder, TEXT, list(ids), Bench(encoder).measurement)
    assert batch.is_done
    np.testing.assert_allclose(np.stack([np.asarray(row) for row in batch.wait()]), encoder.encode_text(ids))


def test_a_batch_that_was_left_at_work_is_not_done_until_it_is_waited_for() -> None:
    bench = Bench(Card(on={}))
    batch = bench.begin(1, 2)
    assert not batch.is_done
    assert bench.encoder.batches == []
    assert [is_its_row(outcome, value) for outcome, value in zip(batch.wait(), (1, 2), strict=True)] == [True] * 2


def test_nothing_can_be_begun_behind_a_batch_that_failed_to_begin() -> None:
    batch = Bench(Card(on={"begin": raising(RuntimeError())})).begin(POISON)
    assert batch.is_done
    assert [type(outcome) for outcome in batch.wait()] == [EncoderFailed]


@pytest.mark.parametrize("step", ["begin", "wait"])
@pytest.mark.parametrize("place", range(5))
def test_one_bad_input_fails_alone_in_whichever_step_and_its_neighbours_are_answered(step: str, place: int) -> None:
    values = [1, 2, 3, 4, 5]
    values[place] = POISON
    outcomes = Bench(Card(on={step: raising(RuntimeError())})).run(*values)
    for outcome, value in zip(outcomes, values, strict=True):
        assert isinstance(outcome, EncoderFailed) if value == POISON else is_its_row(outcome, value)


def test_halves_run_one_after_the_other_in_order() -> None:
    card = Card(on={"wait": raising(EncoderFailed("broken"))})
    Bench(card).run(1, 2, POISON, 3)
    halves = [[1, 2, POISON, 3], [1, 2], [POISON, 3], [POISON], [3]]
    assert card.log == [(step, half) for half in halves for step in ("begin", "wait")]


def test_a_foreign_exception_becomes_encoder_failed_without_its_message() -> None:
    (outcome,) = Bench(Card(on={"wait": raising(RuntimeError("device-side assert"))})).run(POISON)
    assert type(outcome) is EncoderFailed
    assert str(outcome) == "fake:vit failed with RuntimeError."
    assert outcome.facts["model"] == MODEL
    assert isinstance(outcome.__cause__, RuntimeError)


@pytest.mark.parametrize("step", ["begin", "wait"])
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_what_ends_a_thread_is_not_an_encoder_s_failure(step: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        Bench(Card(on={step: raising(error())})).run(POISON)


def answering(**changes: Any) -> FakeEncoder:
    """Its answers are not what it should give."""
    return FakeEncoder(after=lambda encoded: replace(encoded, **changes))


@pytest.mark.parametrize("leaves_at_work", [False, True])
@pytest.mark.parametrize(
    ("encoder", "wrong"),
    [
        (answering(pooled=np.zeros((5, 6), np.float32)), "pooled: 5x6, must be 1x6"),
        (answering(pooled=np.zeros((1, 7), np.float32)), "pooled: 1x7, must be 1x6"),
        (answering(pooled=None), "pooled: none, must be 1x6"),
        (answering(tokens=np.zeros((1, 1, 12), np.float32)), "tokens: 1x1x12, must be none"),
        (answering(grid=Grid(2, 1)), "grid: 2x1, must be 1x1"),
        (
            answering(pooled=np.zeros((1, 6), int)),
            "pooled: int64, none of float32, float16, bfloat16, must be 1x6",
        ),
        (answering(pooled=[[0.0] * 6]), "pooled: of type list, must be 1x6"),
        (FakeEncoder(after=lambda encoded: (None, encoded.pooled)), "tuple, must be Encoded"),  # type: ignore[arg-type, return-value]
    ],
    ids=["rows", "width", "nothing", "more than was asked", "grid", "dtype", "list", "tuple"],
)
def test_rows_that_the_spec_does_not_announce_are_a_failure_of_the_encoder(
    encoder: FakeEncoder, wrong: str, leaves_at_work: bool
) -> None:
    if leaves_at_work:
        card = Card(on={})
        card.after = encoder.after
        encoder = card
    batch = Bench(encoder).begin(1)
    (outcome,) = batch.wait()
    assert isinstance(outcome, EncoderFailed)
    assert f"fake:vit gave rows that its spec does not announce: {wrong}." in str(outcome)
    assert not batch.worked


def test_tokens_are_given_with_the_grid_and_the_prefix_of_each_image() -> None:
    encoder, shape = FakeEncoder(), image_shape(side=16, outputs=Outputs(tokens=TokenKind.HIDDEN, pooled=True))
    pixels = [image(value, shape) for value in (1, 2)]
    outcomes = Batch(encoder, shape, pixels, Bench(encoder).measurement).wait()
    for outcome, each in zip(outcomes, pixels, strict=True):
        row = encoder.encode(each[None], shape.outputs).row(0)
        assert isinstance(outcome, Encoded)
        assert (outcome.grid, outcome.prefix_tokens) == (Grid(2, 2), 1)
        np.testing.assert_allclose(np.asarray(outcome.tokens), np.asarray(row.tokens), rtol=1e-6)
        np.testing.assert_allclose(np.asarray(outcome.pooled), np.asarray(row.pooled), rtol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "wrong"),
    [
        (np.zeros((5, 6), np.float32), "5x6"),
        (np.zeros((1, 7), np.float32), "1x7"),
        (np.zeros((1, 6), object), "object, none of float32, float16, bfloat16"),
        ([[0.0] * 6], "of type list"),
        (None, "none"),
    ],
)
def test_vectors_of_texts_that_the_spec_does_not_announce_are_a_failure_of_the_encoder(
    vectors: Any, wrong: str
) -> None:
    class Faulty(FakeEncoder):
        def encode_text(self, ids: TokenIds) -> Floats:
            return vectors  # type: ignore[no-any-return]

    encoder = Faulty()
    (outcome,) = Batch(encoder, TEXT, list(encoder.tokenize(["one"]).ids), Bench(encoder).measurement).wait()
    assert isinstance(outcome, EncoderFailed)
    assert f"vectors of texts: {wrong}, must be 1x6." in str(outcome)


def test_a_library_without_memory_has_run_out_of_memory() -> None:
    bench = Bench(Card(on={"wait": raising(MemoryError(), above=2)}))
    assert all(isinstance(outcome, Encoded) for outcome in bench.run(1, 2, 3))
    assert bench.out_of_memory == 1


def test_whether_any_item_has_a_row_is_known() -> None:
    bench = Bench(Card(on={"wait": raising(EncoderFailed("broken"))}))
    for values, works in [((1,), True), ((POISON,), False), ((POISON, 1), True), ((POISON, POISON), False)]:
        batch = bench.begin(*values)
        assert not batch.worked
        batch.wait()
        assert batch.worked is works


def test_outcomes_are_there_when_they_are_known_and_the_forward_runs_once() -> None:
    bench = Bench(FakeEncoder())
    batch = bench.begin(1, 2)
    assert batch.worked
    assert batch.outcomes is not None
    assert batch.outcomes is batch.wait()
    card = Card(on={})
    batch = Bench(card).begin(1)
    assert batch.outcomes is None
    assert batch.wait() is batch.wait() is batch.outcomes
    assert card.log == [("begin", [1]), ("wait", [1])]


def test_a_forward_of_a_shape_that_is_settled_is_not_measured() -> None:
    class Counted(FakeMemory):
        readings = 0

        @contextmanager
        def reading(self) -> Iterator[Reading]:
            self.readings += 1
            with super().reading() as reading:
                yield reading

    memory = Counted(2**40)
    bench = Bench(FakeEncoder(), memory)
    bench.run(1, 2)
    bench.measurement.settled.add(SHAPE)
    bench.run(1, 2, 3)
    assert memory.readings == 1


@pytest.mark.parametrize("reads_freely", [True, False])
def test_a_shape_that_ran_out_where_it_was_not_measured_any_more_is_watched_again(reads_freely: bool) -> None:
    bench = Bench(Card(on={"begin": raising(OutOfMemory(encoder=MODEL), above=2)}))
    bench.memory.reads_freely = reads_freely
    for _ in range(3):
        bench.run(1)
    assert bench.measurement.settled == (set() if reads_freely else {SHAPE})
    bench.run(1, 2, 3)
    assert bench.measurement.settled == set()
    for _ in range(8):
        bench.run(1)
    assert bench.budget.allowance(SHAPE).ceiling == 2


def test_inputs_that_do_not_stack_are_a_failure_of_the_batch_and_each_is_tried_alone() -> None:
    encoder = FakeEncoder()
    payloads = [np.zeros((8, 8, 3), np.uint8), np.zeros((16, 8, 3), np.uint8)]
    outcomes = Batch(encoder, SHAPE, payloads, Bench(encoder).measurement).wait()
    assert [type(outcome) for outcome in outcomes] == [Encoded, EncoderFailed]
    assert encoder.batches == [1, 1]


class Tensor:
    """Memory that a forward takes."""


def fail(tensor: Tensor) -> None:
    """With a cause, and while another error was dealt with: the frames of all three hold the tensor."""

    def failed(tensor: Tensor) -> MemoryError:
        try:
            raise MemoryError
        except MemoryError as error:
            return error

    cause = failed(tensor)
    try:
        raise ValueError
    except ValueError:
        raise OutOfMemory(encoder=MODEL) from cause


@pytest.mark.parametrize("step", ["begin", "wait"])
def test_what_a_failed_forward_took_is_free_before_its_halves_are_tried(step: str) -> None:
    """On a full card the halves would not fit otherwise."""
    taken: list[weakref.ref[Tensor]] = []
    free: list[bool] = []

    def take(values: list[int]) -> None:
        free.extend(tensor() is None for tensor in taken)
        tensor = Tensor()
        taken.append(weakref.ref(tensor))
        if len(values) > 1:
            fail(tensor)

    outcomes = Bench(Card(on={step: take})).run(1, 2)
    assert [type(outcome) for outcome in outcomes] == [Encoded, Encoded]
    assert free == [True, True, True]


def test_a_failed_forward_is_let_go_before_its_halves_are_tried() -> None:
    """It may hold its outputs on the device."""
    begun: list[weakref.ref[Forward]] = []
    free: list[bool] = []

    class Holding(Card):
        def begin(self, pixels: Pixels, outputs: Outputs) -> Forward:
            free.extend(forward() is None for forward in begun)
            forward = super().begin(pixels, outputs)
            begun.append(weakref.ref(forward))
            return forward

    outcomes = Bench(Holding(on={"wait": raising(EncoderFailed("broken"), above=1)})).run(1, 2)
    assert [type(outcome) for outcome in outcomes] == [Encoded, Encoded]
    assert free == [True, True, True]


def test_a_failure_keeps_no_frame_of_the_forward_alive() -> None:
    (outcome,) = Bench(Card(on={"begin": lambda values: fail(Tensor())})).run(1)
    assert isinstance(outcome, OutOfMemory)
    links: list[BaseException | None] = [outcome]
    seen: list[type] = []
    while links:
        link = links.pop()
        if link is not None:
            assert link.__traceback__ is None
            seen.append(type(link))
            links += [link.__cause__, link.__context__]
    assert seen == [OutOfMemory, ValueError, MemoryError]


@pytest.mark.parametrize("step", ["begin", "wait"])
def test_a_batch_the_device_has_no_room_for_is_halved_counted_and_remembered(step: str) -> None:
    bench = Bench(Card(on={step: raising(OutOfMemory(encoder=MODEL), above=2)}))
    outcomes = bench.run(0, 1, 2, 3, 4, 5, 6, 7)
    assert [is_its_row(outcome, value) for value, outcome in enumerate(outcomes)] == [True] * 8
    assert bench.out_of_memory == 3
    assert bench.budget.allowance(SHAPE).ceiling == 2


def test_one_item_the_device_has_no_room_for_fails_and_is_counted() -> None:
    bench = Bench(Card(on={"begin": raising(OutOfMemory(encoder=MODEL))}))
    assert [type(outcome) for outcome in bench.run(POISON)] == [OutOfMemory]
    assert bench.out_of_memory == 1
    assert bench.budget.allowance(SHAPE).ceiling == 1


def test_another_failure_is_no_lack_of_room() -> None:
    bench = Bench(Card(on={"wait": raising(EncoderFailed("broken"))}))
    before = bench.budget.allowance(SHAPE).ceiling
    bench.run(1, POISON)
    assert bench.out_of_memory == 0
    assert bench.budget.allowance(SHAPE).ceiling == before
