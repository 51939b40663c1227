"""ViT as it was first made."""

from dataclasses import replace
from typing import Any

import transformers
from torch import Tensor, nn

from encoders.adapters.hf.checkpoint import CLASSIFIER, Checkpoint
from encoders.adapters.hf.config import vit_facts
from encoders.adapters.hf.dino import Dinov2Tower
from encoders.adapters.hf.spec import vit_spec
from encoders.runtime.parts import TorchParts


class VanillaVitTower(Dinov2Tower):
    """ViTModel; pooled by its pooler where the checkpoint has one, else the class token."""

    @property
    def blocks(self) -> nn.ModuleList:
        """As VitTower.blocks."""
        blocks: nn.ModuleList = self.model.layers
        return blocks

    def embed(self, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """As VitTower.embed."""
        return self.model.embeddings(pixels, interpolate_pos_encoding=not self.is_native(pixels)), {}

    def pool(self, final: Tensor) -> Tensor:
        """As VitTower.pool."""
        return final[:, 0] if self.model.pooler is None else self.model.pooler(final)


def build_vanilla_vit(checkpoint: Checkpoint) -> TorchParts:
    """ViT, with its pooler where the checkpoint has one."""
    config = checkpoint.config()
    model = checkpoint.model(transformers.ViTModel, config, unused=CLASSIFIER, optional=r"pooler\.")
    tower = VanillaVitTower(model, **vit_facts(config))
    spec = vit_spec(checkpoint, config, tower, checkpoint.seen("ViTImageProcessor"))
    if model.pooler is not None:
        spec = replace(spec, pooled_size=model.pooler.dense.out_features)
    return TorchParts(spec, tower)
