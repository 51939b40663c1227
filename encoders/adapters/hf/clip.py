"""CLIP."""

from dataclasses import replace
from typing import Any

import transformers
from torch import Tensor, nn

from encoders.adapters.hf.checkpoint import Checkpoint
from encoders.adapters.hf.config import vit_facts
from encoders.adapters.hf.spec import vit_spec
from encoders.adapters.hf.vit import VitTower
from encoders.runtime.parts import TorchParts


class ClipTower(VitTower):
    """CLIPVisionModel, with the projection into the joint space where the checkpoint has one.

    transformers norms only the class token; here all final tokens get the same norm, as in open_clip.
    """

    def __init__(self, model: nn.Module, projection: nn.Module | None = None, **facts: Any) -> None:
        super().__init__(model, **facts)
        self.projection = projection

    @property
    def blocks(self) -> nn.ModuleList:
        """As VitTower.blocks."""
        blocks: nn.ModuleList = self.model.encoder.layers
        return blocks

    def embed(self, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """As VitTower.embed."""
        embedded = self.model.embeddings(pixels, interpolate_pos_encoding=not self.is_native(pixels))
        return self.model.pre_layrnorm(embedded), {"attention_mask": None}

    def norm(self, tokens: Tensor) -> Tensor:
        """As VitTower.norm."""
        normed: Tensor = self.model.post_layernorm(tokens)
        return normed

    def pool(self, final: Tensor) -> Tensor:
        """The class token, projected where there is a projection."""
        return self.project(final[:, 0])

    def project(self, final: Tensor) -> Tensor:
        """As VitTower.project."""
        return final if self.projection is None else self.projection(final)

    @property
    def dense_depth(self) -> int:
        """Of what the last block reads."""
        return self.depth - 1

    def dense(self, tokens: Tensor) -> Tensor:
        """The last block's values, attended by nobody, in the joint space: no residual, no MLP.

        MaskCLIP (Zhou et al. 2022, arXiv:2112.01071) and ClearCLIP (Lan et al. 2024, arXiv:2407.12442): projected final
        tokens do not localise, the values do.
        """
        block: Any = self.blocks[-1]
        return self.project(self.norm(block.alone(tokens[:, self.prefix_tokens :])))


def build_clip_vision(checkpoint: Checkpoint) -> TorchParts:
    """CLIP's vision tower by itself, with its projection where the checkpoint has one."""
    config, other_half = checkpoint.config(), r"(text_model|text_projection|logit_scale)"
    if "CLIPVisionModelWithProjection" in (config.architectures or []):
        model = checkpoint.model(transformers.CLIPVisionModelWithProjection, config, unused=other_half)
        return clip_parts(checkpoint, config, model.vision_model, model.visual_projection)
    model = checkpoint.model(transformers.CLIPVisionModel, config, unused=rf"{other_half}|visual_projection")
    return clip_parts(checkpoint, config, model, None)


def clip_parts(
    checkpoint: Checkpoint, config: Any, model: Any, projection: nn.Linear | None, processor: str = "CLIPImageProcessor"
) -> TorchParts:
    """The parts of a vision model of CLIP's make; `processor` is its image processor's class."""
    tower = ClipTower(model, projection, **vit_facts(config))
    spec = vit_spec(checkpoint, config, tower, checkpoint.seen(processor))
    if projection is not None:
        width = projection.out_features
        spec = replace(spec, embed_dim=width, pooled_size=width, projected_size=width, dense=True)
    return TorchParts(spec, tower)
