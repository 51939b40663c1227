"""LLaVA and its kin: a vision tower with the projector into a language model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from encoders.adapters.hf.checkpoint import Checkpoint
from encoders.adapters.hf.clip import ClipTower
from encoders.adapters.hf.config import vit_facts
from encoders.adapters.hf.preprocessing import Seen
from encoders.adapters.hf.siglip import SiglipTower
from encoders.adapters.hf.spec import vit_spec
from encoders.adapters.hf.vit import VitTower
from encoders.adapters.hf.vlms import LLAVA_TOWERS, vlm_parts
from encoders.contract.errors import EncoderIdError, OutputNotOffered
from encoders.contract.values import Grid, ImageSize, Outputs, TokenKind
from encoders.runtime.parts import TorchParts
from encoders.runtime.tiles import Canvases, Tiles
from encoders.runtime.tower import Features, Tower


class LlavaTower(Tower):
    """A vision tower with the projector into a language model.

    depths: of the raw tokens that the projector was trained on, side by side (`vision_feature_layer`).
    drops_first: whether the first token is left out of what is projected (`vision_feature_select_strategy` "default"):
        the class token, or the first patch where the tower has none. Then the rest is no grid, but one row.
    tiles: how images are cut, where the language model reads them so.
    """

    def __init__(
        self,
        tower: VitTower,
        projector: nn.Module,
        *,
        depths: Sequence[int],
        drops_first: bool,
        tiles: Tiles | None,
        encoder_id: str,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector
        self.depths = tuple(depths)
        self.dropped = int(drops_first)
        self._tiles = tiles
        self._encoder_id = encoder_id

    @property
    def tiles(self) -> Tiles | None:
        """As Tower.tiles."""
        return self._tiles

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward; projected tokens are of the checkpoint's own layers, or of the one asked for."""
        if outputs.tokens is not TokenKind.PROJECTED:
            features: Features = self.tower(pixels, outputs)
            return features
        if outputs.layer is not None and len(self.depths) > 1:
            raise OutputNotOffered(
                encoder=self._encoder_id,
                output=f"the projection of layer {outputs.layer}",
                reason=f"its projector reads {len(self.depths)} layers at once",
            )
        depths = self.depths if outputs.layer is None else (outputs.layer + 1,)
        last = self.tower.depth
        kept = self.tower.run(pixels, {*depths, *([last] if outputs.pooled else [])})
        pooled = self.tower.pool(self.tower.norm(kept[last])) if outputs.pooled else None
        chosen = torch.cat([kept[depth][:, self.dropped :] for depth in depths], dim=-1)
        tokens = self.projector(chosen)
        grid = self.tower.grid(pixels)
        if self.dropped > self.tower.prefix_tokens:
            return Features(Grid(1, tokens.shape[1]), 0, tokens, pooled)
        return Features(grid, self.tower.prefix_tokens - self.dropped, tokens, pooled)


def build_llava(checkpoint: Checkpoint) -> TorchParts:
    """The vision tower and the projector; the language model is neither read nor kept."""
    config = checkpoint.config()
    vision = config.vision_config
    if config.model_type == "llava" and vision.model_type in LLAVA_TOWERS:
        return vlm_parts(checkpoint, LLAVA_TOWERS[vision.model_type], config)
    if vision.model_type not in _RUN_IN_PARTS:
        supported = {*_RUN_IN_PARTS, *(LLAVA_TOWERS if config.model_type == "llava" else ())}
        raise EncoderIdError(
            f"{checkpoint.id} has a vision tower of type '{vision.model_type}', which is not supported. "
            f"Supported: {', '.join(sorted(supported))}.",
            model=checkpoint.id,
        )
    unused = r"(model\.)*(language_model|lm_head|image_newline)"
    model = checkpoint.model(_vision_half(config.model_type), config, unused=unused)
    inner = _RUN_IN_PARTS[vision.model_type](model.vision_tower, **vit_facts(vision))
    seen = checkpoint.seen("LlavaImageProcessor")
    # ViP-LLaVA's plural name is the only one up to transformers 5.17
    chosen = getattr(config, "vision_feature_layers", None) or config.vision_feature_layer
    drops_first = getattr(config, "vision_feature_select_strategy", "default") == "default"  # ViP-LLaVA: always
    canvases = _canvases(config, inner, seen, drops=int(drops_first))
    tower = LlavaTower(
        inner,
        model.multi_modal_projector,
        depths=[_depth(index, inner) for index in ([chosen] if isinstance(chosen, int) else chosen)],
        drops_first=drops_first,
        tiles=Tiles(canvases, model.image_newline) if canvases else None,
        encoder_id=checkpoint.id,
    )
    spec = replace(
        vit_spec(checkpoint, vision, inner, seen),
        projected_size=int(config.text_config.hidden_size),
        projection_drops=tower.dropped,
        most_views=canvases.views if canvases else 0,
        most_joined=canvases.tokens if canvases else 0,
        language_model=config.model_type,
    )
    return TorchParts(spec, tower)


_RUN_IN_PARTS: dict[str, type[VitTower]] = {"clip_vision_model": ClipTower, "siglip_vision_model": SiglipTower}


def _canvases(config: Any, tower: VitTower, seen: Seen, *, drops: int) -> Canvases | None:
    """The canvases of a model that cuts images, for views of its native size; None for one that does not.

    drops: tokens in front that are not projected.
    """
    pinpoints = getattr(config, "image_grid_pinpoints", None)
    view, patch = int(config.vision_config.image_size), int(config.vision_config.patch_size)
    if not pinpoints or (seen.configured and seen.size != (view, view)) or drops != tower.prefix_tokens:
        return None  # transformers' own would not join such views
    if not all(height % view == width % view == 0 < height * width for height, width in pinpoints):
        raise ValueError(f"image_grid_pinpoints {pinpoints} are no multiples of {view}")
    most = getattr(config, "vision_aspect_ratio", "")
    return Canvases(
        view=view,
        grid=view // patch,
        sizes=[ImageSize(*each) for each in pinpoints],
        shrinks_over=int(most.removeprefix("anyres_max_")) if most.startswith("anyres_max_") else None,
    )


def _depth(index: int, tower: VitTower) -> int:
    """An index into transformers' hidden_states as a depth."""
    depth = index if index >= 0 else tower.depth + 1 + index
    if not 0 <= depth <= tower.depth:
        raise ValueError(f"vision_feature_layer {index} is not one of the tower's {tower.depth} layers")
    return depth


def _vision_half(model_type: str) -> type[nn.Module]:
    """A LLaVA-style architecture without its language model, under the names its checkpoints use."""
    prefix = {"llava": "Llava", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision", "vipllava": "VipLlava"}
    base: Any = getattr(transformers, f"{prefix[model_type]}PreTrainedModel")
    modeling = getattr(transformers.models, model_type)
    projector: Any = getattr(getattr(modeling, f"modeling_{model_type}"), f"{prefix[model_type]}MultiModalProjector")

    class VisionHalf(base):  # type: ignore[misc]  # transformers is Any here
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.vision_tower = transformers.AutoModel.from_config(config.vision_config)
            self.multi_modal_projector = projector(config)
            if getattr(config, "image_grid_pinpoints", None):
                self.image_newline = nn.Parameter(torch.zeros(config.text_config.hidden_size))
            self.post_init()

    return VisionHalf
