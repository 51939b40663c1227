"""Forwards recorded and replayed on the stub card, which cannot record. Prints rows as JSON.

Torch's `graph` is given another body: it sends what is made inside to the pool, as the real one does, and a replay does
nothing. So the memory is the real allocator's; values and launches are not seen.

Usage: graphs.py DTYPE ID...; the card's size is FAKE_MEM_GB.
"""

import asyncio
import json
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.variants import VARIANTS
from encoders.adapters.registry import blueprint, load
from encoders.contract.encoder import Placement
from encoders.contract.values import Outputs, TokenKind
from encoders.memory.prediction import CUDA
from encoders.runtime.cuda_graphs import graphs_on
from encoders.runtime.device_memory import CudaMemory
from encoders.runtime.torch_encoder import TorchEncoder
from service.engine.backend import real_backend
from service.http.app import create_app
from service.settings import Settings
from tests.support.serving import PNG, client_of, image_bytes

LIMIT = 1024 * 2**20
OFTEN = 16
PICTURE = image_bytes(size=(64, 48))
KINDS = (Outputs(pooled=True), Outputs(pooled=True, tokens=TokenKind.HIDDEN))


class Recording:
    """Stands for torch.cuda.graph. room: bytes of the process' limit that are left to it; None: all."""

    room: float | None = None

    def __init__(self, graph: Any, *, pool: Any, stream: Any, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self._pool = pool
        self._stream = torch.cuda.stream(stream)

    def __enter__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self._stream.__enter__()  # type: ignore[no-untyped-call]  # torch does not type it
        torch._C._cuda_beginAllocateCurrentThreadToPool(0, self._pool)
        if self.room is not None:
            torch.cuda.set_per_process_memory_fraction(self.room)

    def __exit__(self, *error: Any) -> None:
        if self.room is not None:
            torch.cuda.set_per_process_memory_fraction(1.0)
        torch._C._cuda_endAllocateToPool(0, self._pool)
        torch._C._cuda_releasePool(0, self._pool)
        self._stream.__exit__(*error)


class Replays:
    """Stands for torch.cuda.CUDAGraph."""

    done = 0

    def replay(self) -> None:
        Replays.done += 1


def pool_bytes() -> int:
    """Bytes that torch holds in pools of their own."""
    segments = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) != (0, 0))


def rows(memory: CudaMemory, encoder_id: str, dtype: str) -> list[dict[str, Any]]:
    drawn = blueprint(encoder_id, dtype=dtype)
    encoder = load(encoder_id, Placement("cuda", dtype, graph_bytes=LIMIT))
    graphs = graphs_on("cuda:0", LIMIT)
    assert isinstance(encoder, TorchEncoder)
    found = []
    for outputs in KINDS:
        cost = drawn.cost(drawn.spec.image_size, outputs, device="cuda")
        for batch in (1, 8):
            pixels = np.zeros((batch, *drawn.spec.image_size, 3), np.uint8)
            peaks, replays = [], Replays.done
            for _ in range(OFTEN):
                with memory.reading() as reading:
                    encoder.encode(pixels, outputs)
                peaks.append(reading.peak)
            before = memory.figures().allocated
            torch.cuda.set_sync_debug_mode("error")  # what waits for the card raises
            with memory.reading() as reading:
                begun = [encoder.begin(pixels, outputs) for _ in range(2)]
            torch.cuda.set_sync_debug_mode("default")
            peaks.append(reading.peak)
            kept = memory.figures().allocated - before
            shapes = [np.asarray(forward.wait().pooled).shape for forward in begun]
            graph = list(graphs._kept.values())[-1]
            found.append(
                {
                    "what": f"{encoder_id} {outputs} x {batch}",
                    "peaks": peaks,
                    "replays": Replays.done - replays,
                    "kept": kept,
                    "shapes": shapes,
                    "scratch": graph.scratch,
                    "predicted": cost.requested(batch),
                    "at_most": memory.overhead.allocated(cost, batch),
                    "pool": pool_bytes(),
                    "pool_planned": CUDA.in_pages(max(graph.scratch for graph in graphs._kept.values())),
                    "taken": graphs.taken,
                }
            )
    return found


def without_room(encoder_id: str, dtype: str) -> dict[str, Any]:
    """What becomes of a forward that the card has no room to record."""
    encoder = load(encoder_id, Placement("cuda", dtype, graph_bytes=LIMIT - 1))
    graphs = graphs_on("cuda", LIMIT - 1)
    pixels = np.zeros((8, *encoder.spec.image_size, 3), np.uint8)
    Recording.room = 1e-6
    rows = [len(np.asarray(encoder.encode(pixels, KINDS[0]).pooled)) for _ in range(OFTEN + 2)]
    Recording.room = None
    return {"rows": rows, "taken": graphs.taken, "forwards": graphs.forwards}


def cannot_record(encoder_id: str, dtype: str, memory: CudaMemory) -> dict[str, Any]:
    """What becomes of forwards that torch itself tries to record here, and fails to."""
    encoder = load(encoder_id, Placement("cuda", dtype, graph_bytes=LIMIT - 2))
    pixels = np.zeros((8, *encoder.spec.image_size, 3), np.uint8)
    stream, held, rows = torch.cuda.current_stream(), [], []
    for _ in range(2 * OFTEN):
        rows.append(len(np.asarray(encoder.encode(pixels, KINDS[0]).pooled)))
        held.append(memory.figures().allocated)
    assert torch.cuda.current_stream() == stream
    return {"rows": rows, "held": held}


def measured_by_the_benchmark(encoder_id: str, dtype: str) -> list[list[int]]:
    """Shapes of the answers of both variants, to pixels on the card."""
    encoder = load(encoder_id, Placement("cuda", dtype))
    assert isinstance(encoder, TorchEncoder)
    pixels = torch.zeros(2, *encoder.spec.image_size, 3, dtype=torch.uint8, device="cuda")
    with torch.inference_mode():
        return [list(VARIANTS[name].start(encoder, pixels)().shape) for name in ("eager", "cudagraphs")]


async def served(model: str, budget: int) -> dict[str, Any]:
    """A service with graphs. Images come one by one, and then many at once."""
    settings = Settings(
        model=(model,), device="cuda", dtype="float16", vram_budget=budget, cuda_graph_bytes=budget // 2, max_images=64
    )
    replays = Replays.done
    app = create_app(settings, backend=real_backend(settings))
    async with client_of(app) as client:
        ones = [
            (await client.post("/embed?output=pooled", content=PICTURE, headers=PNG)).status_code
            for _ in range(OFTEN + 4)
        ]
        many = await client.post("/embed?output=pooled&resolution=448", files=[("image", PICTURE)] * 60)
        budgeted = app.state.engine.budget
        return {
            "statuses": [*ones, many.status_code],
            "replays": Replays.done - replays,
            "limit": budgeted.limit,
            "total": budgeted.total,
            "context": app.state.engine.memory.overhead.context,
            "metrics": (await client.get("/metrics")).text,
        }


if __name__ == "__main__":
    _, dtype, *ids = sys.argv
    card = CudaMemory("cuda", graph_bytes=LIMIT)
    failed = cannot_record(ids[0], dtype, card)
    torch.cuda.graph = Recording  # type: ignore[assignment,misc]
    torch.cuda.CUDAGraph = Replays  # type: ignore[assignment,misc]
    found = [row for each in ids for row in rows(card, each, dtype)]
    told = {
        "rows": found,
        "without_room": without_room(ids[0], dtype),
        "cannot_record": failed,
        "benchmark": measured_by_the_benchmark(ids[0], dtype),
    }
    card.release()
    print(json.dumps({**told, "served": asyncio.run(served(ids[0], 2**31))}))
