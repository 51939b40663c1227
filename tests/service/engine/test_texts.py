"""Prompts have a price: counted before they are written out, held, and tokenised piece by piece."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.errors import EncoderFailed
from encoders.contract.values import Tokenized
from service.engine import EmbedRequest, Engine, SimilarityRequest
from service.engine.scoring import PromptLimits, Unfilled
from service.engine.text_cache import text_origin
from service.errors import InvalidOption, OverHostMemory, PromptTooLong, TooMuchText
from service.settings import Settings
from tests.support.serving import backend_of, noise

pytestmark = pytest.mark.anyio
LIMITS = PromptLimits(prompts=10, chars=100, all_chars=500)


class HeldTokenizer(FakeEncoder):
    """pieces: the prompts of each call. It waits while held."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[Sequence[str]] = []
        self.threads_seen: set[str] = set()
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.entered = threading.Event()

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        self.pieces.append(texts)
        self.threads_seen.add(threading.current_thread().name)
        self.entered.set()
        assert self.goes_on.wait(30)
        return super().tokenize(texts)

    async def is_at_work(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 30)


def engine_of(encoder: FakeEncoder, **settings: object) -> Engine:
    return Engine(Settings(model=("fake:vit",), **settings), backend=backend_of(encoder))  # type: ignore[arg-type]


def hold(encoder: HeldTokenizer) -> None:
    encoder.pieces.clear()
    encoder.threads_seen.clear()
    encoder.entered.clear()
    encoder.goes_on.clear()


def test_a_prompt_is_as_long_as_its_template_with_the_text_in_every_slot() -> None:
    texts, templates = ["a", "four", ""], ["{}", "a {} and {}!", "{}{}"]
    unfilled = Unfilled.of(texts, templates, LIMITS)
    filled = unfilled.fill()
    assert unfilled.chars == sum(len(filled.unique[place]) for places in filled.place for place in places)
    assert len(unfilled) == 9
    assert unfilled.nbytes(16) > sum(len(prompt) for prompt in filled.unique) + 9 * 16 * 8


def test_the_longest_prompt_is_refused_by_name_before_any_is_written_out() -> None:
    with pytest.raises(PromptTooLong) as refused:
        Unfilled.of(["a", "four"], ["{}", "{}" * 26], LIMITS)
    assert refused.value.facts == {"limit": 100, "actual": 104, "text": 1, "template": 1}
    assert len(Unfilled.of(["a", "four"], ["{}", "{}" * 25], LIMITS).fill().unique[-1]) == 100


def test_all_prompts_together_have_a_limit() -> None:
    texts = [f"{number} {'x' * 48}" for number in range(10)]
    assert Unfilled.of(texts, ["{}"], LIMITS).chars == 500
    with pytest.raises(TooMuchText) as refused:
        Unfilled.of(texts, ["{}."], LIMITS)
    assert refused.value.facts == {"limit": 500, "actual": 510}


def test_a_long_template_is_named_by_its_beginning() -> None:
    limits = PromptLimits(prompts=1, chars=10**6, all_chars=10**6)
    with pytest.raises(InvalidOption) as refused:
        Unfilled.of(["a"], ["x" * 10**5], limits)
    assert len(str(refused.value)) < 300


async def test_prompts_are_held_while_they_are_worked_on_and_given_back() -> None:
    encoder = HeldTokenizer()
    async with engine_of(encoder) as engine:
        hold(encoder)
        request = asyncio.create_task(
            engine.similarity(SimilarityRequest([noise(1)], [str(number) for number in range(100)], ["{} {}", "{}"]))
        )
        await encoder.is_at_work()
        assert engine.account.held["text"] >= 200 * 16 * 8
        encoder.goes_on.set()
        await request
        assert engine.account.held["text"] == 0


async def test_prompts_that_need_more_than_all_may_hold_are_refused() -> None:
    encoder = HeldTokenizer()
    async with engine_of(encoder, memory_budget=100_000) as engine:
        encoder.pieces.clear()
        with pytest.raises(OverHostMemory):
            await engine.embed(EmbedRequest(texts=[str(number) for number in range(1000)]))
    assert encoder.pieces == []


async def test_a_little_text_goes_between_the_pieces_of_much() -> None:
    encoder = HeldTokenizer()
    much = [f"{number} {'x' * 4000}" for number in range(5)]
    async with engine_of(encoder, text_cache_bytes=0) as engine:
        hold(encoder)
        first = asyncio.create_task(engine.embed(EmbedRequest(texts=much)))
        await encoder.is_at_work()
        second = asyncio.create_task(engine.embed(EmbedRequest(texts=["a cat"])))
        while engine.admission.inside("texts") < 6:
            await asyncio.sleep(0)
        encoder.goes_on.set()
        vectors = (await first).texts
        await second
        alone = (await engine.embed(EmbedRequest(texts=much[-1:]))).texts
    assert [len(piece) for piece in encoder.pieces] == [1] * 7
    assert encoder.pieces[1] == ("a cat",)
    assert vectors.shape[0] == 5
    assert (vectors[-1] == alone[0]).all()
    assert {name.partition("_")[0] for name in encoder.threads_seen} == {"tokenize"}


async def test_who_has_left_is_tokenised_no_further() -> None:
    encoder = HeldTokenizer()
    async with engine_of(encoder) as engine:
        hold(encoder)
        gone = asyncio.create_task(engine.embed(EmbedRequest(texts=[f"{number} {'x' * 4000}" for number in range(5)])))
        await encoder.is_at_work()
        gone.cancel()
        await asyncio.wait([gone])
        encoder.goes_on.set()
        await engine.embed(EmbedRequest(texts=["a cat"]))
        assert engine.account.held["text"] == 0
    assert [piece[0][:5] for piece in encoder.pieces] == ["0 xxx", "a cat"]


async def test_short_prompts_share_a_piece() -> None:
    encoder = HeldTokenizer()
    texts = [f"a photo of number {number}" for number in range(1000)]
    async with engine_of(encoder) as engine:
        encoder.pieces.clear()
        await engine.embed(EmbedRequest(texts=texts))
    assert [text for piece in encoder.pieces for text in piece] == texts
    assert 5 < len(encoder.pieces) < 20


def raises(error: BaseException) -> Callable[[Tokenized], Any]:
    def act(found: Tokenized) -> Any:
        raise error

    return act


@pytest.mark.parametrize(
    "act",
    [
        raises(RuntimeError("its own")),
        raises(SystemExit()),
        lambda found: None,
        lambda found: found.ids,
        lambda found: Tokenized(found.ids[:, :7], found.lengths),
        lambda found: Tokenized(found.ids[:1], found.lengths[:1]),
        lambda found: Tokenized(found.ids.astype(np.int32), found.lengths),
    ],
    ids=["raises", "ends", "nothing", "ids alone", "other length", "fewer", "dtype"],
)
async def test_a_faulty_tokenizer_is_a_failure_of_the_encoder(act: Callable[[Tokenized], Any]) -> None:
    """It would end the process otherwise, or be an error that names nothing."""

    class Faulty(FakeEncoder):
        def tokenize(self, texts: Sequence[str]) -> Tokenized:
            found = super().tokenize(texts)
            return found if texts == ["a warm-up"] else act(found)

    async with engine_of(Faulty()) as engine:
        with pytest.raises(EncoderFailed, match=r"fake:vit .* tokenise the texts"):
            await engine.embed(EmbedRequest(texts=["a cat", "a dog"]))


def test_templates_that_differ_in_half_a_character_are_not_one_source() -> None:
    """A library's caller may have any str; what is kept of one template must not be given for another."""
    sources = {text_origin(fake_spec(), [template]) for template in ("\ud800{}", "\udfff{}", "?{}", "\ufffd{}")}
    assert len(sources) == 4


def test_equal_weights_of_another_architecture_are_another_source() -> None:
    """A setting such as the activation is in no weight."""
    one = fake_spec()
    assert text_origin(replace(one, architecture="another"), ["{}"]) != text_origin(one, ["{}"])
