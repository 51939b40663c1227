"""DINOv2 and DINOv3, the transformers."""

from collections.abc import Callable
from typing import Any

import transformers
from torch import Tensor, nn

from encoders.adapters.hf.checkpoint import CLASSIFIER, Checkpoint
from encoders.adapters.hf.config import vit_facts
from encoders.adapters.hf.spec import vit_spec
from encoders.adapters.hf.vit import VitTower
from encoders.runtime.parts import TorchParts


class Dinov2Tower(VitTower):
    """Dinov2Model, with registers or without: its embeddings interpolate the positions themselves."""

    @property
    def blocks(self) -> nn.ModuleList:
        """As VitTower.blocks."""
        blocks: nn.ModuleList = self.model.encoder.layer
        return blocks

    def embed(self, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """As VitTower.embed."""
        return self.model.embeddings(pixels), {}

    def norm(self, tokens: Tensor) -> Tensor:
        """As VitTower.norm."""
        normed: Tensor = self.model.layernorm(tokens)
        return normed

    def pool(self, final: Tensor) -> Tensor:
        """The class token."""
        return final[:, 0]


class Dinov3Tower(VitTower):
    """DINOv3ViTModel: positions are rotary, made for each grid."""

    @property
    def blocks(self) -> nn.ModuleList:
        """As VitTower.blocks."""
        blocks: nn.ModuleList = self.model.model.layer
        return blocks

    def embed(self, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """As VitTower.embed."""
        return self.model.embeddings(pixels), {"position_embeddings": self.model.rope_embeddings(pixels)}

    def norm(self, tokens: Tensor) -> Tensor:
        """As VitTower.norm."""
        normed: Tensor = self.model.norm(tokens)
        return normed

    def pool(self, final: Tensor) -> Tensor:
        """The class token."""
        return final[:, 0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Dinov3Tower":
        """Moves and casts as any module, but for the rotary frequencies, which stay float32.

        transformers keeps them so in every dtype; cast to bfloat16 they would turn far patches by the wrong angle.
        """
        rope = self.model.rope_embeddings
        frequencies = rope.inv_freq
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch does not type it
        rope.inv_freq = frequencies.to(rope.inv_freq.device)
        return self


def build_dinov2(checkpoint: Checkpoint) -> TorchParts:
    """DINOv2, with registers or without."""
    config = checkpoint.config()
    registers = config.model_type == "dinov2_with_registers"
    architecture = transformers.Dinov2WithRegistersModel if registers else transformers.Dinov2Model
    tower = Dinov2Tower(checkpoint.model(architecture, config, unused=CLASSIFIER), **vit_facts(config))
    return TorchParts(vit_spec(checkpoint, config, tower, checkpoint.seen("BitImageProcessor")), tower)


def build_dinov3(checkpoint: Checkpoint) -> TorchParts:
    """DINOv3, the transformer."""
    config = checkpoint.config()
    model = checkpoint.model(transformers.DINOv3ViTModel, config, unused=CLASSIFIER)
    tower = Dinov3Tower(model, **vit_facts(config))
    return TorchParts(vit_spec(checkpoint, config, tower, checkpoint.seen("DINOv3ViTImageProcessor")), tower)
