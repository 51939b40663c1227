"""Towers of convolutions: ConvNeXt V1 and V2, DINOv3 ConvNeXt, ResNet."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from encoders.adapters.hf.checkpoint import CLASSIFIER, Checkpoint
from encoders.adapters.hf.spec import cnn_spec
from encoders.contract.values import Grid, Outputs
from encoders.runtime.parts import TorchParts
from encoders.runtime.tower import Features, Tower, to_patches


class CnnTower(Tower):
    """Stages of convolutions; final tokens are the last feature map, raw. `model` is a ConvNextModel (V1 or V2)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def stem(self, pixels: Tensor) -> Tensor:
        """The input of the first stage."""
        stem: Tensor = self.model.embeddings(pixels)
        return stem

    @property
    def stages(self) -> Iterable[nn.Module]:
        """The stages, in order."""
        stages: nn.ModuleList = self.model.encoder.stages
        return stages

    def pool(self, final: Tensor) -> Tensor:
        """The last feature map [B, C, rows, cols] -> [B, C]."""
        pooled: Tensor = self.model.layernorm(final.mean([-2, -1]))
        return pooled

    def final_tokens(self, final: Tensor) -> tuple[int, Tensor]:
        """The last feature map as (prefix tokens, tokens)."""
        return 0, to_patches(final)

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward."""
        x, kept = self.stem(pixels), None
        for k, stage in enumerate(self.stages):
            x = stage(x)  # [B, C, rows, cols]
            if outputs.tokens and k == outputs.layer:
                kept = x
                if not outputs.pooled:
                    break
        pooled = self.pool(x) if outputs.pooled else None
        if kept is not None:
            return Features(Grid(*kept.shape[2:]), tokens=to_patches(kept), pooled=pooled)
        prefix, tokens = self.final_tokens(x) if outputs.tokens else (0, None)
        return Features(Grid(*x.shape[2:]), prefix, tokens, pooled)


class ResNetTower(CnnTower):
    """ResNetModel."""

    def stem(self, pixels: Tensor) -> Tensor:
        """As CnnTower.stem."""
        stem: Tensor = self.model.embedder(pixels)
        return stem

    def pool(self, final: Tensor) -> Tensor:
        """As CnnTower.pool."""
        pooled: Tensor = self.model.pooler(final)
        return pooled.flatten(1)


class Dinov3ConvNextTower(CnnTower):
    """DINOv3ConvNextModel: its final tokens are normed, behind one class token, their mean before the norm."""

    def stem(self, pixels: Tensor) -> Tensor:
        """Part of the first stage here."""
        return pixels

    @property
    def stages(self) -> Iterable[nn.Module]:
        """As CnnTower.stages."""
        stages: nn.ModuleList = self.model.model.stages
        return stages

    def pool(self, final: Tensor) -> Tensor:
        """As CnnTower.pool."""
        pooled: Tensor = self.model.layer_norm(self.model.pool(final).flatten(1))
        return pooled

    def final_tokens(self, final: Tensor) -> tuple[int, Tensor]:
        """As CnnTower.final_tokens."""
        tokens = torch.cat([self.model.pool(final).flatten(2).transpose(1, 2), to_patches(final)], dim=1)
        return 1, self.model.layer_norm(tokens)


def build_convnext(checkpoint: Checkpoint) -> TorchParts:
    """ConvNeXt, V1 or V2."""
    config = checkpoint.config()
    v2 = config.model_type == "convnextv2"
    model = checkpoint.model(
        transformers.ConvNextV2Model if v2 else transformers.ConvNextModel, config, unused=CLASSIFIER
    )
    seen = checkpoint.seen("ConvNextImageProcessor")
    stride = config.patch_size * 2 ** (len(config.depths) - 1)
    return TorchParts(cnn_spec(checkpoint, config, seen, family="convnext", stride=stride), CnnTower(model))


def build_dinov3_convnext(checkpoint: Checkpoint) -> TorchParts:
    """DINOv3, the ConvNeXt."""
    config = checkpoint.config()
    model = checkpoint.model(transformers.DINOv3ConvNextModel, config, unused=CLASSIFIER)
    seen = checkpoint.seen("DINOv3ViTImageProcessor")
    spec = cnn_spec(checkpoint, config, seen, family="convnext", stride=4 * 2 ** (len(config.depths) - 1))
    return TorchParts(replace(spec, prefix_tokens=1), Dinov3ConvNextTower(model))


def build_resnet(checkpoint: Checkpoint) -> TorchParts:
    """ResNet."""
    config = checkpoint.config()
    model = checkpoint.model(transformers.ResNetModel, config, unused=CLASSIFIER)
    seen = checkpoint.seen("ConvNextImageProcessor")
    stride = (8 if config.downsample_in_first_stage else 4) * 2 ** (len(config.depths) - 1)
    spec = cnn_spec(checkpoint, config, seen, family="resnet", stride=stride)
    return TorchParts(replace(spec, grid_offset=stride - 1), ResNetTower(model))  # every halving rounds up
