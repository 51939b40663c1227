"""The text half of an open_clip model as a TextTower."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from encoders.adapters.openclip.merges import Merges
from encoders.adapters.openclip.tokenizer import tokenized
from encoders.contract.errors import InvalidText
from encoders.contract.values import Tokenized
from encoders.runtime.padding import read_no_mask
from encoders.runtime.tower import TextTower


class OpenClipText(TextTower):
    """The text half of an open_clip model. The tokenizers keep state, so one caller at a time."""

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor] | None) -> None:
        super().__init__()
        self.model: Any = model
        if isinstance(tokenizer, SimpleTokenizer):
            tokenizer.bpe = Merges(tokenizer.bpe_ranks, whole=tokenizer.cache)
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        half = getattr(model, "text", None)
        if isinstance(half, HFTextEncoder):
            read_no_mask(half.transformer)

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """As TextTower.tokenize. Raises InvalidText."""
        assert self._tokenizer is not None, "a blueprint has no tokenizer"
        try:
            with self._lock:
                return tokenized(self._tokenizer, texts)
        except (TypeError, ValueError) as error:  # an entity of HTML with thousands of digits, for one
            raise InvalidText(f"A text cannot be tokenised: {error}") from error

    def forward(self, ids: Tensor) -> Tensor:
        """As TextTower.forward."""
        embedded: Tensor = self.model.encode_text(ids, normalize=False)  # CoCa's would be normalised
        return embedded
