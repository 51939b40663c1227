"""How the texts of a model family were written in its training: what the tokenizer of a checkpoint does not say.

The same whichever tokenizer class transformers picks, so that one model gives the same ids here and through open_clip
(tests/encoders/adapters/test_doors.py).
"""

import html
import string
from collections.abc import Callable, Sequence
from typing import Any

import ftfy
from tokenizers import processors

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TrainedTokenizer:
    """A checkpoint's tokenizer after its family's cleaning of texts, with the padding last."""

    def __init__(self, tokenizer: Any, clean: Callable[[str], str]) -> None:
        self._tokenizer = tokenizer
        self._clean = clean

    def __call__(self, texts: Sequence[str], **options: Any) -> Any:
        """As a tokenizer of transformers. Raises what that raises, and UnicodeEncodeError for a lone surrogate."""
        for text in texts:
            text.encode()  # cleaning would put another character in its place
        return self._tokenizer([self._clean(text) for text in texts], **options)


def as_trained(tokenizer: Any, text_model_type: str) -> Any:
    """The tokenizer as the family was trained with it: cut and padded at the end, after the family's own cleaning."""
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    if text_model_type not in _CLEANING:
        return tokenizer
    if text_model_type in _SIGLIP:
        _end_as_siglip(tokenizer)
    return TrainedTokenizer(tokenizer, _CLEANING[text_model_type])


def _end_as_siglip(tokenizer: Any) -> None:
    """Every text ends with the end token and begins with none, and is padded as in big_vision.

    SigLIP's sentencepiece vocabulary is padded with the end token, SigLIP 2's, which is Gemma's, with <pad>. Another
    vocabulary is left as it is.
    """
    vocabulary = tokenizer.get_vocab()
    end, padding = ("<eos>", "<pad>") if vocabulary.keys() >= {"<bos>", "<eos>", "<pad>"} else ("</s>", "</s>")
    if end not in vocabulary:
        return
    tokenizer.pad_token, tokenizer.eos_token = padding, end
    ids = tokenizer("a")["input_ids"]
    if ids[-1:] != [vocabulary[end]] or ids[0] == vocabulary.get("<bos>"):
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
        )


def _mended(text: str) -> str:
    """OpenAI's basic_clean: Mojibake and typographic quotes, and entities of HTML, also escaped twice."""
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def _lowered(text: str) -> str:
    """OpenAI's CLIP (clip/simple_tokenizer.py): mended, one space between words, lower case."""
    return " ".join(_mended(text).split()).lower()


def _canonical(text: str) -> str:
    """SigLIP's (big_vision, prompt_engineering.py): mended, no punctuation, lower case, one space between words."""
    return " ".join(_mended(text).replace("_", " ").translate(_PUNCTUATION).lower().split())


_SIGLIP = {"siglip_text_model", "siglip2_text_model"}
_CLEANING: dict[str, Callable[[str], str]] = {
    "clip_text_model": _lowered,
    "clipseg_text_model": _lowered,
    "groupvit_text_model": _lowered,
    "siglip_text_model": _canonical,
    "siglip2_text_model": str.lower,
}
"""By the model type of the text tower. SigLIP 2 of fixed size has SigLIP's type and is cleaned as open_clip cleans for
it. The NaFlex one is in transformers alone, whose Siglip2Tokenizer lowers and keeps punctuation."""
