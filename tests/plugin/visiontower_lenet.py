"""LeNet-5 as a third-party encoder: the whole of what it takes to add one.

`lenet:5@random`, or `lenet:5@FILE` for a state dict saved with safetensors.
"""

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from encoders.adapters.registry import EncoderId
from encoders.contract.spec import EncoderSpec, Preprocessing, Resolutions
from encoders.contract.values import Grid, ImageSize, Outputs
from encoders.runtime.parts import TorchParts
from encoders.runtime.tower import Features, Tower, to_patches
from encoders.runtime.weights import fitting, load_strictly


class LeNet5(Tower):
    """Two convolutions with pooling, then two dense layers (LeCun et al. 1998), on the grey of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, kernel_size=5), nn.Tanh(), nn.AvgPool2d(2))
            for channels, width in ((1, 6), (6, 16))
        )
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(16 * 5 * 5, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh())

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """Tokens of a stage (the last if none is named) and the 84 values before the classifier."""
        x = pixels.mean(dim=1, keepdim=True)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        shown = x if outputs.layer is None else maps[outputs.layer]
        return Features(
            grid=Grid(*shown.shape[2:]),
            tokens=to_patches(shown) if outputs.tokens else None,
            pooled=self.dense(x) if outputs.pooled else None,
        )


def build(encoder_id: EncoderId, *, with_weights: bool) -> TorchParts:
    """The entry point: an id in, the parts of an encoder out. Without weights they make a blueprint."""
    size = ImageSize(32, 32)
    spec = EncoderSpec(
        id=str(encoder_id),
        family="lenet",
        image_size=size,
        patch_size=ImageSize(4, 4),
        grid_offset=-12,  # the unpadded convolutions eat a border of twelve pixels: (32 - 12) // 4 = 5
        prefix_tokens=0,
        hidden_size=16,
        layer_sizes=(6, 16),
        embed_dim=None,
        pooled_size=84,
        pooling="dense",
        layers=2,
        resolutions=Resolutions(multiple=ImageSize(1, 1), minimum=size, maximum=size, only=size),
        preprocessing=Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", resize="squash"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = LeNet5()
    if with_weights and encoder_id.weights not in (None, "random"):
        source = str(encoder_id.weights)
        with fitting(spec.id, source):
            load_strictly(tower, load_file(source), encoder_id=spec.id, source=source)
    return TorchParts(spec, tower)
