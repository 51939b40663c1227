"""The largest batch on the stub card: planned, and found by trying. Prints rows as JSON.

Usage: largest.py ID=DTYPE...; the card's size is FAKE_MEM_GB.
"""

import gc
import json
import sys

import torch

from encoders.adapters.registry import blueprint, load
from encoders.contract.encoder import Placement
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.runtime.device_memory import CudaMemory
from encoders.runtime.torch_encoder import TorchEncoder

OUTPUTS = Outputs(pooled=True, tokens=TokenKind.HIDDEN)


def runs(encoder: TorchEncoder, size: ImageSize, batch: int) -> bool:
    pixels = torch.empty(1, dtype=torch.uint8).expand(batch, *size, 3)
    try:
        with torch.inference_mode():
            encoder.run(pixels, OUTPUTS)
        return True
    except torch.OutOfMemoryError:
        pass
    gc.collect()  # outside the except block: its traceback holds the tensors
    torch.cuda.empty_cache()
    return False


def rows(memory: CudaMemory, encoder_id: str, dtype: str) -> list[dict[str, object]]:
    memory.release()
    figures = memory.figures()
    free = figures.free + figures.reserved - figures.allocated
    drawn = blueprint(encoder_id, dtype=dtype)
    encoder = load(encoder_id, Placement("cuda", dtype))
    assert isinstance(encoder, TorchEncoder)
    found: list[dict[str, object]] = []
    for size in dict.fromkeys((drawn.spec.image_size, ImageSize(448, 448))):
        torch.cuda.empty_cache()
        cost = drawn.cost(size, OUTPUTS, device="cuda")
        planned = memory.overhead.largest_batch(cost, free - encoder.spec.weights_bytes)
        ran = planned
        while ran and not runs(encoder, size, ran):
            ran -= 1
        step = max(1, planned // 64)
        while step:
            while runs(encoder, size, ran + step):
                ran += step
            step //= 2
        found.append({"what": f"{encoder_id} {dtype} {size}", "planned": planned, "ran": ran})
    return found


if __name__ == "__main__":
    card = CudaMemory("cuda")
    asked = [argument.rpartition("=") for argument in sys.argv[1:]]
    print(json.dumps([row for encoder_id, _, dtype in asked for row in rows(card, encoder_id, dtype)]))
