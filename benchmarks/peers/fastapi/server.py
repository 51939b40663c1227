"""The handler most people write: FastAPI and open_clip, one image a forward, all of it inside `async def`."""

import argparse
import io

import open_clip
import torch
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--dtype", default="float32")
arguments = parser.parse_args()
dtype = getattr(torch, arguments.dtype)

model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{arguments.model}")
model.eval().to(dtype)
app = FastAPI()


@app.post("/embed")
async def embed(request: Request):
    image = Image.open(io.BytesIO(await request.body())).convert("RGB")
    with torch.inference_mode():
        features = model.encode_image(preprocess(image).unsqueeze(0).to(dtype), normalize=True)
    return {"embedding": features[0].tolist()}


uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")
