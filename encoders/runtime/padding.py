"""Masks of padded texts for transformers' text models. No value is read, so tensors on meta will do.

From a mask [N, tokens] transformers makes its own, but first it asks whether there is any padding at all: on meta that
raises, and a card has to be waited for. A mask of four dimensions it takes as it is.
"""

from typing import Any

import torch
from torch import Tensor, nn


def attention_bias(is_text: Tensor, *, dtype: torch.dtype) -> Tensor:
    """What attention adds to its logits so that padding is not looked at: [N, 1, 1, tokens] in `dtype`.

    is_text: [N, tokens], not 0 at the tokens of a text, 0 at its padding.
    """
    bias = torch.zeros(is_text.shape, dtype=dtype, device=is_text.device)
    bias.masked_fill_(is_text == 0, torch.finfo(dtype).min)  # minus infinity gives NaN for a text of padding alone
    return bias[:, None, None, :]


def read_no_mask(model: nn.Module) -> None:
    """From now on the model's forwards take an attention_mask [N, tokens] without a look at its values.

    model: of transformers, an encoder of texts that attends in both directions.
    """

    def widen(
        model: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask = options.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return args, options
        return args, {**options, "attention_mask": attention_bias(mask, dtype=next(model.parameters()).dtype)}

    model.register_forward_pre_hook(widen, with_kwargs=True)
