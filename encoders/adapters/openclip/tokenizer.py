"""The tokenizer of an open_clip model."""

import logging
from collections.abc import Callable
from typing import Any

import open_clip
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer, basic_clean, canonicalize_text
from torch import Tensor

from encoders.adapters.registry import EncoderId
from encoders.contract.errors import WeightsError

_log = logging.getLogger(__name__)


def tokenizer_of(source: str, encoder_id: EncoderId) -> Callable[[list[str]], Tensor] | None:
    """The model's tokenizer; None where it would have to be downloaded for random weights and cannot be."""
    try:
        tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(source)
    except Exception as error:  # whatever the hub client raises
        if not encoder_id.is_random:
            raise WeightsError(
                f"The tokenizer of {encoder_id} cannot be had: {error}", model=str(encoder_id)
            ) from error
        _log.warning("%s is served without its text half: its tokenizer is not on this machine.", encoder_id)
        return None
    return tokenizer


def count_tokens(tokenizer: Any, text: str) -> int:
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
