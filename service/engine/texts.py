"""Texts to vectors: tokenised on the CPU pool, then batched like images."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

from encoders.contract.values import Floats, TokenIds
from service.engine.postprocess import require_finite
from service.engine.scoring import Prompts
from service.errors import TextTooLong
from service.memory.shape import TextShape
from service.scheduling.device_threads import DeviceThreads
from service.scheduling.resident import Resident


class Texts:
    """Takes texts through their stages."""

    def __init__(self, *, threads: DeviceThreads, pool: Executor) -> None:
        self._threads = threads
        self._pool = pool

    async def tokenize(self, prompts: Prompts, *, resident: Resident, truncate: bool) -> tuple[TokenIds, Sequence[int]]:
        """The ids of the unique prompts, and the indices of the texts that were cut in any of their prompts.

        truncate: whether texts may be cut. Raises TextTooLong if not; OutputNotOffered or InvalidText.
        """
        loop = asyncio.get_running_loop()
        tokenized = await loop.run_in_executor(self._pool, resident.encoder.tokenize, prompts.unique)
        context_length = tokenized.ids.shape[1]
        too_long = {
            index: tokens for index, tokens in enumerate(prompts.tokens(tokenized.lengths)) if tokens > context_length
        }
        if too_long and not truncate:
            raise TextTooLong(model=resident.spec.id, tokens=too_long, context_length=context_length)
        return tokenized.ids, list(too_long)

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
