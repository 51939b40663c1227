"""Vision and text towers of transformers' models, run part by part. Knows their modules; knows no ids and no files.

The library's own embeddings, blocks and heads are called, in the order its own forward calls them; what that forward
cannot do is stop early, keep one layer without keeping all, or normalise CLIP's tokens.

A depth counts blocks run, as transformers' hidden_states do: 0 is what the first block reads, k + 1 our layer k.
"""

import threading
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.contract.errors import InvalidText, OutputNotOffered
from encoders.contract.values import Grid, ImageSize, Outputs, TokenKind
from encoders.runtime.tower import Features, TextTower, Tower, to_patches


class VitTower(Tower):
    """A transformer over patches, whose final tokens are those of the last block after the final norm.

    native: the size whose positions need no interpolation. prefix_tokens: ahead of the patches in every layer.
    """

    def __init__(self, model: nn.Module, *, native: ImageSize, patch_size: ImageSize, prefix_tokens: int) -> None:
        super().__init__()
        self.model: Any = model
        self.native = native
        self.patch_size = patch_size
        self.prefix_tokens = prefix_tokens

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The blocks, in order."""

    @abstractmethod
    def embed(self, pixels: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """What the first block reads, [B, prefix + rows * cols, C], and the arguments every block takes besides."""

    @abstractmethod
    def norm(self, tokens: Tensor) -> Tensor:
        """The final norm."""

    @abstractmethod
    def pool(self, final: Tensor) -> Tensor:
        """Final tokens -> the model's pooled vector [B, E]."""

    @property
    def pooling(self) -> str:
        """The pooling's name, as EncoderSpec.pooling."""
        return "class"

    def project(self, final: Tensor) -> Tensor:
        """Normed tokens -> the joint space."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """Of the last block's output."""
        return len(self.blocks)

    @property
    def dense_depth(self) -> int:
        """Of what `dense` reads."""
        return self.depth

    def dense(self, tokens: Tensor) -> Tensor:
        """Raw tokens at `dense_depth` -> dense features [B, rows * cols, E]."""
        raise NotImplementedError

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward."""
        grid, wanted = self.grid(pixels), self._depth_of(outputs)
        kept = self.run(pixels, ({self.depth} if outputs.pooled else set()) | ({wanted} if outputs.tokens else set()))
        pooled = self.pool(self.norm(kept[self.depth])) if outputs.pooled else None
        match outputs.tokens:
            case None:
                return Features(grid, pooled=pooled)
            case TokenKind.DENSE:
                return Features(grid, tokens=self.dense(kept[wanted]), pooled=pooled)
            case TokenKind.PROJECTED:
                tokens = self.project(self.norm(kept[wanted]))
            case TokenKind.HIDDEN:
                tokens = self.norm(kept[wanted]) if outputs.layer is None else kept[wanted]
        return Features(grid, self.prefix_tokens, tokens, pooled)

    def _depth_of(self, outputs: Outputs) -> int:
        if outputs.tokens is TokenKind.DENSE:
            return self.dense_depth
        return self.depth if outputs.layer is None else outputs.layer + 1

    def run(self, pixels: Tensor, depths: Collection[int]) -> dict[int, Tensor]:
        """Raw tokens [B, prefix + rows * cols, C] at each depth; no block behind the deepest runs."""
        x, context = self.embed(pixels)
        kept = {0: x} if 0 in depths else {}
        for depth, block in enumerate(islice(self.blocks, max(depths)), start=1):
            x = block(x, **context)
            if depth in depths:
                kept[depth] = x
        return kept

    def grid(self, pixels: Tensor) -> Grid:
        """The patch grid of a batch."""
        return Grid(pixels.shape[2] // self.patch_size.height, pixels.shape[3] // self.patch_size.width)

    def is_native(self, pixels: Tensor) -> bool:
        """Whether the positions fit as they are."""
        return tuple(pixels.shape[2:]) == self.native


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
        values = block.self_attn.out_proj(block.self_attn.v_proj(block.layer_norm1(tokens[:, self.prefix_tokens :])))
        return self.project(self.norm(values))


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
        pooled: Tensor = self.model.head(final) if self.has_head else final.mean(dim=1)
        return pooled

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


class CnnTower(Tower):
    """Stages of convolutions; final tokens are the last feature map, raw. `model` is a ConvNextModel (V1 or V2)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def stem(self, pixels: Tensor) -> Tensor:
        """What the first stage reads."""
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


class LlavaTower(Tower):
    """A vision tower with the projector into a language model.

    depths: of the raw tokens that the projector was trained on, side by side (`vision_feature_layer`).
    drops_class: whether the class token is left out of what is projected (`vision_feature_select_strategy` "default").
    """

    def __init__(
        self, tower: VitTower, projector: nn.Module, *, depths: Sequence[int], drops_class: bool, encoder_id: str
    ) -> None:
        super().__init__()
        self.tower = tower
        self.projector = projector
        self.depths = tuple(depths)
        self.dropped = min(int(drops_class), tower.prefix_tokens)
        self._encoder_id = encoder_id

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
        return Features(self.tower.grid(pixels), self.tower.prefix_tokens - self.dropped, tokens, pooled)


class HfText(TextTower):
    """A text tower with its projection, if it has one outside itself, and its tokenizer.

    Texts are padded to the context length, as these models were trained, without a mask: CLIP's is causal and its
    padding comes last; SigLIP has none.
    """

    def __init__(self, model: nn.Module, projection: nn.Module | None, tokenizer: Any, *, context_length: int) -> None:
        super().__init__()
        self.model = model
        self.projection = projection
        self.context_length = context_length
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # padding and truncation are settings of the one tokenizer

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """As TextTower.tokenize. Raises InvalidText."""
        try:
            with self._lock:
                ids: Tensor = self._tokenizer(
                    list(texts),
                    padding="max_length",
                    truncation=True,
                    max_length=self.context_length,
                    return_tensors="pt",
                )["input_ids"]
        except (TypeError, ValueError) as error:  # a lone surrogate, for one
            raise InvalidText(f"A text cannot be tokenised: {error}") from error
        return ids

    def forward(self, ids: Tensor) -> Tensor:
        """As TextTower.forward."""
        pooled: Tensor = self.model(input_ids=ids).pooler_output
        return pooled if self.projection is None else self.projection(pooled)
