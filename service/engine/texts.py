"""Texts to vectors: tokenised on the CPU pool, then batched like images."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

from encoders.contract.values import Floats
from service.engine.postprocess import require_finite
from service.memory.shape import TextShape
from service.scheduling.device_threads import DeviceThreads
from service.scheduling.resident import Resident


class Texts:
    """Takes texts through their stages."""

    def __init__(self, *, threads: DeviceThreads, pool: Executor) -> None:
        self._threads = threads
        self._pool = pool

    async def encode(self, texts: Sequence[str], *, resident: Resident, shape: TextShape, deadline: float) -> Floats:
        """Embeddings float32 [texts, embed_dim], not normalised.

        Raises OutputNotOffered, InvalidText, EncoderFailed, Unavailable or DeadlineExceeded.
        """
        loop = asyncio.get_running_loop()
        tokenized = await loop.run_in_executor(self._pool, resident.encoder.tokenize, texts)
        futures = [self._threads.submit(resident, shape, row, deadline=deadline) for row in tokenized.ids]
        try:
            answers = await asyncio.gather(*futures)
        finally:
            for future in futures:
                future.cancel()
        vectors: Floats = np.stack([answer.row for answer in answers]).astype(np.float32)
        require_finite(vectors, model=shape.model)
        return vectors
