"""Forwards on the stub card: what was predicted, and what torch's allocator counted. Prints rows as JSON.

Usage: forwards.py DTYPE ID...
"""

import json
import sys

import numpy as np
import torch

from encoders.adapters.registry import blueprint, load
from encoders.contract.encoder import Placement
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.runtime.device_memory import CudaMemory
from encoders.runtime.torch_encoder import TorchEncoder

BATCHES = (1, 2, 8, 32)


def rows(memory: CudaMemory, encoder_id: str, dtype: str) -> list[dict[str, object]]:
    drawn = blueprint(encoder_id, dtype=dtype)
    torch.cuda.reset_peak_memory_stats()
    encoder = load(encoder_id, Placement("cuda", dtype))
    assert isinstance(encoder, TorchEncoder)
    spec, stats = drawn.spec, torch.cuda.memory_stats()
    largest = max(parameter.nbytes for parameter in encoder.tower.parameters())
    found: list[dict[str, object]] = [
        {
            "what": f"{encoder_id} loads",
            "predicted": encoder.spec.weights_bytes,
            "requested": stats["requested_bytes.all.current"],
            "peak": stats["requested_bytes.all.peak"],
            "largest": largest,
        }
    ]
    kinds = [
        Outputs(pooled=True),
        Outputs(pooled=True, tokens=TokenKind.HIDDEN),
        Outputs(tokens=TokenKind.HIDDEN, layer=1),
    ]
    kinds += [Outputs(tokens=TokenKind.DENSE)] * spec.dense + [Outputs(tokens=TokenKind.PROJECTED)] * spec.projects
    larger = ImageSize(spec.image_size.height * 2, spec.image_size.width)
    sizes = [spec.image_size] if spec.resolutions.problem(larger) else [spec.image_size, larger]
    for size in sizes:
        for outputs in kinds if size == spec.image_size else kinds[:1]:
            cost = drawn.cost(size, outputs, device="cuda")
            for batch in BATCHES:
                before = torch.cuda.memory_stats()
                torch.cuda.reset_peak_memory_stats()
                encoder.encode(np.zeros((batch, *size, 3), np.uint8), outputs)
                after = torch.cuda.memory_stats()
                found.append(
                    {
                        "what": f"{encoder_id} {size} {outputs} x {batch}",
                        "batch": batch,
                        "workspace": memory.overhead.workspace,
                        "predicted": cost.requested(batch),
                        "at_most": memory.overhead.allocated(cost, batch),
                        "requested": after["requested_bytes.all.peak"] - before["requested_bytes.all.current"],
                        "allocated": after["allocated_bytes.all.peak"] - before["allocated_bytes.all.current"],
                    }
                )
    return found


if __name__ == "__main__":
    card = CudaMemory("cuda")
    print(json.dumps([row for encoder_id in sys.argv[2:] for row in rows(card, encoder_id, sys.argv[1])]))
