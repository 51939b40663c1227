"""`timm:NAME[@WEIGHTS]`: any timm backbone as a token encoder, image only. open_clip's timm towers run here too.

Transformers give [B, N, C] after their final norm; CNNs and Swins their last feature map. Nothing is assumed of a
backbone that timm does not declare, but two things it does not declare are tried out on a small input at load:
whether it runs at another size, and how its feature map rounds.
"""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.layers import Format
from timm.models import load_state_dict
from torch import Tensor, nn

from encoders.adapters.registry import EncoderId
from encoders.contract.encoder import Placement
from encoders.contract.errors import EncoderIdError, WeightsError
from encoders.contract.spec import EncoderSpec, Preprocessing, Resolutions
from encoders.contract.values import Grid, ImageSize, Outputs, TokenKind
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.tower import Features, Tower, largest_size, to_patches
from encoders.runtime.weights import fitting, load_strictly, seeded


class TimmTower(Tower):
    """A timm trunk with, in a CLIP, open_clip's projection head behind it.

    trunk: without classifier. head: pooled [B, C] -> joint space [B, E]; None outside a CLIP.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.head = head
        self.prefix_tokens: int = getattr(trunk, "num_prefix_tokens", 0)
        self.channels_last: bool = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        self.is_transformer = _is_transformer(trunk)
        self.pools_by_attention: bool = getattr(trunk, "attn_pool", None) is not None
        self.stages = _stages(trunk)
        _allow_any_size(trunk)

    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As Tower.forward."""
        dense = outputs.tokens is TokenKind.DENSE
        by_values = dense and self._pools_by_class_token
        layer = len(self.stages) - 2 if by_values else outputs.layer
        if layer is None:
            final = self.trunk.forward_features(pixels)
            tokens, grid = self._tokens(final), self._grid(final, pixels)
        else:
            final, tokens, grid = self._with_layer(pixels, layer, final=outputs.pooled)
        pooled = self._pool(final) if outputs.pooled else None
        if outputs.tokens is None:
            return Features(grid, pooled=pooled)
        if dense:
            patches = self._value_path(tokens) if by_values else self._each_alone(tokens[:, self.prefix_tokens :])
            return Features(grid, tokens=patches, pooled=pooled)
        if outputs.tokens is TokenKind.PROJECTED:
            tokens = self._project(tokens, raw=layer is not None)
        return Features(grid, self.prefix_tokens, tokens, pooled)

    def _with_layer(self, pixels: Tensor, layer: int, *, final: bool) -> tuple[Tensor, Tensor, Grid]:
        """The final features (or nothing, if not `final`), the layer's raw tokens with prefix, and their grid."""
        options: dict[str, Any] = {"indices": [self.stages[layer]], "norm": False, "output_fmt": "NCHW"}
        if self.is_transformer:
            options["return_prefix_tokens"] = True
        if final:
            features, (found,) = self.trunk.forward_intermediates(pixels, **options)
        else:
            features = pixels.new_empty(0)
            (found,) = self.trunk.forward_intermediates(pixels, intermediates_only=True, stop_early=True, **options)
        patches, prefix = found if isinstance(found, tuple) else (found, None)
        grid = Grid(patches.shape[2], patches.shape[3])
        tokens = to_patches(patches)
        if prefix is not None and prefix.shape[1]:
            tokens = torch.cat([prefix, tokens], dim=1)
        return features, tokens, grid

    def _grid(self, final: Tensor, pixels: Tensor) -> Grid:
        if final.ndim == 3:
            patch = self.trunk.patch_embed.feat_ratio(as_scalar=False)
            return Grid(pixels.shape[2] // patch[0], pixels.shape[3] // patch[1])
        return Grid(final.shape[1], final.shape[2]) if self.channels_last else Grid(final.shape[2], final.shape[3])

    def _tokens(self, final: Tensor) -> Tensor:
        if final.ndim == 3:
            return final
        return final.flatten(1, 2) if self.channels_last else to_patches(final)

    def _pool(self, final: Tensor) -> Tensor:
        return self._to_joint_space(self.trunk.forward_head(final))

    def _project(self, tokens: Tensor, *, raw: bool) -> Tensor:
        """Tokens [B, N, C] -> [B, N, E]; those of a layer are raw and get the final norm first."""
        if not self.is_transformer:
            return self._each_alone(tokens)
        return self._head(self.trunk.norm(tokens) if raw else tokens)

    def _head(self, tokens: Tensor) -> Tensor:
        """What follows a transformer's pooling, for each token. In some CLIPs timm's classifier is the projection."""
        return self._to_joint_space(self.trunk.head(self.trunk.fc_norm(tokens)))

    def _to_joint_space(self, pooled: Tensor) -> Tensor:
        return pooled if self.head is None else self.head(pooled)

    def _each_alone(self, patches: Tensor) -> Tensor:
        """Patch tokens [B, N, C] -> [B, N, E]: the model's own pooling and projection, over one token at a time.

        Averages become the token itself and attention pools their value path, so each patch says what the image's
        embedding would be if it were all there is to see.
        """
        batch, count, width = patches.shape
        alone = patches.reshape(batch * count, 1, width)
        if not self.is_transformer:
            alone = alone.unsqueeze(1) if self.channels_last else alone.reshape(batch * count, width, 1, 1)
        elif not getattr(self.trunk, "pool_include_prefix", False):
            alone = alone.expand(-1, 1 + self.prefix_tokens, -1)  # the pool cuts its prefix off again
        return self._pool(alone).reshape(batch, count, -1)

    @property
    def _pools_by_class_token(self) -> bool:
        return self.is_transformer and not self.pools_by_attention and self.trunk.global_pool == "token"

    def _value_path(self, before_last: Tensor) -> Tensor:
        """Dense features of a tower that pools by its class token: the last block's attention, each token to itself.

        before_last: [B, prefix + N, C], what the last block reads. Returns [B, N, E].
        MaskCLIP (Zhou et al. 2022, arXiv:2112.01071): the values localise, the attended sums do not.
        """
        block = self.trunk.blocks[-1]
        count = before_last.shape[1]
        itself = torch.eye(count, dtype=torch.bool, device=before_last.device)
        values = self.trunk.norm(block.attn(block.norm1(before_last), attn_mask=itself))
        return self._head(values[:, self.prefix_tokens :])


def _is_transformer(trunk: nn.Module) -> bool:
    """Whether features are [B, N, C] rather than a map."""
    return hasattr(trunk, "blocks") and hasattr(trunk, "num_prefix_tokens")


def _stages(trunk: Any) -> list[int]:
    """Layer k -> timm's index of it; blocks of a transformer, stages of a CNN without its stem."""
    if _is_transformer(trunk):
        return list(range(len(trunk.blocks)))
    stems = ("act1", "bn1", "stem", "conv_stem", "relu")
    return [k for k, stage in enumerate(trunk.feature_info) if stage["module"].split(".")[0] not in stems]


def _allow_any_size(trunk: Any) -> None:
    """Lets a ViT resample its positions per call, as timm's dynamic_img_size=True at creation does."""
    embed: Any = getattr(trunk, "patch_embed", None)
    if getattr(trunk, "dynamic_img_size", None) is not False or not hasattr(embed, "strict_img_size"):
        return
    trunk.dynamic_img_size = True
    embed.strict_img_size = False
    embed.flatten = False
    embed.output_fmt = Format.NHWC
    rope: Any = getattr(trunk, "rope", None)
    if hasattr(rope, "_use_cached_embed"):
        rope._use_cached_embed = False  # its bands are kept, so it builds the angles of any grid


def native_size(trunk: Any) -> ImageSize:
    """The size a trunk was made for."""
    embed = getattr(trunk, "patch_embed", None)
    found = getattr(embed, "img_size", None) or trunk.pretrained_cfg["input_size"][1:]
    return ImageSize(*found)


def trunk_spec(
    tower: TimmTower, *, encoder_id: str, preprocessing: Preprocessing, image_size: ImageSize
) -> EncoderSpec:
    """The spec of a timm trunk by itself."""
    trunk = tower.trunk
    if tower.is_transformer:
        patch = ImageSize(*trunk.patch_embed.feat_ratio(as_scalar=False))
        movable = getattr(trunk, "dynamic_img_size", False)
        pooling = "attention" if tower.pools_by_attention else _POOLING.get(trunk.global_pool, "mean")
        layer_sizes: tuple[int, ...] = ()
        offset, multiple = 0, patch
    else:
        stride = max(int(stage["reduction"]) for stage in trunk.feature_info)
        patch = ImageSize(stride, stride)
        step = trunk.patch_embed.patch_size[0] if hasattr(trunk, "patch_embed") else 1  # Swin's
        movable, offset = _try_sizes(tower, stride, step)
        pooling = "mean"
        layer_sizes = tuple(int(trunk.feature_info[k]["num_chs"]) for k in tower.stages)
        multiple = ImageSize(step, step)
    hidden = int(trunk.num_features)
    return EncoderSpec(
        id=encoder_id,
        family=_family(trunk),
        image_size=image_size,
        patch_size=patch,
        prefix_tokens=tower.prefix_tokens,
        hidden_size=hidden,
        embed_dim=None,
        pooled_size=int(getattr(trunk, "head_hidden_size", hidden)),
        pooling=pooling,
        layers=len(tower.stages),
        layer_sizes=layer_sizes,
        grid_offset=offset,
        resolutions=Resolutions(
            multiple=multiple, minimum=patch, maximum=largest_size(patch), only=None if movable else image_size
        ),
        preprocessing=preprocessing,
    )


_POOLING = {"token": "class", "avg": "mean", "map": "attention", "max": "max"}


def _family(trunk: nn.Module) -> str:
    """The architecture's kind from timm's module: vision_transformer -> vit, convnext -> convnext."""
    module = type(trunk).__module__.rpartition(".")[2]
    return {"vision_transformer": "vit", "byobnet": "resnet"}.get(module, module)


def _try_sizes(tower: TimmTower, stride: int, step: int) -> tuple[bool, int]:
    """Whether a feature-map trunk runs at sizes other than its own, and its grid_offset.

    Convolutions give floor((side + offset) / stride) for one offset (floors of floors compose), so the smallest side,
    in steps of `step` pixels, whose grid is 3 tells it.
    """

    def cols(side: int) -> int:
        with torch.inference_mode():
            final = tower.trunk.forward_features(torch.zeros(1, 3, 3 * stride, side))
            return tower._grid(final, final).cols

    training = tower.training
    tower.eval()
    try:
        if cols(3 * stride) != 3:
            return False, 0
        low, high = 2 * stride // step, 3 * stride // step  # the grid is 2 at low and 3 at high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if cols(middle * step) >= 3 else (middle, high)
    except (RuntimeError, AssertionError, ValueError):
        return False, 0
    finally:
        tower.train(training)
    return True, 3 * stride - high * step


def preprocessing_of(trunk: Any) -> Preprocessing:
    """Timm's own evaluation transform as Preprocessing."""
    config = resolve_data_config({}, model=trunk)
    return Preprocessing(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        resize={"center": "shortest", "squash": "squash", "border": "longest"}[config["crop_mode"]],  # type: ignore[arg-type]
        crop_pct=config["crop_pct"],
    )


def load(encoder_id: EncoderId, placement: Placement) -> TorchEncoder:
    """A timm backbone. NAME may carry timm's tag (`resnet50.a1_in1k`); WEIGHTS is a file, or `random`.

    Raises EncoderIdError for a name timm does not know, WeightsError for weights that cannot be had or do not fit.
    """
    name, weights = encoder_id.name, encoder_id.weights
    if name.partition(".")[0] not in timm.list_models():
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else " timm.list_models() lists them."
        raise EncoderIdError(f"timm has no model '{name}'.{hint}", model=str(encoder_id))
    with seeded(), fitting(str(encoder_id), weights or "timm's pretrained weights"):
        # num_classes=0: no classifier; Swin needs its own word to run at other sizes.
        options: dict[str, Any] = {"strict_img_size": False} if name.startswith("swin") else {}
        trunk: Any = timm.create_model(
            name, pretrained=weights is None and not placement.is_blueprint, num_classes=0, **options
        )
        if weights is not None and not (encoder_id.is_random or placement.is_blueprint):
            _load_file(trunk, Path(weights), encoder_id=str(encoder_id))
    tower = TimmTower(trunk)
    spec = trunk_spec(
        tower, encoder_id=str(encoder_id), preprocessing=preprocessing_of(trunk), image_size=native_size(trunk)
    )
    return TorchEncoder(spec, tower, placement=placement)


def _load_file(trunk: Any, path: Path, *, encoder_id: str) -> None:
    """A local timm checkpoint; its classifier, which a token encoder does not have, is left out."""
    if not path.is_file():
        raise WeightsError(f"There is no file {path} for {encoder_id}; '@random' asks for random weights.")
    state = load_state_dict(str(path), use_ema=False, weights_only=True)
    classifier = trunk.pretrained_cfg.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    kept = {key: value for key, value in state.items() if not key.startswith(tuple(f"{name}." for name in names))}
    load_strictly(trunk, kept, encoder_id=encoder_id, source=str(path))
