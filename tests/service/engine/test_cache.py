"""The result cache: all get the numbers that an engine without it gives."""

import asyncio
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderFailed, NonFiniteOutput, UndecodableImage, VisiontowerError
from encoders.contract.values import Encoded, ImageSize
from service.engine import EmbedRequest, SimilarityRequest
from service.engine.cache.results import ResultCache
from service.engine.values import CacheUse, EmbedResult
from service.telemetry.metrics import Metrics
from tests.support.caching import MIB, asking, engine_of, looked_up, numbers, turns
from tests.support.serving import noise
from tests.support.shapes import image_shape
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

MISS = CacheUse(hits=0, misses=1, age_s=0.0)


async def test_the_same_bytes_are_computed_once() -> None:
    encoder = FakeEncoder()
    async with engine_of(encoder) as engine:
        encoder.batches.clear()
        first, second, other = await asking(engine, 1), await asking(engine, 1), await asking(engine, 2)
        assert encoder.batches == [1, 1]
        assert [looked_up(each) for each in (first, second, other)] == [(0, 1), (1, 0), (0, 1)]
        assert numbers(first) == numbers(second) != numbers(other)
        assert first.timing.forward > 0
        assert second.timing == replace(second.timing, decode=0.0, preprocess=0.0, queue=0.0, forward=0.0)


async def test_every_byte_of_an_image_counts() -> None:
    async with engine_of() as engine:
        found = [looked_up(await asking(engine, noise(1) + last)) for last in (b"", b"a", b"b", b"a")]
        assert found == [(0, 1), (0, 1), (0, 1), (1, 0)]


async def test_off_nothing_is_looked_for() -> None:
    encoder = FakeEncoder()
    async with engine_of(encoder, cache=0) as engine:
        encoder.batches.clear()
        assert [(await asking(engine, 1)).cached for _ in range(2)] == [None, None]
        assert encoder.batches == [1, 1]
        assert engine.now().cached == {}


async def test_a_form_of_the_answer_that_costs_nothing_has_no_row_of_its_own() -> None:
    async with engine_of() as engine:
        await asking(engine, 1)
        for options in ({"normalize": True}, {"dtype": "float16"}, {"prefix": True}):
            assert looked_up(await asking(engine, 1, **options)) == (1, 0), options


@pytest.mark.parametrize(
    "options",
    [
        {"output": "pooled"},
        {"output": "both"},
        {"layer": 1},
        {"layer": -1},
        {"project": True},
        {"resolution": ImageSize(64, 32)},
        {"model": "fake:other"},
        {"project": True, "tiles": True},
    ],
)
async def test_whatever_changes_a_row_has_its_own(options: dict[str, Any]) -> None:
    def encoders() -> list[Encoder]:
        return [FakeEncoder(fake_spec(name, most_views=3, most_joined=48)) for name in ("fake:vit", "fake:other")]

    async with engine_of(*encoders()) as engine, engine_of(*encoders(), cache=0) as plain:
        await asking(engine, 1)
        await asking(engine, 1, project=True)
        found = await asking(engine, 1, **options)
        assert looked_up(found) == ((1, 0) if options == {"project": True} else (0, 1))
        again = await asking(engine, 1, **options)
        assert looked_up(again) == (1, 0)
        assert numbers(found) == numbers(again) == numbers(await asking(plain, 1, **options))


OTHER: dict[type, dict[str, Any]] = {
    EmbedRequest: {
        "sources": [noise(2)],
        "texts": ["a"],
        "model": "fake:other",
        "output": "both",
        "layer": 1,
        "project": True,
        "resolution": ImageSize(64, 32),
        "tiles": True,
        "prefix": True,
        "normalize": True,
        "dtype": "float16",
        "truncate": False,
        "is_set": True,
        "width": 12,
        "timeout_s": 20.0,
    },
    SimilarityRequest: {
        "sources": [noise(2)],
        "texts": ["b"],
        "templates": ["a {}"],
        "labels": "known",
        "heatmap": True,
        "model": "fake:other",
        "resolution": ImageSize(64, 32),
        "truncate": False,
        "timeout_s": 20.0,
    },
}
"""Each field of a request, and a value that is not its default."""


@pytest.mark.parametrize("kind", OTHER, ids=lambda kind: kind.__name__)
async def test_whatever_is_asked_of_an_image_that_was_asked_otherwise_is_answered_as_without_a_cache(
    kind: type, tmp_path: Path
) -> None:
    """A field that is new has to be written down above, and then is compared."""
    assert set(OTHER[kind]) == {each.name for each in fields(kind)}
    labels = tmp_path / "labels"
    labels.write_text("red\nblue\n")

    def encoders() -> list[Encoder]:
        specs = [
            fake_spec(name, revision=name, most_views=3, most_joined=48, preprocessing=preprocessing)
            for name, preprocessing in (
                ("fake:vit", fake_spec().preprocessing),
                ("fake:other", replace(fake_spec().preprocessing, resize="squash")),
            )
        ]
        return [FakeEncoder(spec) for spec in specs]

    def request(options: dict[str, Any]) -> Any:
        if kind is EmbedRequest:
            return EmbedRequest(**{"sources": [noise(1, (60, 40))], "project": "tiles" in options, **options})
        texts = {} if "labels" in options else {"texts": ["a"]}
        return SimilarityRequest(**{"sources": [noise(1, (60, 40))], **texts, **options})

    given: dict[str, Any] = {"labels": (f"known={labels}",)}
    async with engine_of(*encoders(), **given) as engine, engine_of(*encoders(), cache=0, **given) as plain:
        for options in ({}, *({name: value} for name, value in OTHER[kind].items()), {}):
            found, expected = await engine.run(request(options)), await plain.run(request(options))
            assert repr(found.items) == repr(expected.items), options


def test_a_row_is_of_its_weights_its_place_and_the_ways_of_the_engine() -> None:
    spec, shape = fake_spec(), image_shape()

    def origin(spec: Any = spec, about: tuple[str, ...] = ("exact",), in_tiles: bool = False) -> bytes | None:
        return ResultCache(1, about=about, metrics=Metrics([])).origin(spec, shape, in_tiles=in_tiles)

    changed = [
        fake_spec(revision="another checkpoint"),
        fake_spec(dtype="bfloat16"),
        fake_spec(device="cuda"),
        fake_spec(runtime="openvino"),
        replace(spec, preprocessing=replace(spec.preprocessing, interpolation="bicubic")),
    ]
    others = [*map(origin, changed), origin(about=("fast",)), origin(about=()), origin(in_tiles=True)]
    assert len({origin(), *others}) == 1 + len(others)
    assert origin() == origin(fake_spec())
    assert origin(fake_spec(revision="")) is None


@pytest.mark.parametrize("settings", [{"exact_pixels": True}, {"max_image_pixels": 10**6}])
async def test_the_engine_says_how_it_makes_pixels_and_which_it_refuses(settings: dict[str, Any]) -> None:
    found = []
    for options in ({}, settings, {}):
        async with engine_of(**options) as engine:
            assert engine._cache is not None
            found.append(engine._cache.origin(fake_spec(), image_shape(), in_tiles=False))
    assert found[0] == found[2] != found[1]


async def test_similarity_has_the_rows_of_the_pooled_vector_and_its_own_for_heat_maps() -> None:
    async with engine_of() as engine:
        await asking(engine, 1, output="pooled")
        found = []
        for heatmap in (False, True, True):
            result = await engine.similarity(SimilarityRequest([noise(1)], ["a", "b"], heatmap=heatmap))
            assert result.cached is not None
            found.append(result.cached.hits)
        assert found == [1, 0, 1]


async def test_of_several_images_those_that_are_kept_are_not_computed_and_equal_ones_once() -> None:
    encoder = FakeEncoder()
    async with engine_of(encoder) as engine, engine_of(cache=0) as plain:
        await asking(engine, 1)
        encoder.batches.clear()
        request = EmbedRequest([noise(seed) for seed in (2, 1, 2, 3)])
        found = await engine.embed(request)
        assert looked_up(found) == (2, 2)
        assert sum(encoder.batches) == 2
        assert numbers(found) == numbers(await plain.embed(request))


async def test_a_set_neither_takes_kept_rows_nor_leaves_any() -> None:
    encoder = FakeEncoder()
    async with engine_of(encoder) as engine:
        encoder.batches.clear()
        assert (await asking(engine, 1, is_set=True)).cached is None
        assert looked_up(await asking(engine, 1)) == (0, 1)
        assert (await asking(engine, 1, is_set=True)).cached is None
        assert encoder.batches == [1, 1, 1]


async def test_an_image_that_cannot_be_read_is_read_again() -> None:
    broken = noise(1)[:-30]
    async with engine_of() as engine:
        found = await engine.embed(EmbedRequest([broken, broken, noise(2)]))
        assert [type(item) for item in found.items[:2]] == [UndecodableImage] * 2
        assert looked_up(found) == (0, 3)
        assert looked_up(await asking(engine, broken)) == (0, 1)


async def test_numbers_that_are_none_are_not_kept() -> None:
    def spoil(encoded: Encoded) -> Encoded:
        assert encoded.pooled is not None
        return replace(encoded, pooled=encoded.pooled * np.float32(np.nan)) if spoilt else encoded

    spoilt = False
    async with engine_of(FakeEncoder(after=spoil)) as engine:
        spoilt = True
        (item,) = (await asking(engine, 1, output="pooled")).items
        assert isinstance(item, NonFiniteOutput)
        spoilt = False
        assert looked_up(await asking(engine, 1, output="pooled")) == (0, 1)


async def test_nobody_can_change_a_row() -> None:
    async with engine_of() as engine:
        results = [await asking(engine, 1, output="both", prefix=True) for _ in range(2)]
        for result in results:
            (item,) = result.items
            assert not isinstance(item, VisiontowerError)
            for array in (item.tokens, item.pooled):
                assert array is not None
                with pytest.raises(ValueError, match="read-only"):
                    array += 1


async def test_the_row_not_asked_for_longest_goes_first_and_never_more_are_kept_than_may_be() -> None:
    row = 17 * 12 * 4 + 800
    async with engine_of(cache=2 * row) as engine:
        for seed in (1, 2, 1, 3):
            await asking(engine, seed)
        assert engine.now().cached == {"memory": 2 * row}
        assert [looked_up(await asking(engine, seed))[0] for seed in (1, 3, 2, 1)] == [1, 1, 0, 0]
    async with engine_of(cache=row - 1) as engine:
        assert [looked_up(await asking(engine, 1))[0] for _ in range(2)] == [0, 0]
        assert engine.now().cached == {"memory": 0}


async def test_large_images_and_rows_are_kept_too() -> None:
    """They are hashed and copied on a thread."""
    large, size = noise(1, (300, 300)), ImageSize(512, 512)
    assert len(large) > 131_072
    async with engine_of(cache=8 * MIB) as engine:
        first = await asking(engine, large, resolution=size)
        await until(lambda: engine.now().cached["memory"] > 131_072)
        second = await asking(engine, large, resolution=size)
        assert (looked_up(first), looked_up(second)) == ((0, 1), (1, 0))
        assert numbers(first) == numbers(second)


ASKED: list[dict[str, Any]] = [{}, {"layer": 1}, {"output": "both", "resolution": ImageSize(16, 16), "normalize": True}]
IMAGES = [noise(1), noise(2), noise(3)[:-30]]
STEPS = st.one_of(
    st.tuples(
        st.just("ask"),
        st.lists(st.sampled_from(range(len(IMAGES))), min_size=1, max_size=3),
        st.sampled_from(range(len(ASKED))),
    ),
    st.tuples(st.just("cancel"), st.integers(0, 5)),
    st.tuples(st.just("fail")),
    st.tuples(st.just("turns"), st.integers(1, 40)),
    st.tuples(st.just("settle")),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, max_size=14), cache=st.sampled_from([1700, MIB]))
def test_in_any_order_every_answer_is_that_of_an_engine_without_a_cache(steps: list[Any], cache: int) -> None:
    """Requests, equal and unequal, some cancelled, and forwards that fail."""

    async def run() -> None:
        failures = 0

        def before(batch: int) -> None:
            nonlocal failures
            if failures:
                failures -= 1
                raise EncoderFailed("It fails on purpose.", model="fake:vit")

        async with engine_of(cache=0) as plain, engine_of(FakeEncoder(before=before), cache=cache) as engine:
            asked: list[tuple[EmbedRequest, asyncio.Task[EmbedResult]]] = []
            for name, *values in steps:
                match name:
                    case "ask":
                        images, options = values
                        request = EmbedRequest([IMAGES[each] for each in images], **ASKED[options])
                        asked.append((request, asyncio.create_task(engine.embed(request))))
                    case "cancel" if values[0] < len(asked):
                        asked[values[0]][1].cancel()
                    case "fail":
                        failures += 1
                    case "turns":
                        await turns(values[0])
                    case "settle":
                        await settled(asked)
            await settled(asked)
            failed = False
            for request, task in asked:
                if not task.cancelled():
                    expected, found = numbers(await plain.embed(request)), numbers(task.result())
                    failed = failed or b"It fails on purpose." in found
                    assert b"It fails on purpose." in found or expected == found
            assert not failed or ("fail",) in steps
            failures = 0
            for options in ASKED:
                request = EmbedRequest(IMAGES, **options)
                assert numbers(await engine.embed(request)) == numbers(await plain.embed(request))

    async def settled(asked: list[tuple[EmbedRequest, "asyncio.Task[EmbedResult]"]]) -> None:
        if asked:
            await asyncio.wait([task for _, task in asked])

    asyncio.run(run())
