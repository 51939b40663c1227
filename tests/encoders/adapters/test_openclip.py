"""The open_clip adapter against open_clip itself, with the same random weights on the same photographs.

Tolerances: see closeness.py; half precision is judged by cosine.
"""

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import resize_pos_embed
from torch import Tensor

from encoders.adapters.openclip.clip import clip_parts
from encoders.adapters.registry import blueprint
from encoders.contract.encoder import Placement
from encoders.contract.errors import LayerNotFound, UnsupportedResolution
from encoders.contract.values import Encoded, ImageSize, Outputs, TokenKind
from encoders.runtime.parts import TorchParts
from encoders.runtime.torch_encoder import TorchEncoder
from tests.support.closeness import close
from tests.support.photographs import photographs
from tests.support.suites import split
from tests.support.tiny_clip import TINY_RESNET, TINY_VIT, normalised, run, tiny

CPU = Placement()
TEXTS = ["a photograph of an astronaut", "a cup of coffee", "a cat", "a rocket at night"]
PHOTOS = photographs()[:2]
GRIDS = {
    "RN50": (7, 7, 2048),
    "ViT-B-32": (7, 7, 768),
    "ViT-L-14-336": (24, 24, 1024),
    "convnext_base_w": (8, 8, 1024),
    "ViT-B-16-SigLIP": (14, 14, 768),
}


SHALLOW = {"ViT-L-14-336": 3}
"""Of these the first blocks alone, on both sides: all are alike, and all of them take a minute."""


def random_model(name: str) -> Any:
    """open_clip's model in float32 with seeded weights in which nothing is zero or one by initialisation."""
    config: Any = open_clip.get_model_config(name)
    halves = {half: config[half] | {"layers": SHALLOW[name]} for half in ("vision_cfg", "text_cfg") if name in SHALLOW}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = open_clip.create_model(name, pretrained_text=False, **halves).eval()
        with torch.no_grad():
            for part in model.modules():
                if isinstance(part, torch.nn.BatchNorm2d):  # CLIP's ResNets start with branches of weight 0
                    part.weight.uniform_(0.5, 1.0)
                    part.bias.uniform_(-0.1, 0.1)
                    part.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
                    part.running_var.uniform_(0.8, 1.2)  # type: ignore[union-attr]
    return model


def made(parts: TorchParts, placement: Placement = CPU) -> TorchEncoder:
    return TorchEncoder(parts.spec, parts.tower, parts.text, placement=placement)


@dataclass
class Pair:
    """open_clip's answers and the encoder made of the same weights."""

    name: str
    encoder: TorchEncoder
    pixels: Any
    encoded: Encoded
    tokens: Tensor
    pooled: Tensor
    text: Tensor
    logits: Tensor
    ids: Tensor


@pytest.fixture(scope="module", params=split(GRIDS, quick=["ViT-B-32"]))
def pair(request: pytest.FixtureRequest) -> Pair:
    name: str = request.param
    model = random_model(name)
    if "SigLIP" in name:  # its tokenizer is only on the hub; any ids show parity
        ids = torch.randint(1, 32000, (len(TEXTS), 64), generator=torch.Generator().manual_seed(0))
        tokenizer = lambda texts: ids[: len(texts)]  # noqa: E731
    else:
        tokenizer = open_clip.get_tokenizer(name)
        ids = tokenizer(TEXTS)
    config = open_clip.get_model_preprocess_cfg(model)
    transform = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**config), is_train=False)
    batch = torch.stack([transform(photo) for photo in PHOTOS])
    with torch.inference_mode():
        pooled = model.encode_image(batch)
        text = model.encode_text(ids)
        image_logits, _ = model.get_logits(batch, ids)
        if name.startswith("RN"):
            maps = model.visual.forward_intermediates(batch, indices=[4], intermediates_only=True)
            tokens = maps["image_intermediates"][0].flatten(2).transpose(1, 2)
        elif hasattr(model.visual, "trunk"):
            final = model.visual.trunk.forward_features(batch)
            tokens = final if final.ndim == 3 else final.flatten(2).transpose(1, 2)
        else:
            model.visual.output_tokens = True
            tokens = model.visual(batch)[1]
    encoder = made(clip_parts(model, config, tokenizer=tokenizer, encoder_id=f"openclip:{name}@random"))
    size = encoder.spec.size()
    pixels = np.stack([encoder.preprocess(photo, size, exact=True) for photo in PHOTOS])
    encoded = encoder.encode(pixels, encoder.spec.outputs(tokens=TokenKind.HIDDEN, pooled=True))
    return Pair(name, encoder, pixels, encoded, tokens, pooled, text, image_logits, ids)


def test_tokens_and_pooled_equal_open_clips(pair: Pair) -> None:
    assert pair.encoded.tokens is not None
    close(pair.encoded.tokens[:, pair.encoded.prefix_tokens :], pair.tokens)
    close(pair.encoded.pooled, pair.pooled)
    close(pair.encoder.encode(pair.pixels, Outputs(pooled=True)).pooled, pair.pooled)


def test_text_and_logits_equal_open_clips(pair: Pair) -> None:
    scoring = pair.encoder.spec.require_text()
    text, pooled = pair.encoder.encode_text(pair.ids.numpy()), pair.encoded.pooled
    close(text, pair.text)
    assert pooled is not None
    unit_images, unit_texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (pooled, text))
    close(scoring.logit_scale * unit_images @ unit_texts.T + scoring.logit_bias, pair.logits)
    assert scoring.activation == ("sigmoid" if "SigLIP" in pair.name else "softmax")


def test_the_spec_is_what_the_encoder_gives(pair: Pair) -> None:
    spec, encoded = pair.encoder.spec, pair.encoded
    rows, cols, width = GRIDS[pair.name]
    assert (encoded.grid, spec.grid(), spec.hidden_size) == ((rows, cols), (rows, cols), width)
    assert encoded.tokens is not None
    assert encoded.pooled is not None
    assert encoded.tokens.shape == (2, spec.prefix_tokens + rows * cols, width)
    assert encoded.pooled.shape == (2, spec.pooled_size) == (2, spec.embed_dim)
    parts = [pair.encoder.tower, pair.encoder.text]
    sizes: list[int] = [p.numel() for part in parts if part is not None for p in part.parameters()]
    assert spec.parameters == sum(sizes)


def test_a_batch_row_equals_the_single_image(pair: Pair) -> None:
    outputs = pair.encoder.spec.outputs(tokens=TokenKind.HIDDEN, pooled=True)
    row, alone = pair.encoded.row(1), pair.encoder.encode(pair.pixels[1:], outputs).row(0)
    close(alone.tokens, row.tokens)
    close(alone.pooled, row.pooled)


@pytest.mark.parametrize("side", [224, 336, 448])
def test_the_grid_grows_with_the_resolution(pair: Pair, side: int) -> None:
    spec = pair.encoder.spec
    size = spec.resolutions.nearest(ImageSize(side, side))[0]  # 336 is no multiple of 32 or 16: 320
    pixels = pair.encoder.preprocess(photographs()[1], size)[None]
    kinds = [TokenKind.HIDDEN] + [TokenKind.DENSE] * spec.dense + [TokenKind.PROJECTED] * spec.projects
    for kind in kinds if side == 224 else kinds[:1]:
        encoded = pair.encoder.encode(pixels, spec.outputs(tokens=kind, pooled=True))
        patch = spec.patch_size[0]
        assert encoded.grid == spec.grid(size) == (size.height // patch, size.width // patch)
        width = spec.hidden_size if kind is TokenKind.HIDDEN else spec.embed_dim
        assert encoded.tokens is not None
        assert encoded.tokens.shape == (1, encoded.prefix_tokens + encoded.grid.rows * encoded.grid.cols, width)
        assert np.isfinite(encoded.tokens).all()


# The rest needs no large model.


def encoder_of(model: Any, placement: Placement = CPU) -> TorchEncoder:
    config = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    parts = clip_parts(copy.deepcopy(model), config, tokenizer=tokenizer, encoder_id="openclip:tiny@random")
    return made(parts, placement)


@pytest.mark.parametrize("layer", [0, 2, -1, -4])
def test_a_layer_is_the_blocks_raw_output(layer: int) -> None:
    model = tiny(TINY_VIT)
    encoder = encoder_of(model)
    found = run(encoder, ImageSize(64, 64), tokens=TokenKind.HIDDEN, layer=layer, pooled=True)
    pixels = normalised(encoder, ImageSize(64, 64))
    with torch.inference_mode():
        given = model.visual.forward_intermediates(
            pixels, indices=[layer % 4], output_fmt="NLC", output_extra_tokens=True
        )
    close(found.tokens[:, 1:], given["image_intermediates"][0])
    close(found.tokens[:, :1], given["image_intermediates_prefix"][0])
    close(found.pooled, given["image_features"])


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_resnets_layer_is_a_stage(layer: int) -> None:
    model = tiny(TINY_RESNET)
    encoder = encoder_of(model)
    found = run(encoder, ImageSize(64, 64), tokens=TokenKind.HIDDEN, layer=layer)
    pixels = normalised(encoder, ImageSize(64, 64))
    with torch.inference_mode():
        given = model.visual.forward_intermediates(pixels, indices=[layer + 1], intermediates_only=True)
    stage = given["image_intermediates"][0]
    assert found.grid == tuple(stage.shape[2:])
    assert encoder.spec.layer_sizes[layer] == stage.shape[1]
    close(found.tokens, stage.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("size", [ImageSize(96, 96), ImageSize(32, 32), ImageSize(80, 128)])
def test_another_resolution_equals_a_model_built_for_it(size: ImageSize) -> None:
    """open_clip resizes positions when it loads into a model of another size: the reference for ours, per request."""
    model = tiny(TINY_VIT)
    resized = open_clip.CLIP(
        **{**copy.deepcopy(TINY_VIT), "vision_cfg": {**TINY_VIT["vision_cfg"], "image_size": tuple(size)}}
    ).eval()
    weights = model.state_dict()
    resize_pos_embed(weights, resized)
    resized.load_state_dict(weights)
    encoder = encoder_of(model)
    found = run(encoder, size, tokens=TokenKind.HIDDEN, pooled=True)
    resized.visual.output_tokens = True
    with torch.inference_mode():
        pooled, tokens = resized.visual(normalised(encoder, size))
    assert found.grid == (size.height // 16, size.width // 16)
    close(found.pooled, pooled)
    close(found.tokens[:, 1:], tokens)


@pytest.mark.parametrize("size", [ImageSize(96, 96), ImageSize(32, 32), ImageSize(64, 160)])
def test_a_resnet_embeds_at_another_resolution(size: ImageSize) -> None:
    """The attention pool's positions, resized by open_clip's own function for ViTs and put into the pool."""
    model = tiny(TINY_RESNET)
    encoder = encoder_of(model)
    found = run(encoder, size, tokens=TokenKind.HIDDEN, pooled=True)
    pool = model.visual.attnpool
    grid = (size.height // 32, size.width // 32)
    like_a_vit = SimpleNamespace(visual=SimpleNamespace(positional_embedding=pool.positional_embedding, grid_size=grid))
    weights = {"visual.positional_embedding": pool.positional_embedding.detach()}
    resize_pos_embed(weights, like_a_vit)
    pool.positional_embedding = torch.nn.Parameter(weights["visual.positional_embedding"])
    with torch.inference_mode():
        close(found.pooled, model.visual(normalised(encoder, size)))
    assert found.grid == grid


@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_naming_the_native_size_changes_no_bit(config: dict[str, Any]) -> None:
    encoder = encoder_of(tiny(config))
    plain = run(encoder, encoder.spec.size(), tokens=TokenKind.HIDDEN, pooled=True)
    named = run(encoder, encoder.spec.size(ImageSize(64, 64)), tokens=TokenKind.HIDDEN, pooled=True)
    np.testing.assert_array_equal(plain.tokens, named.tokens)
    np.testing.assert_array_equal(plain.pooled, named.pooled)


@pytest.mark.parametrize(
    ("size", "reason", "nearest"),
    [
        (ImageSize(65, 64), "multiple of 16", "64x64 or 80x64"),
        (ImageSize(8, 64), "at least 16", "16x64"),
        (ImageSize(64, 5000), "at most 1024", "64x1024"),
    ],
)
def test_an_impossible_resolution_names_the_nearest(size: ImageSize, reason: str, nearest: str) -> None:
    encoder = encoder_of(tiny(TINY_VIT))
    with pytest.raises(UnsupportedResolution, match=reason) as caught:
        encoder.spec.size(size)
    assert nearest in str(caught.value)


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(LayerNotFound, match="4 layers"):
        encoder_of(tiny(TINY_VIT)).spec.outputs(tokens=TokenKind.HIDDEN, layer=4)


def test_projected_class_token_is_the_pooled_embedding() -> None:
    """In a ViT that pools by its class token, projecting tokens must give the embedding at index 0."""
    found = run(encoder_of(tiny(TINY_VIT)), ImageSize(64, 64), tokens=TokenKind.PROJECTED, pooled=True)
    close(found.tokens[:, 0], found.pooled)


def test_a_pooled_vector_alone_is_the_same_for_a_block_less_but_its_keys_and_values() -> None:
    encoder = encoder_of(tiny(TINY_VIT))
    native = encoder.spec.image_size
    for outputs in ({}, {"tokens": TokenKind.HIDDEN, "layer": 0}, {"tokens": TokenKind.DENSE}):
        both = run(encoder, native, pooled=True, tokens=TokenKind.HIDDEN)
        close(run(encoder, native, pooled=True, **outputs).pooled, both.pooled)
    shape = blueprint("openclip:ViT-B-32@random")
    pooled, tokens = (
        shape.cost(shape.spec.image_size, Outputs(pooled=True, tokens=kind), device="cpu").flops
        for kind in (None, TokenKind.HIDDEN)
    )
    assert 0.5 < (tokens - pooled) * shape.spec.layers / tokens < 0.9  # ten twelfths of a block, patches apart


def test_dense_features_are_the_last_blocks_values() -> None:
    model = tiny(TINY_VIT)
    encoder = encoder_of(model)
    found = run(encoder, ImageSize(64, 64), tokens=TokenKind.DENSE, pooled=True)
    pixels = normalised(encoder, ImageSize(64, 64))
    block = model.visual.transformer.resblocks[-1]
    itself = ~torch.eye(17, dtype=torch.bool)  # a mask under which every token attends to itself alone
    with torch.inference_mode():
        before = model.visual.forward_intermediates(
            pixels, indices=[2], output_fmt="NLC", output_extra_tokens=True, intermediates_only=True
        )
        x = torch.cat([before["image_intermediates_prefix"][0], before["image_intermediates"][0]], dim=1)
        normed = block.ln_1(x)
        alone = block.attn(normed, normed, normed, attn_mask=itself, need_weights=False)[0]
        expected = (model.visual.ln_post(alone) @ model.visual.proj)[:, 1:]
        close(found.tokens, expected)
        close(found.pooled, model.visual(pixels))


@pytest.mark.parametrize("setting", ["qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"])
def test_blocks_that_are_no_plain_ones_offer_no_dense_features(setting: str) -> None:
    model = tiny({**TINY_VIT, "vision_cfg": {**TINY_VIT["vision_cfg"], setting: True}})
    encoder = encoder_of(model)
    assert not encoder.spec.dense
    with torch.inference_mode():
        close(run(encoder, ImageSize(64, 64), pooled=True).pooled, model.visual(normalised(encoder, ImageSize(64, 64))))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_half_precision_points_the_same_way(config: dict[str, Any], dtype: str) -> None:
    model = tiny(config)
    exact = run(encoder_of(model), ImageSize(96, 64), tokens=TokenKind.HIDDEN, pooled=True)
    half = run(encoder_of(model, Placement(dtype=dtype)), ImageSize(96, 64), tokens=TokenKind.HIDDEN, pooled=True)
    assert str(half.pooled.dtype) == dtype
    for a, b in ((exact.tokens, half.tokens.astype(np.float32)), (exact.pooled, half.pooled.astype(np.float32))):
        cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
        assert cosine.min() > 0.995


TOWERS = {  # every kind of tower open_clip offers, at its smallest
    "EVA02-B-16": (14, 14),
    "MobileCLIP-S1": (8, 8),
    "ViT-B-16-SigLIP2": (14, 14),
    "coca_ViT-B-32": (7, 7),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_other_towers_keep_their_word(name: str) -> None:
    model = random_model(name)
    config = open_clip.get_model_preprocess_cfg(model)
    encoder = made(clip_parts(model, config, tokenizer=None, encoder_id=f"openclip:{name}@random"))
    spec = encoder.spec
    assert spec.grid() == TOWERS[name]
    assert not spec.has_text
    kinds = [TokenKind.HIDDEN] + [TokenKind.DENSE] * spec.dense + [TokenKind.PROJECTED] * spec.projects
    size = spec.size(ImageSize(spec.patch_size.height * 5, spec.patch_size.width * 6))
    for kind in kinds:
        encoded = encoder.encode(
            encoder.preprocess(photographs()[0], size)[None], spec.outputs(tokens=kind, pooled=True)
        )
        width = spec.hidden_size if kind is TokenKind.HIDDEN else spec.embed_dim
        assert encoded.grid == spec.grid(size) == (5, 6)
        assert encoded.tokens is not None
        assert encoded.tokens.shape == (1, encoded.prefix_tokens + 30, width)
        assert encoded.pooled is not None
        assert encoded.pooled.shape == (1, spec.pooled_size)
    deep = encoder.encode(
        encoder.preprocess(photographs()[0], size)[None], spec.outputs(tokens=TokenKind.HIDDEN, layer=-1)
    )
    assert deep.tokens is not None
    assert deep.tokens.shape[1] == deep.prefix_tokens + deep.grid.rows * deep.grid.cols
