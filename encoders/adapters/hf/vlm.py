"""The vision half of a vision-language model: its vision tower and what turns its tokens into a language model's.

The language model is neither read nor kept. Knows modules and configurations; knows no ids and no files.
"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from operator import attrgetter
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from encoders.adapters.hf import hooked
from encoders.adapters.hf.family import Family, FamilyTower, Geometry
from encoders.contract.errors import OutputNotOffered
from encoders.contract.values import Grid, Outputs, TokenKind
from encoders.runtime.tower import Features

LANGUAGE = r"(model\.)*(language_model|text_model|lm_head|image_newline)|model\.(layers|embed_tokens)\."
"""A pattern of the keys of the half that is not loaded; the last are of Qwen2-VL's older files."""


def vision_half(architecture: Any) -> type[nn.Module]:
    """A vision-language architecture of transformers without its language model, under the names its checkpoints use.

    Its own `get_image_features` still works.
    """

    def __init__(self: Any, config: Any) -> None:
        architecture.__init__(self, _without_language(config))
        for part, name in product((self, getattr(self, "model", self)), ("language_model", "text_model", "lm_head")):
            if name in part._modules:
                delattr(part, name)
        self.all_tied_weights_keys = {}  # they are all of the language model

    return like(architecture, type("_VisionHalf", (), {"__init__": __init__}))


def like(architecture: Any, changes: type) -> type[nn.Module]:
    """A class of transformers with `changes` before it, under its own name.

    By the name of a class transformers finds how to rename old keys, and which outputs it can record.
    """
    return type(architecture.__name__, (changes, architecture), {"__module__": architecture.__module__})


def _without_language(config: Any) -> Any:
    """The configuration with a language model of no layers and one word. Its width stays: projectors end in it."""
    config = deepcopy(config)
    text = config.text_config
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 0, 1, None
    if getattr(text, "layer_types", None):
        text.layer_types = []
    return config


def whole_model(config: Any) -> Any:
    """Transformers' class of the whole model with its head: the one that knows the keys of every checkpoint."""
    return transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]


def recorded_blocks(vision: Any) -> Iterable[nn.Module]:
    """The modules of which transformers records the hidden states, in order."""
    kind = vision._can_record_outputs["hidden_states"]
    return [module for module in vision.modules() if isinstance(module, getattr(kind, "target_class", kind))]


def image_features(model: Any, arguments: dict[str, Any]) -> Any:
    """The model's own image features, as the pooler_output of the vision tower's output."""
    return model.get_image_features(**arguments, return_dict=True)


def as_they_are(vision: Any, tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens [B, N, C] that are in row-major order already."""
    return tokens


@dataclass(frozen=True)
class Vlm(Family):
    """How one vision-language architecture is read.

    geometry: of the whole configuration.
    bound: if not, the model has no size of its own, and native is at most what the checkpoint's processor makes.
    arguments: of the vision tower's forward, from the whole model, the pixels and whether their size is native.
    tower: the vision tower of the model. towers: the types it may have; empty where the model has one of its own.
    project: the model and the arguments -> the vision tower's output, whose pooler_output is the image features.
    row_major: the vision tower, its tokens [B, N, C] and the grid -> the tokens in the order of the grid.
    projected_size: width of the projected tokens, of a configuration.
    merge: patches a side that become one projected token. queries: of a configuration, the number of projected tokens
        where they do not depend on the grid. drops: tokens in front that are not projected.
    norm: the vision tower's final norm, where the tower goes on behind it and its output is something else.
    pooling: `class` for the first of the final tokens, `mean` for the mean of the patch tokens.
    language_model: as EncoderSpec.language_model; empty for the configuration's own type.
    """

    architecture: str = "AutoModelForImageTextToText"
    processor: str = "CLIPImageProcessor"
    pooling: Callable[[Any], str] = lambda model: "mean"
    tower: Callable[[Any], Any] = attrgetter("vision_tower")
    project: Callable[[Any, dict[str, Any]], Any] = image_features
    row_major: Callable[[Any, Tensor, Grid], Tensor] = as_they_are
    projected_size: Callable[[Any], int] = lambda config: int(config.text_config.hidden_size)
    merge: Callable[[Any], int] = lambda config: 1
    towers: tuple[str, ...] = ()
    queries: Callable[[Any], int | None] = lambda config: None
    drops: Callable[[Any], int] = lambda config: 0
    language_model: str = ""
    norm: Callable[[Any], nn.Module | None] = lambda vision: None
    unused: str = LANGUAGE


class VlmTower(FamilyTower):
    """A vision half read as its Vlm says.

    projected_grid: of the projected tokens, from the grid of the patches.
    """

    family: Vlm

    def __init__(
        self,
        model: nn.Module,
        family: Vlm,
        geometry: Geometry,
        *,
        projected_grid: Callable[[Grid], Grid],
        projected_prefix: int,
        encoder_id: str,
    ) -> None:
        nn.Module.__init__(self)
        family.ready(model)
        self.model: Any = model
        self.family = family
        self.geometry = geometry
        blocks, norm = list(recorded_blocks(family.tower(model))), family.norm(family.tower(model))
        self.depth = len(blocks)
        hooked.watch(blocks if norm is None else [*blocks, norm])
        self._final = () if norm is None else (self.depth,)
        self._projected_grid = projected_grid
        self._projected_prefix = projected_prefix
        self._encoder_id = encoder_id

    @property
    def class_block(self) -> nn.Module | None:
        """As Tower.class_block: the projector may read any token."""
        return None

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward."""
        grid, count = self.geometry.grid(pixels.shape[2], pixels.shape[3], None), len(pixels)
        arguments = self.family.arguments(self.model, pixels, tuple(pixels.shape[2:]) == self.geometry.native)
        if outputs.tokens is TokenKind.PROJECTED:
            return self._projected(arguments, outputs, grid, count)
        vision, layer = self.family.tower(self.model), outputs.layer if outputs.tokens else None
        needs_final = outputs.pooled or layer is None
        wanted = (*(() if layer is None else (layer,)), *(self._final if needs_final else ()))
        output, caught = hooked.run(lambda: vision(**arguments), wanted, stops=bool(self._final) or not needs_final)
        final = self._in_order(self._final_tokens(output, caught), grid, count) if needs_final else None
        pooled = self._pool(final) if outputs.pooled and final is not None else None
        if outputs.tokens is None:
            return Features(grid, pooled=pooled)
        tokens = final if layer is None else self._in_order(caught[layer], grid, count)
        return Features(grid, self.geometry.prefix_tokens, tokens, pooled)

    def _projected(self, arguments: dict[str, Any], outputs: Outputs, grid: Grid, count: int) -> Features:
        if outputs.layer is not None:
            raise OutputNotOffered(
                encoder=self._encoder_id,
                output=f"the projection of layer {outputs.layer}",
                reason="its language model reads the layers that its configuration names",
            )
        output, caught = hooked.run(
            lambda: self.family.project(self.model, arguments), self._final if outputs.pooled else (), stops=False
        )
        given = output.pooler_output
        tokens = given if isinstance(given, Tensor) else torch.stack(list(given))
        pooled = None
        if outputs.pooled:
            pooled = self._pool(self._in_order(self._final_tokens(output, caught), grid, count))
        return Features(
            self._projected_grid(grid), self._projected_prefix, tokens.reshape(count, -1, tokens.shape[-1]), pooled
        )

    def _final_tokens(self, output: Any, caught: dict[int, Any]) -> Tensor:
        final: Tensor = caught[self.depth] if self._final else output.last_hidden_state
        return final

    def _in_order(self, given: Any, grid: Grid, count: int) -> Tensor:
        tokens: Tensor = given[0] if isinstance(given, tuple) else given
        return self.family.row_major(self.family.tower(self.model), tokens.reshape(count, -1, tokens.shape[-1]), grid)

    def _pool(self, final: Tensor) -> Tensor:
        return final[:, 0] if self.pooling == "class" else final[:, self.geometry.prefix_tokens :].mean(dim=1)
