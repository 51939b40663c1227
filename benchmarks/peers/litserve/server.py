"""LitServe with batching, as in its documentation: decode_request, batch, predict, unbatch, encode_response."""

import argparse

import litserve
import open_clip
import torch
from PIL import Image


class Embed(litserve.LitAPI):
    def __init__(self, folder, dtype, **options):
        super().__init__(**options)
        self.folder, self.dtype = folder, dtype

    def setup(self, device):
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(f"local-dir:{self.folder}")
        self.torch_dtype = getattr(torch, self.dtype)
        self.model.eval().to(self.torch_dtype)

    def decode_request(self, request):
        return self.preprocess(Image.open(request["image"].file).convert("RGB"))

    def batch(self, inputs):
        return torch.stack(inputs).to(self.torch_dtype)

    def predict(self, pixels):
        with torch.inference_mode():
            return self.model.encode_image(pixels, normalize=True).float()

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"embedding": output.tolist()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    # The documentation's advice: as large a batch as pays, a wait in the order of a forward.
    api = Embed(arguments.model, arguments.dtype, max_batch_size=16, batch_timeout=0.01)
    server = litserve.LitServer(api, accelerator="cpu", timeout=120)
    server.run(host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False)
