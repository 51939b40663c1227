"""SigLIP, and SigLIP 2 at a fixed size and in NaFlex."""

from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.adapters.hf.checkpoint import Checkpoint
from encoders.adapters.hf.config import vit_facts
from encoders.adapters.hf.spec import vit_spec
from encoders.adapters.hf.text import TextFamily, with_text
from encoders.adapters.hf.vit import VitTower
from encoders.contract.spec import Scoring
from encoders.runtime.parts import TorchParts
from encoders.runtime.weights import number

_TEXT = TextFamily(reads_padding=True)


class SiglipTower(VitTower):
    """SiglipVisionModel; its attention-pooling head gives the image's vector in the joint space.

    A checkpoint without the head (LLaVA's) is pooled by the mean of its final tokens.
    """

    @property
    def blocks(self) -> nn.ModuleList:
        """As VitTower.blocks."""
        blocks: nn.ModuleList = self.model.encoder.layers
        return blocks

    @property
    def has_head(self) -> bool:
        """Whether the checkpoint kept its pooling head."""
        return bool(self.model.use_head)

    @property
    def pooling(self) -> str:
        """As VitTower.pooling."""
        return "attention" if self.has_head else "mean"

    def embed(self, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """As VitTower.embed."""
        embedded = self.model.embeddings(pixels, interpolate_pos_encoding=not self.is_native(pixels))
        return embedded, {"attention_mask": None}

    def norm(self, tokens: Tensor) -> Tensor:
        """As VitTower.norm."""
        normed: Tensor = self.model.post_layernorm(tokens)
        return normed

    def pool(self, final: Tensor) -> Tensor:
        """As VitTower.pool."""
        if not self.has_head:
            return final.mean(dim=1)
        head = self.model.head
        probe = head.probe.expand(final.shape[0], 1, -1)  # not len(): a trace would take it for a constant
        seen = head.attention(probe, final, final, need_weights=False)[0]  # transformers asks for them, and drops them
        pooled: Tensor = seen + head.mlp(head.layernorm(seen))
        return pooled[:, 0]

    def dense(self, tokens: Tensor) -> Tensor:
        """What the pooling head gives when it attends to one patch alone, for each patch.

        The softmax over one token is 1, so the head's attention is its value path.
        """
        head, final = self.model.head, self.norm(tokens)
        width = final.shape[-1]
        values = F.linear(final, head.attention.in_proj_weight[-width:], head.attention.in_proj_bias[-width:])
        alone = head.attention.out_proj(values)
        dense: Tensor = alone + head.mlp(head.layernorm(alone))
        return dense


class Siglip2Tower(SiglipTower):
    """Siglip2VisionModel (NaFlex) on whole images: every patch is seen, so nothing is padded or masked."""

    def embed(self, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """As VitTower.embed; Siglip2ImageProcessor's patches and Siglip2VisionEmbeddings' positions."""
        embeddings, grid = self.model.embeddings, self.grid(pixels)
        height, width = self.patch_size
        x = pixels[:, :, : grid.rows * height, : grid.cols * width]
        x = x.reshape(len(x), 3, grid.rows, height, grid.cols, width)
        patches = x.permute(0, 2, 4, 3, 5, 1).reshape(len(x), grid.rows * grid.cols, -1)  # [B, N, height * width * 3]
        side = embeddings.position_embedding_size
        positions = embeddings.resize_positional_embeddings(
            embeddings.position_embedding.weight.reshape(side, side, -1),
            torch.tensor([grid]),
            max_length=grid.rows * grid.cols,
        )
        return embeddings.patch_embedding(patches) + positions, {"attention_mask": None}


def build_siglip(checkpoint: Checkpoint) -> TorchParts:
    """SigLIP, or SigLIP 2 (NaFlex): a vision tower and a text tower."""
    config = checkpoint.config()
    naflex = config.model_type == "siglip2"
    model = checkpoint.model(transformers.Siglip2Model if naflex else transformers.SiglipModel, config)
    parts = _siglip_parts(checkpoint, config.vision_config, model.vision_model)
    scoring = Scoring("sigmoid", logit_scale=number(model.logit_scale.exp()), logit_bias=number(model.logit_bias))
    return with_text(checkpoint, parts, config.text_config, model.text_model, None, scoring, _TEXT)


def build_siglip_vision(checkpoint: Checkpoint) -> TorchParts:
    """SigLIP's or SigLIP 2's vision tower by itself."""
    config = checkpoint.config()
    naflex = config.model_type == "siglip2_vision_model"
    unused = r"text_model|logit_scale|logit_bias"
    if not getattr(config, "vision_use_head", True):
        unused += r"|(vision_model\.)?head\."
    architecture = transformers.Siglip2VisionModel if naflex else transformers.SiglipVisionModel
    model = checkpoint.model(architecture, config, unused=unused)
    return _siglip_parts(checkpoint, config, model)


def _siglip_parts(checkpoint: Checkpoint, config: Any, model: Any) -> TorchParts:
    naflex = config.model_type == "siglip2_vision_model"
    seen = checkpoint.seen("Siglip2ImageProcessor" if naflex else "SiglipImageProcessor")
    tower = (Siglip2Tower if naflex else SiglipTower)(model, **vit_facts(config))
    spec = vit_spec(checkpoint, config, tower, seen)
    if tower.has_head:
        spec = replace(spec, embed_dim=spec.hidden_size, dense=True)
    return TorchParts(spec, tower)
