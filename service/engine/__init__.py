"""Request values in, result values out: embeddings and scores. Knows no protocol; usable without a server.

import asyncio
from pathlib import Path

from service.engine import Engine, EmbedRequest
from service.settings import Settings

async def main() -> None:
    async with Engine(Settings(model=("demo:vit",))) as engine:
        result = await engine.embed(EmbedRequest([Path("cat.jpg").read_bytes()], output="pooled"))
        print(result.items[0].pooled.shape)

asyncio.run(main())
"""

from service.engine.engine import Engine
from service.engine.values import (
    EmbedRequest,
    EmbedResult,
    PlanRequest,
    PlanResult,
    SimilarityRequest,
    SimilarityResult,
)

__all__ = [
    "EmbedRequest",
    "EmbedResult",
    "Engine",
    "PlanRequest",
    "PlanResult",
    "SimilarityRequest",
    "SimilarityResult",
]
