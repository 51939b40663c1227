"""`openclip:ARCHITECTURE@WEIGHTS`: open_clip's ResNets and ViTs, and its timm towers (ConvNeXt, SigLIP, EVA, ...).

WEIGHTS is a pretrained tag, a file (safetensors, bin, OpenAI's TorchScript) or `random`. In place of ARCHITECTURE a
folder with open_clip_config.json may stand.
"""

import difflib
import logging
import math
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from encoders.adapters.registry import EncoderId
from encoders.adapters.timm.spec import trunk_spec
from encoders.adapters.timm.tower import TimmTower
from encoders.contract.encoder import Placement
from encoders.contract.errors import EncoderIdError, WeightsError
from encoders.contract.spec import EncoderSpec, Preprocessing, Resolutions, Scoring
from encoders.contract.values import Grid, ImageSize, Outputs, TokenKind
from encoders.runtime.attention import BatchFirst
from encoders.runtime.packed_linear import pack
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.tower import FINAL, Features, TextTower, Tower, largest_size, to_patches
from encoders.runtime.weights import fitting, load_strictly, number, seeded

log = logging.getLogger(__name__)


class VitTower(Tower):
    """open_clip's own VisionTransformer: one class token, learnt absolute positions."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward."""
        *before, last = self.visual.transformer.resblocks
        grid = self._grid(pixels)
        tokens: Tensor | None = None
        x = self._embed(pixels, grid)  # [B, 1 + rows * cols, C]
        for k, block in enumerate(before):
            x = block(x)
            if k == outputs.layer:
                tokens = self._tokens(x, outputs)
                if not outputs.pooled:
                    return Features(grid, 1, tokens)
        if outputs.tokens is TokenKind.DENSE:
            tokens = self._value_path(last, x)
            if not outputs.pooled:
                return Features(grid, tokens=tokens)
        if outputs.tokens is None or tokens is not None:
            x = self._first(last, x, 1)
        else:
            x = last(x)
            tokens = self._tokens(x, outputs)
        prefix_tokens = 0 if outputs.tokens in (None, TokenKind.DENSE) else 1
        return Features(grid, prefix_tokens, tokens, self._pool(x) if outputs.pooled else None)

    def final(self, pixels: Tensor, count: Tensor) -> Features:
        """As Tower.final."""
        *before, last = self.visual.transformer.resblocks
        grid = self._grid(pixels)
        x = self._embed(pixels, grid)
        for block in before:
            x = block(x)
        x = self._first(last, x, count)
        return Features(grid, 1, self._tokens(x, FINAL)[:, :count], self._pool(x))

    def pack(self) -> None:
        """As Tower.pack."""
        _pack(self.visual.transformer.resblocks)

    def _grid(self, pixels: Tensor) -> Grid:
        patch = self.visual.patch_size
        return Grid(pixels.shape[2] // patch[0], pixels.shape[3] // patch[1])

    def _first(self, block: Any, x: Tensor, count: int | Tensor) -> Tensor:
        """The first `count` tokens of the last block, [B, count, C]; all of them where the pooling looks at all.

        Behind the last block a class token meets no other: of those it needs the keys and values, and nothing else.
        That is a fifteenth less work for a ViT of twelve blocks.
        """
        visual = self.visual
        if visual.attn_pool is not None or visual.pool_type != "tok" or type(block) is not ResidualAttentionBlock:
            every: Tensor = block(x)
            return every
        normed = block.ln_1(x)
        attended = block.attn(normed[:, :count], normed, normed, need_weights=False)[0]
        first: Tensor = x[:, :count] + block.ls_1(attended)
        first = first + block.ls_2(block.mlp(block.ln_2(first)))
        return first

    def _tokens(self, x: Tensor, outputs: Outputs) -> Tensor:
        """What is shown of a block's output [B, N, C]: a layer's raw, the last one's after the tower's norm.

        The final norm does not act on the tokens where it stands behind the pooling.
        """
        visual = self.visual
        normed = outputs.layer is None and visual.attn_pool is None and not visual.final_ln_after_pool
        shown: Tensor = x
        if outputs.tokens is TokenKind.PROJECTED:
            shown = visual.ln_post(x) @ visual.proj
        elif normed:
            shown = visual.ln_post(x)
        return shown

    def _embed(self, pixels: Tensor, grid: Grid) -> Tensor:
        """VisionTransformer._embeds, with the positions of this grid."""
        visual = self.visual
        patches = to_patches(visual.conv1(pixels))
        classes = visual.class_embedding.to(patches.dtype).expand(pixels.shape[0], 1, -1)
        positions = resample_positions(visual.positional_embedding, Grid(*visual.grid_size), grid)
        embedded: Tensor = visual.ln_pre(torch.cat([classes, patches], dim=1) + positions.to(patches.dtype))
        return embedded

    def _pool(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.visual._pool(x)[0] @ self.visual.proj
        return pooled

    def _value_path(self, block: Any, x: Tensor) -> Tensor:
        """Dense features [B, rows * cols, E]: the last block's values, attended by nobody, in the joint space.

        MaskCLIP (Zhou et al. 2022, arXiv:2112.01071): the attended sums of a CLIP's last block mix the whole image into
        each token, so projected final tokens do not localise; the values do. No residual and no MLP, as in ClearCLIP
        (Lan et al. 2024, arXiv:2407.12442).
        """
        value = block.attn.values(block.ln_1(x[:, 1:]))
        dense: Tensor = self.visual.ln_post(block.attn.out_proj(value)) @ self.visual.proj
        return dense


class ResNetTower(Tower):
    """CLIP's ModifiedResNet: tokens are the last feature map before the attention pool."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward."""
        visual = self.visual
        kept: Tensor | None = None
        x = visual.stem(pixels)
        for k, stage in enumerate((visual.layer1, visual.layer2, visual.layer3, visual.layer4)):
            x = stage(x)  # [B, C, rows, cols]
            if k == outputs.layer:
                kept = x
                if not outputs.pooled:
                    break
        shown = x if kept is None else kept
        tokens = to_patches(shown) if outputs.tokens else None
        if tokens is not None and outputs.tokens in (TokenKind.PROJECTED, TokenKind.DENSE):
            # What the attention pool would give if it attended to this place alone.
            tokens = visual.attnpool.c_proj(visual.attnpool.v_proj(tokens))
        return Features(Grid(*shown.shape[2:]), tokens=tokens, pooled=self._pool(x) if outputs.pooled else None)

    def _pool(self, x: Tensor) -> Tensor:
        pool = self.visual.attnpool
        side = math.isqrt(len(pool.positional_embedding) - 1)
        positions = resample_positions(pool.positional_embedding, Grid(side, side), Grid(*x.shape[2:]))
        if positions is pool.positional_embedding:
            own: Tensor = pool(x)
            return own
        moved: Tensor = functional_call(pool, {"positional_embedding": positions}, (x,))
        return moved


class OpenClipText(TextTower):
    """The text half of an open_clip model. The tokenizers keep state, so one caller at a time."""

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor] | None) -> None:
        super().__init__()
        self.model: Any = model
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """As TextTower.tokenize."""
        assert self._tokenizer is not None, "a blueprint has no tokenizer"
        with self._lock:
            return self._tokenizer(list(texts))

    def forward(self, ids: Tensor) -> Tensor:
        """As TextTower.forward."""
        embedded: Tensor = self.model.encode_text(ids)
        return embedded

    def pack(self) -> None:
        """As Tower.pack."""
        half = getattr(self.model, "text", self.model)  # where open_clip keeps it apart
        _pack(getattr(getattr(half, "transformer", None), "resblocks", ()))


def _pack(blocks: Iterable[Any]) -> None:
    for block in blocks:
        if type(block) is not ResidualAttentionBlock:
            continue
        pack(block.mlp)
        if isinstance(block.attn, BatchFirst) and block.attn.in_proj_weight is not None:
            block.attn.pack()


def resample_positions(table: Tensor, native: Grid, grid: Grid) -> Tensor:
    """A position table [1 + rows * cols, C], its class entry first, for another grid; the table itself for its own.

    Bicubic and antialiased as open_clip.model.resize_pos_embed; in float32, which half precision on CPUs lacks.
    """
    if grid == native:
        return table
    spatial = table[1:].float().reshape(1, *native, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(spatial, size=tuple(grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:1], to_patches(resampled)[0].to(table.dtype)])


def load(encoder_id: EncoderId, placement: Placement) -> TorchEncoder:
    """An open_clip model. Raises EncoderIdError or WeightsError."""
    name, weights = encoder_id.name, encoder_id.weights
    source = f"local-dir:{name}" if Path(name).is_dir() else name
    with seeded(), fitting(str(encoder_id), weights or source), _unwarned(placement):
        # A base model for the text tower would be downloaded, then overwritten: pretrained_text=False.
        model: Any = open_clip.create_model(source, pretrained_text=False, **_weights(encoder_id, placement))
        if weights is not None and _is_torchscript(weights) and not placement.is_blueprint:
            load_strictly(model, _torchscript_weights(weights), encoder_id=str(encoder_id), source=weights)
    return clip_encoder(
        model,
        open_clip.get_model_preprocess_cfg(model),
        tokenizer=None if placement.is_blueprint else _tokenizer(source, encoder_id),
        encoder_id=str(encoder_id),
        placement=placement,
    )


@contextmanager
def _unwarned(placement: Placement) -> Iterator[None]:
    """A blueprint has no weights, and open_clip warns, on the root logger, of a model that it has not given any."""

    def is_another(record: logging.LogRecord) -> bool:
        return not (placement.is_blueprint and record.msg.startswith("No pretrained weights loaded"))

    root = logging.getLogger()
    root.addFilter(is_another)
    try:
        yield
    finally:
        root.removeFilter(is_another)


def _weights(encoder_id: EncoderId, placement: Placement) -> dict[str, Any]:
    """What create_model must be told of the id's weights: a tag, a file, a folder's own or none."""
    options = _known_weights(encoder_id)
    if placement.is_blueprint:
        shape = {name: option for name, option in options.items() if name == "force_quick_gelu"}
        return {**shape, "load_weights": False, "device": placement.device}
    return options


def _known_weights(encoder_id: EncoderId) -> dict[str, Any]:
    name, weights = encoder_id.name, encoder_id.weights
    if Path(name).is_dir():
        if weights is not None:
            raise EncoderIdError(f"'{encoder_id}': a folder brings its own weights; leave '@{weights}' out.")
        return {"require_pretrained": True}
    if name not in open_clip.list_models():
        close = difflib.get_close_matches(name, open_clip.list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else " open_clip.list_models() lists them."
        raise EncoderIdError(f"open_clip has no architecture '{name}'.{hint}", model=str(encoder_id))
    if encoder_id.is_random:
        return {}
    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    if weights in tags:
        # The tag knows which activation its weights were trained with; open_clip only warns of a mismatch.
        quick = bool(open_clip.get_pretrained_cfg(name, weights).get("quick_gelu", False))
        return {"pretrained": weights, "require_pretrained": True, "force_quick_gelu": quick}
    if weights is not None and Path(weights).is_file():
        if _is_torchscript(weights):  # OpenAI's, all trained with QuickGELU; torch.load refuses TorchScript
            return {"force_quick_gelu": True}
        return {"pretrained": weights, "require_pretrained": True}
    known = f"Tags of {name}: {', '.join(tags) or 'none'}; or a file's path; or 'random' for random weights."
    if weights is None:
        raise EncoderIdError(f"'{encoder_id}' names no weights: write openclip:{name}@WEIGHTS. {known}")
    raise WeightsError(f"'{weights}' is neither a pretrained tag of {name} nor a file. {known}", model=str(encoder_id))


def _is_torchscript(path: str) -> bool:
    """Whether a file is a TorchScript archive, the form of OpenAI's own downloads."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _torchscript_weights(path: str) -> dict[str, Tensor]:
    """The weights in OpenAI's archive, in float32; its forward is never run, and TorchScript holds no Python."""
    weights: dict[str, Tensor] = dict(torch.jit.load(path, map_location="cpu").state_dict())  # type: ignore[no-untyped-call]
    for fact in ("input_resolution", "context_length", "vocab_size"):
        weights.pop(fact, None)
    return {name: value.float() for name, value in weights.items()}


def _tokenizer(source: str, encoder_id: EncoderId) -> Callable[[list[str]], Tensor] | None:
    """The model's tokenizer; None where it would have to be downloaded for random weights and cannot be."""
    try:
        tokenizer: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(source)
    except Exception as error:  # whatever the hub client raises
        if not encoder_id.is_random:
            raise WeightsError(
                f"The tokenizer of {encoder_id} cannot be had: {error}", model=str(encoder_id)
            ) from error
        log.warning("%s is served without its text half: its tokenizer is not on this machine.", encoder_id)
        return None
    return tokenizer


def clip_encoder(
    model: Any,
    preprocess_cfg: dict[str, Any],
    *,
    tokenizer: Callable[[list[str]], Tensor] | None,
    encoder_id: str,
    placement: Placement,
) -> TorchEncoder:
    """An open_clip model, with its preprocessing config, as an Encoder. The model's `visual` is taken out of it.

    tokenizer: without one there is no text half, except in a blueprint.
    """
    visual = model.visual
    tower, spec = _tower_and_spec(visual, preprocess_cfg, encoder_id=encoder_id)
    text: TextTower | None = None
    more: dict[str, Any] = {}
    with torch.inference_mode():
        if tokenizer is not None or placement.is_blueprint:
            bias = getattr(model, "logit_bias", None)
            more["scoring"] = Scoring(
                activation="softmax" if bias is None else "sigmoid",  # only models trained with SigLIP's loss have one
                logit_scale=number(model.logit_scale.exp()),
                logit_bias=0.0 if bias is None else number(bias),
            )
            more["context_length"] = int(tokenizer(["a"]).shape[1] if tokenizer else model.context_length)
            del model.visual
            text = OpenClipText(model, tokenizer)
    return TorchEncoder(replace(spec, **more), tower, text, placement=placement)


def _tower_and_spec(visual: Any, preprocess_cfg: dict[str, Any], *, encoder_id: str) -> tuple[Tower, EncoderSpec]:
    preprocessing = Preprocessing(
        mean=tuple(preprocess_cfg["mean"]),
        std=tuple(preprocess_cfg["std"]),
        interpolation=preprocess_cfg["interpolation"],
        resize=preprocess_cfg["resize_mode"],
        fill=preprocess_cfg.get("fill_color", 0),
    )
    if isinstance(visual, VisionTransformer):
        return VitTower(visual), _vit_spec(visual, preprocessing, encoder_id)
    if isinstance(visual, ModifiedResNet):
        return ResNetTower(visual), _resnet_spec(visual, preprocessing, encoder_id)
    if isinstance(visual, TimmModel):
        tower = TimmTower(visual.trunk, visual.head)
        with torch.inference_mode():
            embed_dim = visual.eval()(torch.zeros(1, 3, *visual.image_size)).shape[1]
        spec = trunk_spec(
            tower, encoder_id=encoder_id, preprocessing=preprocessing, image_size=ImageSize(*visual.image_size)
        )
        return tower, replace(
            spec,
            embed_dim=embed_dim,
            pooled_size=embed_dim,
            projects=spec.pooling != "attention",  # an attention pool has no projection a token could take
            dense=True,
        )
    raise EncoderIdError(f"{encoder_id}: the tower {type(visual).__name__} is not supported.", model=encoder_id)


def _vit_spec(visual: Any, preprocessing: Preprocessing, encoder_id: str) -> EncoderSpec:
    patch = ImageSize(*visual.patch_size)
    embed_dim = int(visual.proj.shape[1])
    in_block = visual.attn_pool is None
    attention = getattr(visual.transformer.resblocks[-1].attn, "in_proj_bias", None)
    return EncoderSpec(
        id=encoder_id,
        family="vit",
        image_size=ImageSize(*visual.image_size),
        patch_size=patch,
        prefix_tokens=1,
        hidden_size=int(visual.conv1.out_channels),
        embed_dim=embed_dim,
        pooled_size=embed_dim,
        pooling={"tok": "class", "avg": "mean"}[visual.pool_type] if in_block else "attention",
        layers=len(visual.transformer.resblocks),
        resolutions=Resolutions(multiple=patch, minimum=patch, maximum=largest_size(patch)),
        preprocessing=preprocessing,
        projects=in_block,
        dense=in_block and attention is not None,
    )


def _resnet_spec(visual: Any, preprocessing: Preprocessing, encoder_id: str) -> EncoderSpec:
    stride = ImageSize(32, 32)
    width = int(visual.conv3.out_channels)
    sizes = tuple(width * 4 * 2**k for k in range(4))
    return EncoderSpec(
        id=encoder_id,
        family="resnet",
        image_size=ImageSize(visual.image_size, visual.image_size),
        patch_size=stride,
        prefix_tokens=0,
        hidden_size=sizes[-1],
        embed_dim=visual.output_dim,
        pooled_size=visual.output_dim,
        pooling="attention",
        layers=4,
        layer_sizes=sizes,
        grid_offset=1,  # the first convolution rounds up, the four halvings after it down
        resolutions=Resolutions(multiple=ImageSize(1, 1), minimum=stride, maximum=largest_size(stride)),
        preprocessing=preprocessing,
        projects=True,
        dense=True,
    )
