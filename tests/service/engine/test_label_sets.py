"""Named sets of labels: embedded once, whoever asks, leaves, fails or goes away meanwhile."""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders.adapters.fake import FakeBlueprint, FakeEncoder, FakeMemory, fake_spec
from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderFailed, OutputNotOffered
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Floats, TokenIds, Tokenized
from encoders.memory.prediction import MIB
from service.engine import EmbedRequest, Engine, SimilarityRequest
from service.engine.backend import Backend
from service.engine.templates import OPENAI, PHOTO, PLAIN
from service.engine.values import Scores, SimilarityResult
from service.errors import InvalidOption, LabelsNotReady, ShuttingDown, TextTooLong, TooManyTexts
from service.settings import Settings
from tests.support.serving import backend_of, noise
from tests.support.waiting import until

pytestmark = pytest.mark.anyio
PICTURE = noise(1)
LABELS = [f"{number}" for number in range(30)]


class TextTower(FakeEncoder):
    """prompts: that it has embedded. It waits ahead of a forward of texts once `prompts` has reached `holds_at`.

    fails_at: then every forward of texts fails.
    """

    def __init__(self, spec: EncoderSpec | None = None) -> None:
        super().__init__(spec)
        self.prompts = 0
        self.holds_at: int | None = None
        self.fails_at: int | None = None
        self.goes_on = threading.Event()
        self.tokenized: list[str] = []

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        self.tokenized += texts
        return super().tokenize(texts)

    def encode_text(self, ids: TokenIds) -> Floats:
        if self.holds_at is not None and self.prompts >= self.holds_at:
            assert self.goes_on.wait(30)
        if self.fails_at is not None and self.prompts >= self.fails_at:
            raise EncoderFailed("out of order")
        self.prompts += len(ids)
        return super().encode_text(ids)


def engine_of(encoder: FakeEncoder, folder: Path, labels: Sequence[str] = LABELS, **settings: Any) -> Engine:
    file = folder / "labels.txt"
    file.write_text("\n".join(labels))
    given: dict[str, Any] = {"max_texts": 200, "text_cache_bytes": 0, "labels": (f"set={file}",), **settings}
    return Engine(Settings(model=(encoder.spec.id,), **given), backend=backend_of(encoder))


def asking(templates: Sequence[str] = OPENAI, **options: Any) -> SimilarityRequest:
    return SimilarityRequest([PICTURE], labels="set", templates=templates, **options)


def cosines(result: SimilarityResult) -> Floats:
    (item,) = result.items
    assert isinstance(item, Scores)
    return item.cosine


async def reference(encoder: FakeEncoder, templates: Sequence[str]) -> Floats:
    async with Engine(Settings(model=(encoder.spec.id,), max_texts=8192), backend=backend_of(encoder)) as engine:
        return cosines(await engine.similarity(SimilarityRequest([PICTURE], LABELS, templates)))


@pytest.mark.parametrize("templates", [PLAIN, PHOTO, OPENAI], ids=["plain", "photo", "openai"])
async def test_a_set_gives_what_its_labels_give_as_texts_and_is_embedded_once(
    tmp_path: Path, templates: Sequence[str]
) -> None:
    """Also one of more prompts than a request may have."""
    encoder = TextTower()
    async with engine_of(encoder, tmp_path) as engine:
        encoder.prompts = 0
        first, second = await engine.similarity(asking(templates)), await engine.similarity(asking(templates))
    assert encoder.prompts == len(LABELS) * len(templates)
    assert first.texts == tuple(LABELS)
    np.testing.assert_array_equal(cosines(first), cosines(second))
    np.testing.assert_array_equal(cosines(first), await reference(FakeEncoder(), templates))


async def test_a_set_does_not_drive_out_the_texts_that_requests_have_had_embedded(tmp_path: Path) -> None:
    """Its vectors are kept apart."""
    encoder = TextTower()
    async with engine_of(encoder, tmp_path, text_cache_bytes=1000) as engine:
        await engine.embed(EmbedRequest(texts=["a text"]))
        await engine.similarity(asking())
        encoder.prompts = 0
        await engine.embed(EmbedRequest(texts=["a text"]))
    assert encoder.prompts == 0


async def test_requests_that_come_together_pay_once(tmp_path: Path) -> None:
    encoder = TextTower()
    async with engine_of(encoder, tmp_path) as engine:
        encoder.prompts = 0
        await asyncio.gather(*(engine.similarity(asking()) for _ in range(20)))
    assert encoder.prompts == len(LABELS) * len(OPENAI)


async def test_the_work_goes_on_when_its_first_request_leaves(tmp_path: Path) -> None:
    encoder = TextTower()
    async with engine_of(encoder, tmp_path) as engine:
        encoder.prompts, encoder.holds_at = 0, 400
        first = asyncio.create_task(engine.similarity(asking()))
        await until(lambda: encoder.prompts >= 400)
        first.cancel()
        await asyncio.wait([first])
        encoder.goes_on.set()
        await engine.similarity(asking())
    assert encoder.prompts == len(LABELS) * len(OPENAI)


async def test_whose_time_is_up_is_told_how_many_labels_are_done_and_the_work_goes_on(tmp_path: Path) -> None:
    encoder = TextTower()
    async with engine_of(encoder, tmp_path) as engine:
        encoder.prompts, encoder.holds_at = 0, 400
        with pytest.raises(LabelsNotReady) as refused:
            await engine.similarity(asking(timeout_s=2.0))
        encoder.goes_on.set()
        await engine.similarity(asking())
    assert refused.value.facts["number"] == 30
    assert refused.value.facts["done"] in range(1, 30)
    assert 1 <= refused.value.retry_after_s <= 60
    assert encoder.prompts == len(LABELS) * len(OPENAI)


async def test_before_any_label_is_done_there_is_advice_too(tmp_path: Path) -> None:
    encoder = TextTower()
    async with engine_of(encoder, tmp_path) as engine:
        encoder.holds_at = 0
        with pytest.raises(LabelsNotReady, match="0 of 30 are done") as refused:
            await engine.similarity(asking(timeout_s=0.5))
        encoder.goes_on.set()
    assert refused.value.retry_after_s >= 1


async def test_other_requests_are_answered_meanwhile(tmp_path: Path) -> None:
    """Labels hold permits for one piece alone, and a request that waits for them holds none."""
    encoder = TextTower()
    async with engine_of(encoder, tmp_path) as engine:
        encoder.prompts, encoder.holds_at = 0, 400
        waiting = asyncio.create_task(engine.similarity(asking()))
        await until(lambda: encoder.prompts >= 400)
        assert engine.admission.inside("images") == 0
        assert engine.admission.inside("texts") == 160
        encoder.goes_on.set()
        await engine.embed(EmbedRequest([PICTURE], texts=["a"]))
        await waiting
        assert engine.admission.is_empty


async def test_labels_wait_while_requests_have_filled_the_queue(tmp_path: Path) -> None:
    encoder = TextTower()
    async with engine_of(encoder, tmp_path, queue_texts=200) as engine:
        encoder.prompts, encoder.holds_at = 0, 0
        texts = [f"text {number}" for number in range(150)]
        request = asyncio.create_task(engine.embed(EmbedRequest(texts=texts)))
        await until(lambda: engine.admission.inside("texts") == 150)
        waiting = asyncio.create_task(engine.similarity(asking()))
        await until(lambda: len(encoder.tokenized) >= 150)
        encoder.goes_on.set()
        assert len((await request).texts) == 150
        assert len(cosines(await waiting)) == 30


async def test_where_the_encoder_has_failed_the_next_request_goes_on(tmp_path: Path) -> None:
    encoder = TextTower()
    async with engine_of(encoder, tmp_path, max_batch=160) as engine:
        encoder.prompts, encoder.fails_at = 0, 400
        encoder.tokenized.clear()
        with pytest.raises(EncoderFailed):
            await engine.similarity(asking())
        encoder.fails_at = None
        found = cosines(await engine.similarity(asking()))
        assert engine.admission.is_empty
    tokenized = [prompt for prompt in encoder.tokenized if prompt != "a warm-up"]
    assert len(tokenized) == (len(LABELS) + 2) * len(OPENAI), "one piece again"
    np.testing.assert_array_equal(found, await reference(FakeEncoder(), OPENAI))


@pytest.mark.parametrize("end", ["drain", "stop"])
async def test_the_end_of_the_server_does_not_wait_for_labels(tmp_path: Path, end: str) -> None:
    encoder = TextTower()
    async with engine_of(encoder, tmp_path) as engine:
        encoder.prompts, encoder.holds_at = 0, 400
        waiting = asyncio.create_task(engine.similarity(asking()))
        await until(lambda: encoder.prompts >= 400)
        ending = asyncio.create_task(engine.drain() if end == "drain" else engine.stop())
        with pytest.raises(ShuttingDown):
            await waiting
        encoder.goes_on.set()
        await ending
        with pytest.raises(ShuttingDown):
            await engine.similarity(asking())
    assert encoder.prompts < len(LABELS) * len(OPENAI)


async def test_a_set_follows_the_weights_that_are_loaded(tmp_path: Path) -> None:
    """A model that is not loaded, is evicted, and comes back with others: never vectors of two of them."""

    class Later(TextTower):
        def encode_text(self, ids: TokenIds) -> Floats:
            rows = super().encode_text(ids)
            return np.roll(rows, int(self.spec.revision or 0), axis=1)

    loaded: list[TextTower] = []
    specs = {model: fake_spec(model, weights_bytes=60 * MIB) for model in ("fake:other", "fake:vit")}

    def load(model: str) -> Encoder:
        if model == "fake:other":
            return FakeEncoder(specs[model])
        loaded.append(Later(fake_spec(model, weights_bytes=60 * MIB, revision=str((len(loaded) + 1) // 2))))
        return loaded[-1]

    file = tmp_path / "labels.txt"
    file.write_text("\n".join(LABELS))
    given: dict[str, Any] = {"vram_budget": 100 * MIB, "when_full": "evict", "evict_idle_s": 0.0}
    settings = Settings(model=tuple(specs), max_texts=200, text_cache_bytes=0, labels=(f"set={file}",), **given)
    backend = Backend(
        load=load, blueprint=lambda model, dtype: FakeBlueprint(specs[model]), memory=lambda: FakeMemory(100 * MIB)
    )
    found, prompts = [], []
    async with Engine(settings, backend=backend) as engine:
        for _ in range(3):  # revisions 0, 1 and 1
            found.append(cosines(await engine.similarity(asking(model="fake:vit"))))
            again = cosines(await engine.similarity(asking(model="fake:vit")))
            np.testing.assert_array_equal(again, found[-1])
            prompts.append(loaded[-1].prompts)
            await engine.embed(EmbedRequest([PICTURE], model="fake:other"))
    assert len(loaded) == 3
    assert [each >= len(LABELS) * len(OPENAI) for each in prompts] == [True, True, False]
    np.testing.assert_array_equal(found[0], await reference(Later(fake_spec(revision="0")), OPENAI))
    np.testing.assert_array_equal(found[1], await reference(Later(fake_spec(revision="1")), OPENAI))
    np.testing.assert_array_equal(found[2], found[1])
    assert not np.array_equal(found[0], found[1])


async def test_templates_without_a_name_obey_the_limit_of_a_request(tmp_path: Path) -> None:
    encoder = TextTower()
    async with engine_of(encoder, tmp_path) as engine:
        assert len(cosines(await engine.similarity(asking(["my {}", "your {}"])))) == 30
        with pytest.raises(TooManyTexts):
            await engine.similarity(asking([f"{number} {{}}" for number in range(7)]))


async def test_so_do_those_with_a_name_if_one_label_is_over_it(tmp_path: Path) -> None:
    async with engine_of(TextTower(), tmp_path, max_texts=79) as engine:
        with pytest.raises(TooManyTexts):
            await engine.similarity(asking())


async def test_labels_may_have_more_characters_than_the_texts_of_a_request(tmp_path: Path) -> None:
    async with engine_of(TextTower(), tmp_path, max_text_chars=20, max_prompt_chars=100) as engine:
        assert len(cosines(await engine.similarity(asking()))) == 30


async def test_labels_that_are_cut_are_named_or_refused_before_the_images_run(tmp_path: Path) -> None:
    encoder = TextTower()
    labels = ["a", "seventeen bytes !", *LABELS, "seventeen bytes ?"]
    async with engine_of(encoder, tmp_path, labels, max_texts=2) as engine:
        assert list((await engine.similarity(asking(PLAIN))).truncated) == [1, 32]
        encoder.batches.clear()
        with pytest.raises(TextTooLong) as refused:
            await engine.similarity(asking(PLAIN, truncate=False))
        assert encoder.batches == []
    assert refused.value.facts["texts"] == [1, 32]
    assert refused.value.facts["tokens"] == [17, 17]


async def test_a_name_that_no_set_has_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    async with engine_of(TextTower(), tmp_path) as engine:
        for run in (engine.similarity, engine.sizes):
            with pytest.raises(InvalidOption, match="There is: set"):
                await run(SimilarityRequest([PICTURE], labels="x" * 10_000))


async def test_an_encoder_without_a_text_half_says_so(tmp_path: Path) -> None:
    images_only = FakeEncoder(fake_spec("fake:images", scoring=None, context_length=None))
    async with engine_of(images_only, tmp_path) as engine:
        with pytest.raises(OutputNotOffered):
            await engine.similarity(asking())


async def test_the_numbers_of_an_answer_are_those_that_are_computed(tmp_path: Path) -> None:
    async with engine_of(TextTower(), tmp_path) as engine:
        request = SimilarityRequest([PICTURE, PICTURE], labels="set")
        assert (await engine.sizes(request)).numbers == 2 * 30 * 3 == (await engine.similarity(request)).values
