"""A text tower with its tokenizer."""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from encoders.adapters.hf.checkpoint import Checkpoint
from encoders.adapters.hf.trained_text import as_trained
from encoders.contract.errors import InvalidText, WeightsError, in_brief
from encoders.contract.spec import Scoring
from encoders.contract.values import TokenIds, Tokenized
from encoders.runtime.parts import TorchParts
from encoders.runtime.ragged import lengths_to_padding
from encoders.runtime.tower import TextTower


@dataclass(frozen=True)
class TextFamily:
    """How a text model is read.

    pool: the vector of a text, ahead of the projection, of the model's output.
    mask: what attention adds to its logits, [N or 1, 1, 1 or tokens, tokens], from the mask of what is not padding and
        a dtype. None: padding need not be masked, as CLIP's attention is causal and its padding comes last, and
        SigLIP was trained without.
    reads_padding: whether a text's vector depends on the padding behind it, as SigLIP's does.
    first_position: of a text's first token: RoBERTa's is behind that of padding.
    context: the tokens that it was trained on, where it has more positions.
    """

    pool: Callable[[Any], Tensor] = lambda output: output.pooler_output
    mask: Callable[[Tensor, torch.dtype], Tensor] | None = None
    reads_padding: bool = False
    first_position: int = 0
    context: int | None = None

    def context_length(self, config: Any, tokenizer: Any) -> int:
        """Tokens a text: the least of positions, of what it was trained on, and of what its tokenizer allows."""
        return min(
            int(config.max_position_embeddings) - self.first_position,
            self.context or sys.maxsize,
            int(tokenizer.model_max_length),
        )


def first(output: Any) -> Tensor:
    """BERT's class token."""
    vector: Tensor = output.last_hidden_state[:, 0]
    return vector


def causal(is_text: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of what comes later; padding comes last."""
    tokens = is_text.shape[1]
    barred = torch.full((tokens, tokens), torch.finfo(dtype).min, dtype=dtype, device=is_text.device)
    return barred.triu_(1)[None, None]


class HfText(TextTower):
    """A text tower with its projection, if it has one outside itself, and its tokenizer.

    Texts are padded to the context length, with the token of id `padding`. ends: whether that token ends a text too:
    CLIP and AIMv2 then pool on the first of them.
    """

    def __init__(
        self,
        model: nn.Module,
        projection: nn.Module | None,
        tokenizer: Any,
        family: TextFamily,
        *,
        context_length: int,
        padding: int,
        ends: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.projection = projection
        self.family = family
        self.context_length = context_length
        self.padding = padding
        self.ends = ends
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # padding and truncation are settings of the one tokenizer

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """As TextTower.tokenize. Raises InvalidText."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.context_length}
        try:
            with self._lock:
                ids = self._tokenizer(list(texts), **options, return_attention_mask=False)["input_ids"]
                whole = self._tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]
        except Exception as error:  # a lone surrogate, a word that its vocabulary has no name for
            raise InvalidText(f"A text cannot be tokenised: {in_brief(error)}") from error
        return Tokenized(np.array(ids, dtype=np.int64), np.array([len(row) for row in whole], dtype=np.int64))

    def lengths(self, ids: TokenIds) -> NDArray[np.int64]:
        """As TextTower.lengths."""
        if self.family.reads_padding:
            return super().lengths(ids)
        return lengths_to_padding(ids, self.padding, ends=self.ends)

    def forward(self, ids: Tensor) -> Tensor:
        """As TextTower.forward."""
        options = {}
        if self.family.mask is not None:
            is_text = ids != self.padding
            options["attention_mask"] = self.family.mask(is_text, next(self.model.parameters()).dtype)
        pooled = self.family.pool(self.model(input_ids=ids, **options))
        return pooled if self.projection is None else self.projection(pooled)


_PLAIN = TextFamily()


def with_text(
    checkpoint: Checkpoint,
    parts: TorchParts,
    config: Any,
    model: nn.Module,
    projection: Any,
    scoring: Scoring,
    family: TextFamily = _PLAIN,
) -> TorchParts:
    """`parts` with the text half, whose configuration is `config`."""
    tokenizer = checkpoint.tokenizer(vocabulary=config.vocab_size)
    if tokenizer is None:
        return parts
    length = family.context_length(config, tokenizer)
    trained = as_trained(tokenizer, config.model_type)
    padding = tokenizer.pad_token_id  # as trained
    ends = padding in (tokenizer.eos_token_id, config.eos_token_id)  # OpenAI's configurations say 2, and pool by value
    text = HfText(model, projection, trained, family, context_length=length, padding=padding, ends=ends)
    _try(text, checkpoint)
    return replace(parts, spec=replace(parts.spec, scoring=scoring, context_length=length), text=text)


def _try(text: HfText, checkpoint: Checkpoint) -> None:
    """Raises WeightsError if the tokenizer makes no rows of the context length, of whatever text."""
    try:
        ids = text.tokenize(["a"]).ids
    except InvalidText as error:
        raise WeightsError(
            f"The tokenizer of {checkpoint.name} cannot be used. {error}", model=checkpoint.id
        ) from error
    if ids.shape != (1, text.context_length):
        raise WeightsError(
            f"The tokenizer of {checkpoint.name} cannot be used: its texts have {text.context_length} tokens at most.",
            model=checkpoint.id,
        )
