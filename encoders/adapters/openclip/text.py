"""The text half of an open_clip model as a TextTower."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import TextTransformer, text_global_pool
from torch import Tensor, nn

from encoders.adapters.openclip.merges import Merges
from encoders.adapters.openclip.tokenizer import tokenized
from encoders.contract.errors import InvalidText
from encoders.contract.values import TokenIds, Tokenized
from encoders.runtime.padding import read_no_mask
from encoders.runtime.ragged import lengths_to_padding
from encoders.runtime.tower import TextTower

_PADDING = 0
"""SimpleTokenizer's."""


class OpenClipText(TextTower):
    """The text half of an open_clip model. The tokenizers keep state, so one caller at a time."""

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor] | None) -> None:
        super().__init__()
        self.model: Any = model
        if isinstance(tokenizer, SimpleTokenizer):
            tokenizer.bpe = Merges(tokenizer.bpe_ranks, whole=tokenizer.cache)
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        if isinstance(self._half, HFTextEncoder):
            read_no_mask(self._half.transformer)

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """As TextTower.tokenize. Raises InvalidText."""
        assert self._tokenizer is not None, "a blueprint has no tokenizer"
        try:
            with self._lock:
                return tokenized(self._tokenizer, texts)
        except (TypeError, ValueError) as error:  # an entity of HTML with thousands of digits, for one
            raise InvalidText(f"A text cannot be tokenised: {error}") from error

    def lengths(self, ids: TokenIds) -> NDArray[np.int64]:
        """As TextTower.lengths."""
        if self._is_causal and isinstance(self._tokenizer, SimpleTokenizer):
            return lengths_to_padding(ids, _PADDING, ends=False)
        return super().lengths(ids)

    def forward(self, ids: Tensor) -> Tensor:
        """As TextTower.forward."""
        embedded: Tensor
        if not self._is_causal:
            embedded = self.model.encode_text(ids, normalize=False)  # CoCa's would be normalised
            return embedded
        half, count = self._half, ids.shape[1]  # open_clip's own forward has no fewer columns than its context
        x = half.token_embedding(ids) + half.positional_embedding[:count]
        x = half.ln_final(half.transformer(x, attn_mask=half.attn_mask[:count, :count]))
        pooled: Tensor = text_global_pool(x, ids, *self._pooling)
        projection = half.text_projection
        if projection is None:
            return pooled
        embedded = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
        return embedded

    @property
    def _half(self) -> Any:
        """Where the text tower's parts are."""
        return getattr(self.model, "text", self.model)

    @property
    def _pooling(self) -> tuple[str | None, int | None]:
        """open_clip's name for it, and the id of the end of a text; (None, None) of what is no CLIP's."""
        if self._half is self.model:
            return self.model.text_pool_type, self.model.text_eos_id
        return getattr(self._half, "pool_type", None), getattr(self._half, "eos_id", None)

    @property
    def _is_causal(self) -> bool:
        """Whether no vector depends on padding: tokens look back alone, and the one that pools ends the text."""
        half = self._half
        return (
            isinstance(half, CLIP | TextTransformer)
            and getattr(half, "cls_emb", None) is None
            and half.attn_mask is not None
            and self._pooling[0] in ("argmax", "eos")
        )
