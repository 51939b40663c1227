"""Texts to vectors: tokenised on a thread of their own, then batched like images."""

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from encoders.contract.values import Floats, TokenIds
from service.engine.postprocess import require_finite
from service.engine.scoring import Prompts
from service.errors import TextTooLong
from service.line import Line
from service.memory.shape import TextShape
from service.scheduling.device_threads import DeviceThreads
from service.scheduling.resident import Resident

_PIECE_CHARS = 4096
"""Prompts are tokenised so many characters at a time, or one prompt: some milliseconds, rarely some tens."""
_PROMPT_CHARS = 32
"""What a prompt costs beside its own characters."""


class Texts:
    """Takes texts through their stages."""

    def __init__(self, *, threads: DeviceThreads) -> None:
        self._threads = threads
        self._line = Line("tokenize")

    async def tokenize(self, prompts: Prompts, *, resident: Resident, truncate: bool) -> tuple[TokenIds, Sequence[int]]:
        """The ids of the unique prompts, and the indices of the texts that were cut in any of their prompts.

        Piece by piece: a request with less text goes before the next piece, and no further piece is begun for one that
        has left. truncate: whether texts may be cut. Raises TextTooLong if not; OutputNotOffered or InvalidText.
        """
        rank = (sum(map(_price, prompts.unique)),)
        tokenize = resident.encoder.tokenize
        found = [await self._line.put(partial(tokenize, piece), rank=rank).answer for piece in _pieces(prompts.unique)]
        ids = found[0].ids if len(found) == 1 else np.concatenate([piece.ids for piece in found])
        lengths = np.concatenate([piece.lengths for piece in found])
        context_length = ids.shape[1]
        too_long = {index: tokens for index, tokens in enumerate(prompts.tokens(lengths)) if tokens > context_length}
        if too_long and not truncate:
            raise TextTooLong(model=resident.spec.id, tokens=too_long, context_length=context_length)
        return ids, list(too_long)

    async def encode(self, ids: TokenIds, *, resident: Resident, shape: TextShape, deadline: float) -> Floats:
        """Embeddings float32 [prompts, embed_dim], not normalised, of ids [prompts, context_length].

        Raises EncoderFailed, Unavailable or DeadlineExceeded.
        """
        futures = [self._threads.submit(resident, shape, row, deadline=deadline) for row in ids]
        try:
            answers = await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()
        vectors: Floats = np.stack([answer.row for answer in answers]).astype(np.float32)
        require_finite(vectors, model=shape.model)
        return vectors

    def close(self) -> None:
        """Take no more texts."""
        self._line.close()


def _price(prompt: str) -> int:
    return len(prompt) + _PROMPT_CHARS


def _pieces(prompts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Neighbours together, up to the price of a piece."""
    begin = price = 0
    for index, prompt in enumerate(prompts):
        if index > begin and price + _price(prompt) > _PIECE_CHARS + _PROMPT_CHARS:
            yield prompts[begin:index]
            begin, price = index, 0
        price += _price(prompt)
    yield prompts[begin:]
