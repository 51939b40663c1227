"""The tokenizer of an open_clip model."""

import logging
from collections.abc import Callable

import open_clip
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
