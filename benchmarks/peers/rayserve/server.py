"""Ray Serve with @serve.batch, as in its documentation on dynamic request batching."""

import argparse
import io
import os
import time

import open_clip
import ray
import torch
from PIL import Image
from ray import serve
from starlette.requests import Request


# Without num_cpus Ray sets OMP_NUM_THREADS to 1 in a replica: the model gets every core.
@serve.deployment(ray_actor_options={"num_cpus": os.cpu_count()}, max_ongoing_requests=512)
class Embed:
    def __init__(self, folder, dtype):
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.dtype = getattr(torch, dtype)
        self.model.eval().to(self.dtype)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01)
    async def encode(self, jpegs):
        images = [self.preprocess(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs]
        with torch.inference_mode():
            return self.model.encode_image(torch.stack(images).to(self.dtype), normalize=True).float().tolist()

    async def __call__(self, request: Request):
        return {"embedding": await self.encode(await request.body())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    ray.init(include_dashboard=False, log_to_driver=False, num_cpus=os.cpu_count())
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    serve.run(Embed.bind(arguments.model, arguments.dtype), route_prefix="/embed")
    while True:
        time.sleep(3600)
