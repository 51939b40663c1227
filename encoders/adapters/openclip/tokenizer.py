"""The tokenizer of an open_clip model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import open_clip
from open_clip.tokenizer import (
    DEFAULT_CONTEXT_LENGTH,
    HFTokenizer,
    SigLipTokenizer,
    SimpleTokenizer,
    basic_clean,
    canonicalize_text,
)
from torch import Tensor

from encoders.adapters.openclip.hub import require_one_of
from encoders.adapters.registry import EncoderId
from encoders.contract.errors import WeightsError
from encoders.contract.values import Tokenized
from encoders.runtime.weights import fitting

_log = logging.getLogger(__name__)


_FILES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "vocab.json", "vocab.txt")
"""One of these makes a tokenizer of transformers."""


def context_length(text_cfg: Mapping[str, Any]) -> int:
    """The ids of a text by open_clip's rule for its tokenizers, whatever more the text tower could read."""
    return int(text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH))


def tokenizer_of(
    source: str, text_cfg: Mapping[str, Any], encoder_id: EncoderId
) -> Callable[[list[str]], Tensor] | None:
    """The model's tokenizer; None for random weights if it is on the Hugging Face hub alone and cannot be had.

    source, text_cfg: the model as open_clip names it, and that part of its configuration. Raises WeightsError.
    """
    folder = source.removeprefix("local-dir:")
    try:
        if name := text_cfg.get("hf_tokenizer_name"):
            place = folder if folder != source else name  # a folder brings its own
            require_one_of(_FILES, of=place, part="tokenizer", encoder_id=str(encoder_id))
        with fitting(str(encoder_id), "its tokenizer"):
            tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(source)
    except WeightsError as error:
        if not encoder_id.is_random:
            raise
        _log.warning("%s is served without its text half. %s", encoder_id, error)
        return None
    return tokenizer


def tokenized(tokenizer: Any, texts: Sequence[str]) -> Tokenized:
    """The ids that a call of the tokenizer gives, and the lengths before it cuts."""
    if isinstance(tokenizer, SimpleTokenizer) and tokenizer.reduction_fn is None:
        return _by_one_reading(tokenizer, texts)
    ids: Tensor = tokenizer(list(texts))
    lengths = [_count_tokens(tokenizer, text) for text in texts]
    return Tokenized(ids.numpy(), np.array(lengths, dtype=np.int64))


def _by_one_reading(tokenizer: Any, texts: Sequence[str]) -> Tokenized:
    """As SimpleTokenizer's call, which would have to be made beside its `encode` for the lengths."""
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    ids = np.zeros((len(texts), tokenizer.context_length), dtype=np.int64)
    lengths = np.zeros(len(texts), dtype=np.int64)
    for index, text in enumerate(texts):
        tokens = [start, *tokenizer.encode(text), end]
        lengths[index] = len(tokens)
        kept = tokens[: ids.shape[1]]
        kept[-1] = end
        ids[index, : len(kept)] = kept
    return Tokenized(ids, lengths)


def _count_tokens(tokenizer: Any, text: str) -> int:
    """The tokens that the tokenizer makes of a text before it cuts, those it puts around every text included."""
    if isinstance(tokenizer, SimpleTokenizer):
        return len(tokenizer.encode(text)) + 2  # start and end
    if isinstance(tokenizer, SigLipTokenizer):
        return len(_whole(tokenizer, canonicalize_text(basic_clean(text))))
    assert isinstance(tokenizer, HFTokenizer), "open_clip has these three"
    cleaned = tokenizer.clean_fn(text)
    if tokenizer.tokenizer_mode == "clips":
        return len(_whole(tokenizer, cleaned, add_special_tokens=False)) + 3  # start, end, class
    return len(_whole(tokenizer, cleaned))


def _whole(tokenizer: Any, cleaned: str, **options: bool) -> list[int]:
    ids: list[int] = tokenizer.tokenizer(cleaned, truncation=False, verbose=False, **options).input_ids
    return ids
