"""CLIP models of open_clip's that are made in no time, and what an encoder gives for the photographs."""

import copy
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

from encoders.contract.values import ImageSize
from encoders.runtime.torch_encoder import TorchEncoder
from tests.support.photographs import photographs

TINY_VIT: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 48, "layers": 4, "head_width": 12},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TINY_RESNET: dict[str, Any] = {
    **TINY_VIT,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 8, "head_width": 32},
}


def tiny(config: dict[str, Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = open_clip.CLIP(**copy.deepcopy(config)).eval()
        with torch.no_grad():
            for part in model.modules():
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.weight.uniform_(0.5, 1.0)
        return model


def run(encoder: TorchEncoder, size: ImageSize, **outputs: Any) -> Any:
    pixels = np.stack([encoder.preprocess(photo, size) for photo in photographs()])
    return encoder.encode(pixels, encoder.spec.outputs(**outputs))


def normalised(encoder: TorchEncoder, size: ImageSize) -> Tensor:
    return encoder.normalise(torch.from_numpy(np.stack([encoder.preprocess(p, size) for p in photographs()])))
