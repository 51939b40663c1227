"""The merges of a byte pair encoding: equal to open_clip's own for any word, in bounded work and memory."""

import itertools
import random
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from encoders.adapters.demo.vocabulary import tokenizer as demo_tokenizer
from encoders.adapters.openclip.merges import Merges
from encoders.adapters.openclip.text import OpenClipText
from encoders.contract.errors import InvalidText

CLIP, DEMO = SimpleTokenizer(), demo_tokenizer()


def by_open_clip(ranks: Mapping[tuple[str, str], int], word: str) -> str:
    their = SimpleTokenizer.__new__(SimpleTokenizer)  # its own way in reads a file
    their.bpe_ranks, their.cache = dict(ranks), {}
    merged: str = their.bpe(word)
    return merged


@given(text=st.text(max_size=200))
def test_any_text_has_the_ids_and_the_length_that_open_clip_gives(text: str) -> None:
    for theirs in (CLIP, DEMO):
        ours = OpenClipText(torch.nn.Module(), copy_of(theirs)).tokenize([text])
        np.testing.assert_array_equal(ours.ids, theirs([text]).numpy())
        assert ours.lengths[0] == len(theirs.encode(text)) + 2


@pytest.mark.parametrize("seed", range(5))
def test_long_words_too(seed: int) -> None:
    rng = random.Random(seed)
    alphabets = ("abcdefghijklmnopqrstuvwxyz", "aab", "äöüß", "一二三四五", "".join(map(chr, range(0x1F300, 0x1F400))))
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(1, 400))) for alphabet in alphabets]
    for theirs in (CLIP, DEMO):
        ours = OpenClipText(torch.nn.Module(), copy_of(theirs)).tokenize(texts)
        np.testing.assert_array_equal(ours.ids, theirs(texts).numpy())
        assert ours.lengths.tolist() == [len(theirs.encode(text)) + 2 for text in texts]


@given(word=st.text("abc", min_size=1, max_size=40), seed=st.integers(0, 1000))
def test_whatever_the_order_of_the_merges(word: str, seed: int) -> None:
    """Also if a pair that comes of a merge ranks before that merge, as no training gives it."""
    symbols = ["a", "b", "c", "ab", "bc", "abc", "aa", "bb", "a</w>", "b</w>", "c</w>", "ab</w>"]
    pairs = list(itertools.product(symbols, symbols))
    random.Random(seed).shuffle(pairs)
    ranks = {pair: rank for rank, pair in enumerate(pairs[:60])}
    assert Merges(ranks, whole={})(word) == by_open_clip(ranks, word)


def test_the_work_grows_with_the_word_and_not_with_its_square() -> None:
    class Counted(dict[tuple[str, str], int]):
        looked_up = 0

        def get(self, *args: object) -> int | None:  # type: ignore[override]  # as it is called
            self.looked_up += 1
            return super().get(*args)  # type: ignore[call-overload, no-any-return]

    word = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=2000))
    ranks = Counted(CLIP.bpe_ranks)
    Merges(ranks, whole={})(word)
    assert ranks.looked_up < 10 * len(word)


def test_a_text_is_read_once() -> None:
    tokenizer = copy_of(DEMO)
    read: list[str] = []
    clean = tokenizer.clean_fn

    def clean_and_note(text: str) -> str:
        read.append(text)
        return str(clean(text))

    tokenizer.clean_fn = clean_and_note
    OpenClipText(torch.nn.Module(), tokenizer).tokenize(["a cat", "a dog"])
    assert read == ["a cat", "a dog"]


def test_no_word_is_kept_for_ever() -> None:
    tokenizer = copy_of(DEMO)
    text = OpenClipText(torch.nn.Module(), tokenizer)
    before = len(tokenizer.cache)
    text.tokenize([" ".join(words()), "x" * 500])
    assert len(tokenizer.cache) == before


def test_a_text_that_cannot_be_read_is_the_sender_s_error() -> None:
    with pytest.raises(InvalidText):
        OpenClipText(torch.nn.Module(), copy_of(DEMO)).tokenize([f"&#{'1' * 5000};"])


def words() -> Iterator[str]:
    return ("".join(letters) for letters in itertools.product("abcdef", repeat=3))


def copy_of(tokenizer: SimpleTokenizer) -> SimpleTokenizer:
    """One that is nobody else's: a text half mends it."""
    own = SimpleTokenizer.__new__(SimpleTokenizer)
    own.__dict__.update(tokenizer.__dict__)
    own.cache = {token: token for token in ("<start_of_text>", "<end_of_text>")}
    return own
