"""Which texts are cut at the context length, by every tokenizer that is used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer

from encoders.adapters.demo.vocabulary import tokenizer as demo_tokenizer
from encoders.adapters.fake import FakeEncoder
from encoders.adapters.hf.text import HfText, TextFamily
from encoders.adapters.openclip.text import OpenClipText
from encoders.runtime.tower import TextTower
from tests.support.hf_tokenizers import write_clip_tokenizer
from tests.support.openclip_folders import word_tokenizer

CONTEXT = 12


def _hf(mode: str = "", **options: Any) -> HFTokenizer:
    made = HFTokenizer.__new__(HFTokenizer)  # its own way in reads a folder or the hub
    made.tokenizer = word_tokenizer()
    made.tokenizer_mode, made.context_length = mode, CONTEXT
    made.clean_fn = open_clip.tokenizer.get_clean_fn(options.get("clean", "whitespace"))
    made.strip_sep_token = options.get("strip_sep_token", False)
    return made


def _siglip() -> SigLipTokenizer:
    made = SigLipTokenizer.__new__(SigLipTokenizer)
    made.tokenizer, made.context_length = word_tokenizer(), CONTEXT
    return made


def _open_clip(tokenizer: Any) -> OpenClipText:
    return OpenClipText(torch.nn.Module(), tokenizer)


def _transformers(tokenizer: Any) -> HfText:
    return HfText(torch.nn.Module(), None, tokenizer, TextFamily(), context_length=CONTEXT, padding=0, ends=False)


def _clip(folder: Path) -> Any:
    write_clip_tokenizer(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


TOKENIZERS: dict[str, tuple[Callable[[Path], TextTower], int]] = {
    "open_clip": (lambda folder: _open_clip(SimpleTokenizer(context_length=CONTEXT)), 2),
    "demo": (lambda folder: _open_clip(demo_tokenizer()), 2),
    "open_clip hf": (lambda folder: _open_clip(_hf()), 2),
    "open_clip hf canonicalize": (lambda folder: _open_clip(_hf(clean="canonicalize")), 2),
    "open_clip hf strip_sep_token": (lambda folder: _open_clip(_hf(strip_sep_token=True)), 2),
    "open_clip hf clips": (lambda folder: _open_clip(_hf("clips")), 3),
    "open_clip siglip": (lambda folder: _open_clip(_siglip()), 2),
    "transformers clip": (lambda folder: _transformers(_clip(folder)), 2),
    "transformers words": (lambda folder: _transformers(word_tokenizer()), 2),
    "transformers, a shorter model_max_length": (lambda folder: _transformers(word_tokenizer(model_max_length=5)), 2),
}
"""Each with the tokens that it puts around a text."""


@pytest.fixture(params=TOKENIZERS)
def cutting(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[TextTower, int]:
    """A text half, and how many words of one token fill its context."""
    make, around = TOKENIZERS[request.param]
    text = make(tmp_path)
    return text, text.tokenize(["a"]).ids.shape[1] - around


def words(number: int) -> str:
    return " ".join(["a"] * number)


def test_a_text_is_cut_only_past_the_context_length(cutting: tuple[TextTower, int]) -> None:
    text, room = cutting
    found = text.tokenize([words(room - 1), words(room), words(room + 1), words(5 * room)])
    assert found.truncated.tolist() == [False, False, True, True]
    length = found.ids.shape[1]
    assert found.lengths.tolist() == [length - 1, length, length + 1, length + 4 * room]


def test_texts_that_differ_past_the_cut_have_equal_ids_and_both_are_cut(cutting: tuple[TextTower, int]) -> None:
    text, room = cutting
    found = text.tokenize([f"{words(room)} a", f"{words(room)} b c"])
    np.testing.assert_array_equal(found.ids[0], found.ids[1])
    assert found.truncated.all()


def test_what_cleaning_takes_away_does_not_count(cutting: tuple[TextTower, int]) -> None:
    text, room = cutting
    if isinstance(text, HfText):
        pytest.skip("transformers cleans nothing")
    found = text.tokenize([f"  \n {'a&#32;' * (room - 1)}   a\t\t   "])
    assert not found.truncated.any()
    assert found.lengths[0] == found.ids.shape[1]


def test_punctuation_does_not_count_where_it_is_taken_away() -> None:
    room = CONTEXT - 2
    text = " ".join(["a"] * (room - 1) + ["...", "!", "a"])
    for tokenizer, is_cut in ((_hf(clean="canonicalize"), False), (_siglip(), False), (_hf(), True)):
        assert _open_clip(tokenizer).tokenize([text]).truncated.tolist() == [is_cut]


def test_no_warning_is_logged_for_a_text_that_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    _transformers(word_tokenizer(model_max_length=5)).tokenize([words(40)])
    assert not caplog.records


def test_the_fake_counts_bytes() -> None:
    found = FakeEncoder().tokenize(["a" * 16, "a" * 17, "é" * 9])
    assert found.lengths.tolist() == [16, 17, 18]
    assert found.truncated.tolist() == [False, True, True]
