"""BentoML with an adaptive batch, as in its documentation and its CLIP example. Its settings come by the environment."""

import os

import bentoml
import numpy as np
import open_clip
import torch
from PIL.Image import Image


@bentoml.service(workers=1, traffic={"timeout": 120, "max_concurrency": 512})
class Embed:
    def __init__(self):
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(f"local-dir:{os.environ['BENCH_MODEL']}")
        self.dtype = getattr(torch, os.environ["BENCH_DTYPE"])
        self.model.eval().to(self.dtype)

    @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=10_000)
    def embed(self, images: list[Image]) -> np.ndarray:
        pixels = torch.stack([self.preprocess(image.convert("RGB")) for image in images])
        with torch.inference_mode():
            return self.model.encode_image(pixels.to(self.dtype), normalize=True).float().numpy()
