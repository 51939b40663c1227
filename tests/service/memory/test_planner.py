"""What is planned when, and for whom. The blueprint is a fake that counts, and waits where a test holds it."""

import asyncio
import contextvars
import gc
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest

from encoders.adapters.fake import fake_spec
from encoders.contract.cost import Cost
from encoders.contract.encoder import Blueprint
from encoders.contract.errors import EncoderFailed, EncoderIdError, OutputNotOffered
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.memory.prediction import CPU, Overhead
from service.caller import CALLER
from service.errors import ImageDoesNotFit, Overloaded, ShuttingDown
from service.memory.budget import Budget
from service.memory.planner import Planner, Urgency
from service.memory.shape import ImageShape
from tests.support.shapes import MODEL, POOLED, image_shape, text_shape

pytestmark = pytest.mark.anyio
SIZE = ImageSize(8, 8)
TOKENS = Outputs(tokens=TokenKind.HIDDEN)
Asked: TypeAlias = "asyncio.Task[ImageShape]"


class CountingBlueprint:
    """asked: the shapes that were planned, None for texts. It waits while held, and fails while there is an error."""

    def __init__(self, spec: EncoderSpec) -> None:
        self.spec = spec
        self.asked: list[tuple[ImageSize, Outputs] | None] = []
        self.threads: set[int] = set()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.entered = threading.Event()
        self.error: Exception | None = None

    def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
        self._plan((size, outputs))
        return image_shape(self.spec.id, size.width, outputs, height=size.height).cost

    def text_cost(self, *, device: str) -> Cost:
        self.spec.require_text()
        self._plan(None)
        return text_shape(self.spec.id).cost

    def hold(self) -> None:
        self.goes_on.clear()
        self.entered.clear()

    async def is_at_work(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 30)

    def _plan(self, what: tuple[ImageSize, Outputs] | None) -> None:
        self.asked.append(what)
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.goes_on.wait(30), "the test never let it go on"
        if self.error is not None:
            raise self.error


class Silent(CountingBlueprint):
    """Gives nothing where a cost is asked for."""

    def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
        return None  # type: ignore[return-value]


class Shelf:
    """Blueprints by model, made once each and counted."""

    def __init__(self, *specs: EncoderSpec) -> None:
        self.blueprints = {spec.id: CountingBlueprint(spec) for spec in specs or (fake_spec(),)}
        self.made: list[tuple[str, str | None]] = []
        self.error: Exception | None = None

    def __call__(self, model: str, dtype: str | None) -> Blueprint:
        self.made.append((model, dtype))
        if self.error is not None:
            raise self.error
        if model not in self.blueprints:
            raise EncoderIdError(f"There is no '{model}'.")
        return self.blueprints[model]

    @property
    def only(self) -> CountingBlueprint:
        (blueprint,) = self.blueprints.values()
        return blueprint


@asynccontextmanager
async def planning(
    shelf: Shelf, *, limit: int = 2**40, overhead: Overhead = CPU, places: int = 10_000
) -> AsyncIterator[Planner]:
    planner = Planner(shelf, device="cpu", budget=Budget(limit=limit, overhead=overhead), places=places)
    try:
        yield planner
    finally:
        planner.close()


async def test_a_shape_is_what_was_asked_for_at_its_blueprint_s_cost() -> None:
    async with planning(Shelf()) as planner:
        shape = await planner.image_shape(MODEL, ImageSize(16, 8), TOKENS)
        texts = await planner.text_shape(MODEL)
    assert (shape.model, shape.size, shape.outputs) == (MODEL, ImageSize(16, 8), TOKENS)
    assert shape.cost == image_shape(MODEL, 8, TOKENS, height=16).cost
    assert (texts.model, texts.cost) == (MODEL, text_shape().cost)


async def test_equal_values_give_one_object_that_is_planned_once() -> None:
    shelf = Shelf()
    async with planning(shelf) as planner:
        first = await planner.image_shape(MODEL, ImageSize(8, 8), Outputs(pooled=True))
        again = await planner.image_shape(MODEL, ImageSize(8, 8), Outputs(pooled=True))
        assert first is again
        assert await planner.text_shape(MODEL) is await planner.text_shape(MODEL)
    assert shelf.only.asked == [(SIZE, POOLED), None]
    assert shelf.made == [(MODEL, None)]


async def test_another_model_size_or_outputs_is_another_shape() -> None:
    async with planning(Shelf(fake_spec(), fake_spec("fake:other"))) as planner:
        shapes = {
            await planner.image_shape(MODEL, SIZE, POOLED),
            await planner.image_shape("fake:other", SIZE, POOLED),
            await planner.image_shape(MODEL, ImageSize(8, 16), POOLED),
            await planner.image_shape(MODEL, SIZE, TOKENS),
        }
    assert len(shapes) == 4


async def test_planning_happens_on_one_thread_that_is_not_the_loop() -> None:
    shelf = Shelf()
    async with planning(shelf) as planner:
        sizes = [ImageSize(8 * side, 8) for side in range(1, 9)]
        await asyncio.gather(*(planner.image_shape(MODEL, size, POOLED) for size in sizes))
    assert len(shelf.only.threads) == 1
    assert threading.get_ident() not in shelf.only.threads


async def test_who_asks_meanwhile_shares_the_plan() -> None:
    shelf = Shelf()
    async with planning(shelf) as planner:
        shelf.only.hold()
        askers = [asyncio.create_task(planner.image_shape(MODEL, SIZE, POOLED)) for _ in range(3)]
        await shelf.only.is_at_work()
        askers.append(asyncio.create_task(planner.image_shape(MODEL, SIZE, POOLED)))
        shelf.only.goes_on.set()
        shapes = await asyncio.gather(*askers)
    assert len(set(shapes)) == 1
    assert len(shelf.only.asked) == 1


async def test_who_asks_for_what_is_known_does_not_wait_for_what_is_being_planned() -> None:
    shelf = Shelf()
    async with planning(shelf) as planner:
        known = await planner.image_shape(MODEL, SIZE, POOLED)
        shelf.only.hold()
        other = asyncio.create_task(planner.image_shape(MODEL, SIZE, TOKENS))
        await shelf.only.is_at_work()
        assert await planner.image_shape(MODEL, SIZE, POOLED) is known
        assert not other.done()
        shelf.only.goes_on.set()
        await other


@pytest.mark.parametrize("leave", [1, 2, 3])
async def test_who_came_first_may_leave_and_the_plan_goes_on(leave: int) -> None:
    """For those who wait, and if all have left, for those who come."""
    shelf = Shelf()
    async with planning(shelf) as planner:
        shelf.only.hold()
        askers = [asyncio.create_task(planner.image_shape(MODEL, SIZE, POOLED)) for _ in range(3)]
        await shelf.only.is_at_work()
        for asker in askers[:leave]:
            asker.cancel()
        await asyncio.sleep(0)  # they leave on the next turn of the loop
        shelf.only.goes_on.set()
        outcomes = await asyncio.gather(*askers, return_exceptions=True)
        assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == [
            number < leave for number in range(3)
        ]
        shape = await planner.image_shape(MODEL, SIZE, POOLED)
        assert all(outcome is shape for outcome in outcomes[leave:])
    assert len(shelf.only.asked) == 1


async def test_a_failure_is_raised_to_each_asker_and_is_not_remembered() -> None:
    shelf = Shelf()
    async with planning(shelf) as planner:
        shelf.only.error = EncoderFailed("it does not trace")
        shelf.only.hold()
        askers = [asyncio.create_task(planner.image_shape(MODEL, SIZE, POOLED)) for _ in range(3)]
        await shelf.only.is_at_work()
        shelf.only.goes_on.set()
        for asker in askers:
            with pytest.raises(EncoderFailed, match="does not trace"):
                await asker
        shelf.only.error = None
        assert isinstance(await planner.image_shape(MODEL, SIZE, POOLED), ImageShape)
    assert len(shelf.only.asked) == 2


async def test_a_failure_that_nobody_waits_for_any_more_is_no_error_of_the_loop() -> None:
    errors: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: errors.append(context))
    shelf = Shelf()
    async with planning(shelf) as planner:
        shelf.only.error = EncoderFailed("it does not trace")
        shelf.only.hold()
        asker = asyncio.create_task(planner.image_shape(MODEL, SIZE, POOLED))
        await shelf.only.is_at_work()
        asker.cancel()
        await asyncio.wait([asker])
        del asker  # its traceback keeps the plan
        shelf.only.goes_on.set()
        await planner.blueprint(MODEL)  # by now the thread is done with the plan
    gc.collect()
    loop.set_exception_handler(None)
    assert errors == []


async def test_a_blueprint_that_cannot_be_had_is_tried_again() -> None:
    shelf = Shelf()
    async with planning(shelf) as planner:
        shelf.error = EncoderIdError("not now")
        for ask in (planner.blueprint(MODEL), planner.image_shape(MODEL, SIZE, POOLED), planner.text_shape(MODEL)):
            with pytest.raises(EncoderIdError):
                await ask
        shelf.error = None
        assert await planner.blueprint(MODEL) is shelf.only
        assert await planner.blueprint(MODEL) is shelf.only
    assert len(shelf.made) == 4


async def test_a_model_without_a_text_half_has_no_shape_of_texts() -> None:
    async with planning(Shelf(fake_spec(scoring=None, context_length=None))) as planner:
        with pytest.raises(OutputNotOffered):
            await planner.text_shape(MODEL)


async def test_shapes_are_forgotten_least_recently_used_first() -> None:
    shelf = Shelf()
    async with planning(shelf) as planner:
        used, texts, unused = (
            await planner.image_shape(MODEL, SIZE, POOLED),
            await planner.text_shape(MODEL),
            await planner.image_shape(MODEL, SIZE, TOKENS),
        )
        for layers in range(5):
            sizes = [ImageSize(8 * side, 8 * (layers + 2)) for side in range(1, 2001)]
            await asyncio.gather(*(planner.image_shape(MODEL, size, POOLED) for size in sizes))
            assert await planner.image_shape(MODEL, SIZE, POOLED) is used
            assert await planner.text_shape(MODEL) is texts
        assert await planner.image_shape(MODEL, SIZE, TOKENS) is not unused
    assert len(shelf.only.asked) == 3 + 10_000 + 1


# What is planned ahead, and what is told.


async def test_what_is_asked_for_most_is_planned_ahead() -> None:
    spec = fake_spec()
    shelf = Shelf(spec)
    async with planning(shelf) as planner:
        await planner.rehearse([spec])
        planned = list(shelf.only.asked)
        for outputs in (TOKENS, Outputs(pooled=True, tokens=TokenKind.HIDDEN)):
            await planner.image_shape(MODEL, spec.image_size, outputs)
    assert shelf.only.asked == planned
    dense = Outputs(pooled=True, tokens=TokenKind.DENSE)
    assert planned == [
        (spec.image_size, outputs) for outputs in (TOKENS, Outputs(pooled=True, tokens=TokenKind.HIDDEN), dense)
    ]


@pytest.mark.parametrize("spec", [fake_spec(dense=False), fake_spec(scoring=None, context_length=None)])
async def test_heat_maps_are_planned_ahead_only_of_models_that_offer_them(spec: EncoderSpec) -> None:
    shelf = Shelf(spec)
    async with planning(shelf) as planner:
        await planner.rehearse([spec])
    assert [what[1].tokens for what in shelf.only.asked if what] == [TokenKind.HIDDEN, TokenKind.HIDDEN]


async def test_a_table_has_a_row_for_each_dtype_size_and_batch_in_that_order() -> None:
    sizes, batches = [ImageSize(8, 8), ImageSize(16, 16)], [1, 4]
    async with planning(Shelf()) as planner:
        table = await planner.table(MODEL, sizes, batches, POOLED, dtypes=[None, "float16"])
    assert [(row.size, row.prediction.batch) for _, row, _ in table] == 2 * [
        (size, batch) for size in sizes for batch in batches
    ]
    assert {spec.id for spec, _, _ in table} == {MODEL}


async def test_a_table_s_room_is_the_budget_s_beside_other_models_and_names_what_fits_in_it() -> None:
    """The weights of the model itself are no others': the row counts them, and the fake has none."""
    overhead = Overhead(context=10**6)
    shelf = Shelf()
    cost = image_shape(MODEL, 32).cost.requested(1)
    budget = Budget(limit=4 * cost + 500, overhead=overhead)
    budget.hold("fake:other", 500)
    budget.hold(MODEL, cost)
    planner = Planner(shelf, device="cpu", budget=budget, places=10)
    ((_, one, largest_of_one), (_, four, largest_of_four)) = await planner.table(
        MODEL, [ImageSize(32, 32)], [1, 4], POOLED, dtypes=[None]
    )
    planner.close()
    assert one.max_batch == four.max_batch == 4
    assert largest_of_four == ImageSize(32, 32)
    assert largest_of_one is not None
    assert image_shape(MODEL, largest_of_one.width).cost.requested(1) <= 4 * cost
    assert image_shape(MODEL, largest_of_one.width + 8).cost.requested(1) > 4 * cost


async def test_a_refusal_names_the_largest_resolution_of_these_proportions_that_fits() -> None:
    fits = image_shape(MODEL, 32, height=64).cost.requested(1)
    async with planning(Shelf(), limit=fits) as planner:
        shape = await planner.image_shape(MODEL, ImageSize(128, 64), POOLED)
        refusal = await planner.refusal(shape)
    assert isinstance(refusal, ImageDoesNotFit)
    assert refusal.facts["largest_resolution"] == [64, 32]
    assert refusal.facts["predicted_bytes"] == shape.cost.requested(1)
    assert refusal.facts["available_bytes"] == fits


async def test_a_refusal_names_a_resolution_of_the_model_s_proportions_if_none_of_these_fits() -> None:
    async with planning(Shelf(), limit=image_shape(MODEL, 16).cost.requested(1)) as planner:
        refusal = await planner.refusal(await planner.image_shape(MODEL, ImageSize(8 * 17, 8 * 13), POOLED))
    assert refusal.facts["largest_resolution"] == [16, 16]


async def test_a_refusal_says_if_nothing_fits() -> None:
    async with planning(Shelf(), limit=10) as planner:
        refusal = await planner.refusal(await planner.image_shape(MODEL, ImageSize(64, 64), POOLED))
    assert refusal.facts["largest_resolution"] is None


async def test_a_refusal_counts_what_forwards_were_seen_to_take_beyond_their_prediction() -> None:
    shape = image_shape(MODEL, 64)
    fits = image_shape(MODEL, 32).cost.requested(1)
    budget = Budget(limit=fits, overhead=CPU)
    planner = Planner(Shelf(), device="cpu", budget=budget, places=10)
    assert (await planner.refusal(shape)).facts["largest_resolution"] == [32, 32]
    budget.measured(shape, 1, shape.cost.requested(1) + 1)
    assert (await planner.refusal(shape)).facts["largest_resolution"] == [24, 24]
    planner.close()


async def test_a_closed_planner_answers_whoever_waits_and_nobody_new() -> None:
    shelf = Shelf()
    async with planning(shelf) as planner:
        known = await planner.image_shape(MODEL, SIZE, POOLED)
        shelf.only.hold()
        asked_image = asyncio.create_task(planner.image_shape(MODEL, SIZE, TOKENS))
        asked_text = asyncio.create_task(planner.text_shape(MODEL))
        await shelf.only.is_at_work()
    assert await planner.image_shape(MODEL, SIZE, POOLED) is known
    with pytest.raises(ShuttingDown):
        await planner.image_shape(MODEL, ImageSize(16, 16), POOLED)
    shelf.only.goes_on.set()
    assert (await asked_image).model == (await asked_text).model == MODEL


# Who goes first, who waits, and who need not be served any more.


def sizes(*sides: int) -> list[ImageSize]:
    return [ImageSize(8 * side, 8) for side in sides]


def planned(shelf: Shelf) -> list[int]:
    """The sides of the shapes in the order of their plans; 0 for texts."""
    return [what[0].height // 8 if what else 0 for what in shelf.only.asked]


def ask(planner: Planner, side: int, *, caller: str | None = None, urgency: Urgency = Urgency.REQUEST) -> Asked:
    """Ask for a shape, as the caller; what is given is cancelled to leave."""
    context = contextvars.copy_context()
    context.run(CALLER.set, caller)
    (size,) = sizes(side)
    return asyncio.create_task(planner.image_shape(MODEL, size, POOLED, urgency=urgency), context=context)


async def asked_for_all() -> None:
    """All tasks have come as far as they can without the planner's thread."""
    for _ in range(20):
        await asyncio.sleep(0)


@asynccontextmanager
async def busy(shelf: Shelf, **options: Any) -> AsyncIterator[tuple[Planner, Asked]]:
    """A planner at work on side 99, and whoever asked for it."""
    async with planning(shelf, **options) as planner:
        await planner.blueprint(MODEL)
        shelf.only.hold()
        first = ask(planner, 99, urgency=Urgency.AHEAD)
        await shelf.only.is_at_work()
        yield planner, first
        shelf.only.goes_on.set()
        await first


async def test_loads_go_before_requests_and_those_before_what_is_planned_ahead() -> None:
    shelf = Shelf()
    async with busy(shelf) as (planner, _):
        asked = [ask(planner, 4, urgency=Urgency.AHEAD), ask(planner, 3), ask(planner, 2, urgency=Urgency.LOAD)]
        await asked_for_all()
        shelf.only.goes_on.set()
        await asyncio.gather(*asked)
    assert planned(shelf) == [99, 2, 3, 4]


async def test_a_request_waits_for_one_shape_of_a_table_at_most() -> None:
    shelf = Shelf()
    async with planning(shelf) as planner:
        shelf.only.hold()
        table = asyncio.create_task(
            planner.table(MODEL, sizes(*range(1, 17)), [1, 2, 4], POOLED, dtypes=[None, "float16", "bfloat16"])
        )
        await shelf.only.is_at_work()
        new = ask(planner, 50)
        await asked_for_all()
        shelf.only.goes_on.set()
        await asyncio.gather(new, table)
    assert planned(shelf).index(50) == 1


async def test_a_request_moves_a_plan_of_a_table_up() -> None:
    shelf = Shelf()
    async with busy(shelf) as (planner, _):
        slow = [ask(planner, side, urgency=Urgency.TABLE) for side in (1, 2, 3)]
        await asked_for_all()
        request = ask(planner, 3)
        await asked_for_all()
        shelf.only.goes_on.set()
        await asyncio.gather(*slow, request)
    assert planned(shelf) == [99, 3, 1, 2]


async def test_a_plan_that_nobody_waits_for_any_more_is_not_begun() -> None:
    shelf = Shelf()
    async with busy(shelf) as (planner, _):
        left, also_left, stays, beside = ask(planner, 1), ask(planner, 1), ask(planner, 2), ask(planner, 2)
        await asked_for_all()
        for each in (left, also_left, beside):
            each.cancel()
        await asyncio.wait([left, also_left, beside])
        shelf.only.goes_on.set()
        await stays
        assert planned(shelf) == [99, 2]
        await ask(planner, 1)
    assert planned(shelf) == [99, 2, 1], "whoever comes later takes a place of their own"


async def test_a_table_that_nobody_waits_for_stops_at_its_next_shape() -> None:
    shelf = Shelf()
    async with planning(shelf) as planner:
        shelf.only.hold()
        table = asyncio.create_task(planner.table(MODEL, sizes(*range(1, 17)), [1], POOLED, dtypes=[None]))
        await shelf.only.is_at_work()
        table.cancel()
        await asyncio.wait([table])
        shelf.only.goes_on.set()
        await ask(planner, 50)
    assert len(planned(shelf)) == 2


async def test_equal_tables_share_their_shapes_and_too_many_are_refused() -> None:
    shelf = Shelf()
    async with planning(shelf) as planner:
        shelf.only.hold()
        tables = [
            asyncio.create_task(planner.table(MODEL, sizes(1, 2, 3), [1], POOLED, dtypes=[None])) for _ in range(20)
        ]
        await shelf.only.is_at_work()
        shelf.only.goes_on.set()
        outcomes = await asyncio.gather(*tables, return_exceptions=True)
        await planner.table(MODEL, sizes(1, 2, 3), [1], POOLED, dtypes=[None])
    assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 4
    assert len(set(shelf.only.asked)) == len(shelf.only.asked)


async def test_a_caller_gets_half_of_the_places_that_others_leave() -> None:
    shelf = Shelf()
    async with busy(shelf, places=8) as (planner, _):
        many = [ask(planner, side, caller="many") for side in range(1, 13)]
        await asked_for_all()
        assert sum(each.done() for each in many) == 8, "four wait"
        with pytest.raises(Overloaded) as refused:
            await many[-1]
        assert (refused.value.facts["waiting"], refused.value.facts["limit"]) == (4, 4)
        assert refused.value.retry_after_s >= 1
        others = [ask(planner, 20 + number, caller=f"other {number}") for number in range(4)]
        shared = ask(planner, 1, caller="many")
        await asked_for_all()
        assert not any(each.done() for each in others)
        with pytest.raises(Overloaded, match="8 new resolutions are being worked on and the limit is 8"):
            await ask(planner, 30, caller="one more")
        shelf.only.goes_on.set()
        await asyncio.gather(*many[:4], *others, shared)
        assert not many[4].cancelled()
    assert planned(shelf)[:2] == [99, 1], "who came first"
    assert planned(shelf)[2:6] == [20, 21, 22, 23], "then the first of each other, and then the second of many"
    assert planned(shelf)[6:] == [2, 3, 4]


async def test_who_leaves_makes_room_in_the_line() -> None:
    shelf = Shelf()
    async with busy(shelf, places=2) as (planner, _):
        first = ask(planner, 1)
        await asked_for_all()
        with pytest.raises(Overloaded):
            await ask(planner, 2)
        first.cancel()
        await asyncio.wait([first])
        second = ask(planner, 2)
        await asked_for_all()
        shelf.only.goes_on.set()
        await second
    assert planned(shelf) == [99, 2]


async def test_a_load_is_not_refused_for_a_full_line() -> None:
    shelf = Shelf()
    async with busy(shelf, places=2) as (planner, _):
        first = ask(planner, 1)
        await asked_for_all()
        load = ask(planner, 2, urgency=Urgency.LOAD)
        await asked_for_all()
        shelf.only.goes_on.set()
        await asyncio.gather(first, load)
    assert planned(shelf) == [99, 2, 1]


async def test_a_blueprint_that_gives_no_cost_is_a_failure_of_the_encoder() -> None:
    shelf = Shelf()
    shelf.only.error = ZeroDivisionError()
    async with planning(shelf) as planner:
        with pytest.raises(EncoderFailed, match="fake:vit failed with ZeroDivisionError when asked"):
            await planner.text_shape(MODEL)
        shelf.blueprints[MODEL] = Silent(fake_spec())
    async with planning(shelf) as planner:
        with pytest.raises(EncoderFailed, match="fake:vit gave NoneType when asked"):
            await planner.image_shape(MODEL, SIZE, TOKENS)
