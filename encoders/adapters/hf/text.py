"""A text tower with its tokenizer."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from encoders.adapters.hf.checkpoint import Checkpoint
from encoders.contract.errors import InvalidText
from encoders.contract.spec import Scoring
from encoders.contract.values import Tokenized
from encoders.runtime.parts import TorchParts
from encoders.runtime.tower import TextTower


class HfText(TextTower):
    """A text tower with its projection, if it has one outside itself, and its tokenizer.

    Texts are padded to the context length, as these models were trained, without a mask: CLIP's is causal and its
    padding comes last; SigLIP has none.
    """

    def __init__(self, model: nn.Module, projection: nn.Module | None, tokenizer: Any, *, context_length: int) -> None:
        super().__init__()
        self.model = model
        self.projection = projection
        self.context_length = context_length
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # padding and truncation are settings of the one tokenizer

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """As TextTower.tokenize. Raises InvalidText."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.context_length}
        try:
            with self._lock:
                ids = self._tokenizer(list(texts), **options, return_attention_mask=False)["input_ids"]
                whole = self._tokenizer(list(texts), return_attention_mask=False, verbose=False)["input_ids"]
        except (TypeError, ValueError) as error:  # a lone surrogate, for one
            raise InvalidText(f"A text cannot be tokenised: {error}") from error
        return Tokenized(np.array(ids, dtype=np.int64), np.array([len(row) for row in whole], dtype=np.int64))

    def forward(self, ids: Tensor) -> Tensor:
        """As TextTower.forward."""
        pooled: Tensor = self.model(input_ids=ids).pooler_output
        return pooled if self.projection is None else self.projection(pooled)


def with_text(
    checkpoint: Checkpoint, parts: TorchParts, config: Any, model: nn.Module, projection: Any, scoring: Scoring
) -> TorchParts:
    """`parts` with the text half, whose configuration is `config`."""
    tokenizer = checkpoint.tokenizer(vocabulary=config.vocab_size)
    if tokenizer is None:
        return parts
    length = int(config.max_position_embeddings)
    text = HfText(model, projection, tokenizer, context_length=length)
    return replace(parts, spec=replace(parts.spec, scoring=scoring, context_length=length), text=text)
