"""Two doors to one model agree: the same random weights in the format of each library, loaded through both schemes.

Pixels are equal where both libraries' settings are the same; token ids are equal up to the end of a text (the paddings
of CLIP differ: see the test of text vectors, which do not). Numbers are float32 on both sides and differ in how
attention is fused: within 1e-4 of the largest value.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from encoders.adapters.openclip.clip import clip_parts
from encoders.adapters.registry import load
from encoders.contract.encoder import Encoder, Placement
from encoders.contract.values import TokenKind
from encoders.runtime.torch_encoder import TorchEncoder
from tests.support.clip_names import block_names, clip_names
from tests.support.closeness import close
from tests.support.hf_tokenizers import write_clip_tokenizer
from tests.support.photographs import photographs

TEXTS = [
    "a photo of a cat",
    "A Photo of a CAT!",
    "snake_case, and   MANY spaces &amp; an entity\n",
    "It\u2019s a dog\u2019s life: \u201cquoted\u201d \u2026 ok",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
]


def shaken(model: Any) -> Any:
    """In eval mode, with nothing zero or one by initialisation."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def agree(one: Encoder, other: Encoder, *, tokens: bool = True, pixels: bool = True, pooled: bool = True) -> None:
    """Pixels of photographs; tokens and pooled vectors of two of them."""
    assert one.spec.image_size == other.spec.image_size
    seen = [
        np.stack([encoder.preprocess(photo, encoder.spec.size(), exact=True) for photo in photographs()])
        for encoder in (one, other)
    ]
    # A centre crop halves an odd margin up in torchvision and down in transformers: one column of one photograph.
    same = [np.array_equal(a, b) for a, b in zip(*seen, strict=True)]
    assert sum(same) >= len(same) - 1 or not pixels
    np.testing.assert_allclose(one.spec.preprocessing.mean, other.spec.preprocessing.mean, atol=1e-6)
    np.testing.assert_allclose(one.spec.preprocessing.std, other.spec.preprocessing.std, atol=1e-6)
    a, b = (
        encoder.encode(seen[0][:2], encoder.spec.outputs(tokens=TokenKind.HIDDEN, pooled=True))
        for encoder in (one, other)
    )
    assert a.tokens is not None
    assert b.tokens is not None
    assert a.grid == b.grid
    if tokens:
        assert a.prefix_tokens == b.prefix_tokens
        close(a.tokens, b.tokens)
    if pooled:
        close(a.pooled, b.pooled)


def texts_agree(one: Encoder, other: Encoder) -> None:
    ids = [encoder.tokenize(TEXTS).ids for encoder in (one, other)]
    close(one.encode_text(ids[0]), other.encode_text(ids[1]))
    scoring = [encoder.spec.require_text() for encoder in (one, other)]
    assert scoring[0].activation == scoring[1].activation
    assert scoring[0].logit_scale == pytest.approx(scoring[1].logit_scale)
    assert scoring[0].logit_bias == pytest.approx(scoring[1].logit_bias)
    assert one.spec.context_length == other.spec.context_length


def siglip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's SigLIP, whose vision tower is timm's, under the names of transformers' SiglipModel."""
    renamed = {name: state[name].reshape(1) for name in ("logit_scale", "logit_bias")}
    vision, head = "vision_model", "vision_model.head"
    names = {
        "visual.trunk.patch_embed.proj": f"{vision}.embeddings.patch_embedding",
        "visual.trunk.norm": f"{vision}.post_layernorm",
        "visual.trunk.attn_pool.proj": f"{head}.attention.out_proj",
        "visual.trunk.attn_pool.norm": f"{head}.layernorm",
        "visual.trunk.attn_pool.mlp.fc1": f"{head}.mlp.fc1",
        "visual.trunk.attn_pool.mlp.fc2": f"{head}.mlp.fc2",
        "text.ln_final": "text_model.final_layer_norm",
        "text.text_projection": "text_model.head",
    }
    timm_block = {"norm1": "layer_norm1", "norm2": "layer_norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    pool: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if stem in names:
            renamed[f"{names[stem]}.{kind}"] = tensor
        elif ".blocks." in name:
            index, part = name.split(".blocks.")[1].split(".", 1)
            layer = f"{vision}.encoder.layers.{index}"
            if "qkv" in part:
                for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                    renamed[f"{layer}.self_attn.{letter}_proj.{kind}"] = rows
            elif "attn.proj" in part:
                renamed[f"{layer}.self_attn.out_proj.{kind}"] = tensor
            else:
                renamed[f"{layer}.{timm_block[part.rpartition('.')[0]]}.{kind}"] = tensor
        elif "resblocks" in name:
            renamed |= block_names("text_model.encoder.layers", name.split("resblocks.")[1], tensor)
        elif "attn_pool" in name:
            pool[name.partition("attn_pool.")[2]] = tensor
    renamed[f"{vision}.embeddings.position_embedding.weight"] = state["visual.trunk.pos_embed"][0]
    renamed[f"{head}.probe"] = pool["latent"]
    for kind in ("weight", "bias"):
        renamed[f"{head}.attention.in_proj_{kind}"] = torch.cat([pool[f"q.{kind}"], pool[f"kv.{kind}"]])
    renamed["text_model.embeddings.token_embedding.weight"] = state["text.token_embedding.weight"]
    renamed["text_model.embeddings.position_embedding.weight"] = state["text.positional_embedding"]
    return renamed


def store(folder: Path, config: Any, weights: dict[str, Tensor], processor: Any) -> Encoder:
    """The weights as a folder of transformers', loaded."""
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    save_file(
        {name: value.clone().contiguous() for name, value in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return load(f"hf:{folder}")


HALF: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}


def test_clip_through_openclip_and_hf(tmp_path: Path) -> None:
    model_cfg = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
    }
    model = shaken(open_clip.CLIP(**json.loads(json.dumps(model_cfg))))
    theirs = tmp_path / "openclip"
    theirs.mkdir()
    (theirs / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    save_file(model.state_dict(), theirs / "open_clip_model.safetensors")
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "vocab_size": 49408, "max_position_embeddings": 20}
    half = {**HALF, "num_attention_heads": 1, "hidden_act": "gelu"}
    config = transformers.CLIPConfig(
        vision_config={**half, "image_size": 64, "patch_size": 16}, text_config={**half, **ids}, projection_dim=24
    )
    ours = tmp_path / "hf"
    ours.mkdir()
    write_clip_tokenizer(ours)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    one, other = load(f"openclip:{theirs}"), store(ours, config, clip_names(model.state_dict()), processor)
    agree(one, other)
    texts_agree(one, other)
    mine, its = (encoder.tokenize(TEXTS).ids for encoder in (one, other))
    np.testing.assert_array_equal(mine[mine != 0], its[mine != 0])
    assert (its[mine == 0] == 49407).all()  # OpenAI's code pads with 0, its checkpoints on the Hub with the end token


def word_tokenizer(folder: Path, *, gemma: bool, **config: Any) -> None:
    """A tokenizer.json of bytes with SigLIP's or Gemma's special tokens; it lowers nothing."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"] if gemma else ["<pad>", "</s>", "<unk>"]
    letters = [*"▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!,.:;_&\u2019'\u201c\u201d\u2026"]
    tokenizer = Tokenizer(models.BPE({t: k for k, t in enumerate(special + letters)}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Replace("▁", " ")
    tokenizer.save(str(folder / "tokenizer.json"))
    end = "<eos>" if gemma else "</s>"
    named = {"eos_token": end, "unk_token": "<unk>", "pad_token": "<pad>" if gemma else "</s>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(named | ({"bos_token": "<bos>"} if gemma else {}) | config)
    )


@pytest.mark.parametrize(
    ("gemma", "tokenizer_class"),
    [
        (True, "GemmaTokenizer"),
        (True, "GemmaTokenizerFast"),
        (True, "PreTrainedTokenizerFast"),
        (False, "PreTrainedTokenizerFast"),
        (False, "T5Tokenizer"),
    ],
)
def test_siglip_through_openclip_and_hf(gemma: bool, tokenizer_class: str, tmp_path: Path) -> None:
    """SigLIP, and SigLIP 2 of fixed size, whichever tokenizer class the checkpoint names."""
    model: Any = open_clip.model.CustomTextCLIP(
        embed_dim=64,
        vision_cfg={"image_size": 64, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none"},
        text_cfg={
            "context_length": 32,
            "vocab_size": 80,
            "width": 64,
            "heads": 1,
            "layers": 2,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
        init_logit_bias=-10.0,
    )
    model.visual.trunk = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=64, depth=2, num_heads=1, class_token=False, global_pool="map",
        num_classes=0, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), act_layer="gelu_tanh",
    )  # fmt: skip
    model.visual.trunk.pretrained_cfg = {"input_size": (3, 64, 64)}
    model.visual.image_size = (64, 64)
    model = shaken(model)
    half = {**HALF, "num_attention_heads": 1}
    config = transformers.SiglipConfig(
        vision_config={**half, "image_size": 64, "patch_size": 16},
        text_config={**half, "vocab_size": 80, "max_position_embeddings": 32, "projection_size": 64},
    )
    word_tokenizer(tmp_path, gemma=gemma, tokenizer_class=tokenizer_class)
    processor = transformers.SiglipImageProcessor(size={"height": 64, "width": 64}, resample=3)
    other = store(tmp_path, config, siglip_names(model.state_dict()), processor)
    end, pad = ("<eos>", "<pad>") if gemma else ("</s>", "</s>")
    bare = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    bare.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 1)])
    tokenize = open_clip.tokenizer.HFTokenizer.__new__(open_clip.tokenizer.HFTokenizer)  # it would ask the hub
    tokenize.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bare, eos_token=end, pad_token=pad)
    tokenize.tokenizer_mode, tokenize.strip_sep_token, tokenize.context_length = "", False, 32
    tokenize.clean_fn = open_clip.tokenizer.get_clean_fn("canonicalize")  # as configured for SigLIP
    cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    parts = clip_parts(model, cfg, tokenizer=tokenize, encoder_id="openclip:tiny@random")
    one = TorchEncoder(parts.spec, parts.tower, parts.text, placement=Placement())
    agree(one, other)
    texts_agree(one, other)
    mine, its = (encoder.tokenize(TEXTS).ids for encoder in (one, other))
    np.testing.assert_array_equal(mine, its)


def vit_names(state: dict[str, Tensor], layers: str, *, dino: bool = False) -> dict[str, Tensor]:
    """The blocks of timm's ViT under the names of transformers' ViT or DINOv2."""
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith("blocks."):
            continue
        _, index, part = name.split(".", 2)
        stem, _, kind = part.rpartition(".")
        layer = f"{layers}.{index}"
        if stem == "attn.qkv":
            for which, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"{layer}.attention.attention.{which}.{kind}"] = rows
            continue
        names = {"attn.proj": "attention.output.dense"}
        if dino:
            names |= {"ls1": "layer_scale1", "ls2": "layer_scale2"}
            names |= {each: each for each in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}
        else:
            names |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
            names |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
        renamed[f"{layer}.{names[stem]}.{'lambda1' if kind == 'gamma' else kind}"] = tensor
    return renamed


def timm_file(folder: Path, name: str, **options: Any) -> tuple[Any, Encoder]:
    model = shaken(timm.create_model(name, num_classes=0, **options))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "timm.safetensors")
    return model, load(f"timm:{name}@{folder / 'timm.safetensors'}")


def processor_like(encoder: Encoder, name: str, **settings: Any) -> Any:
    """A processor with timm's mean, std and filter."""
    found = encoder.spec.preprocessing
    resample = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}[found.interpolation]
    return getattr(transformers, name)(
        image_mean=list(found.mean), image_std=list(found.std), resample=resample, **settings
    )


def test_vit_through_timm_and_hf(tmp_path: Path) -> None:
    model, one = timm_file(tmp_path, "test_vit")
    state = model.state_dict()
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=len(model.blocks), num_attention_heads=model.blocks[0].attn.num_heads,
        intermediate_size=192, image_size=160, patch_size=16, layer_norm_eps=model.norm.eps,
    )  # fmt: skip
    names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    weights = {names[name]: state[name] for name in names} | vit_names(state, "encoder.layer")
    for kind in ("weight", "bias"):
        weights[f"embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        weights[f"layernorm.{kind}"] = state[f"norm.{kind}"]
    processor = processor_like(
        one, "CLIPImageProcessor", size={"shortest_edge": 168}, crop_size={"height": 160, "width": 160}
    )
    agree(one, store(tmp_path / "hf", config, weights, processor))


def test_convnext_through_timm_and_hf(tmp_path: Path) -> None:
    model, one = timm_file(tmp_path, "test_convnext")
    config = transformers.ConvNextConfig(
        hidden_sizes=[24, 32, 48, 64], depths=[len(stage.blocks) for stage in model.stages], image_size=160,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    inner = {"gamma": "layer_scale_parameter", "conv_dw": "dwconv", "norm": "layernorm"}
    inner |= {"mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}
    weights = {}
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if name.startswith("stem."):
            where = "patch_embeddings" if stem == "stem.0" else "layernorm"
            weights[f"embeddings.{where}.{kind}"] = tensor
        elif ".downsample." in name:
            _, stage, _, part = stem.split(".")
            weights[f"encoder.stages.{stage}.downsampling_layer.{part}.{kind}"] = tensor
        elif ".blocks." in name:
            _, stage, _, block, rest = name.split(".", 4)
            layer = f"encoder.stages.{stage}.layers.{block}"
            part = rest.rpartition(".")[0]
            weights[f"{layer}.{inner['gamma']}" if rest == "gamma" else f"{layer}.{inner[part]}.{kind}"] = tensor
        else:
            weights[f"layernorm.{kind}"] = tensor
    processor = processor_like(one, "ConvNextImageProcessor", size={"shortest_edge": 160}, crop_pct=0.95)
    # transformers norms the pooled vector alone; timm pools, then norms: the same. Tokens of both are before the norm.
    agree(one, store(tmp_path / "hf", config, weights, processor), tokens=False)


@pytest.mark.slow
def test_dinov2_through_timm_and_hf(tmp_path: Path) -> None:
    model, one = timm_file(tmp_path, "vit_small_patch14_dinov2")
    state = model.state_dict()
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14, layer_norm_eps=1e-6
    )
    names = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    weights = {names[name]: state[name] for name in names} | vit_names(state, "encoder.layer", dino=True)
    weights["embeddings.mask_token"] = torch.zeros(1, 384)
    for kind in ("weight", "bias"):
        weights[f"embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        weights[f"layernorm.{kind}"] = state[f"norm.{kind}"]
    square = {"height": 518, "width": 518}
    processor = processor_like(one, "BitImageProcessor", size={"shortest_edge": 518}, crop_size=square)
    agree(one, store(tmp_path / "hf", config, weights, processor))


@pytest.mark.slow
def test_dinov3_through_timm_and_hf(tmp_path: Path) -> None:
    """Tokens agree. timm pools DINOv3 by the mean of its patches, transformers by the class token.

    Pixels apart: transformers rescales before it resizes, in float, and timm squashes no image.
    """
    model, one = timm_file(tmp_path, "vit_small_patch16_dinov3")
    config = transformers.DINOv3ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, image_size=256,
        patch_size=16, num_register_tokens=4, layer_norm_eps=model.norm.eps, query_bias=False, key_bias=False,
        value_bias=False,
    )  # fmt: skip
    names = {"cls_token": "embeddings.cls_token", "reg_token": "embeddings.register_tokens"}
    inner = {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
    weights = {"embeddings.mask_token": torch.zeros(1, 1, 384)}
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if name in names:
            weights[names[name]] = tensor
        elif stem == "patch_embed.proj":
            weights[f"embeddings.patch_embeddings.{kind}"] = tensor
        elif stem == "norm":
            weights[f"norm.{kind}"] = tensor
        elif name.startswith("blocks."):
            _, index, part = name.split(".", 2)
            layer, stem = f"layer.{index}", part.rpartition(".")[0]
            if part == "attn.qkv.weight":
                for which, rows in zip("qkv", tensor.chunk(3), strict=True):
                    weights[f"{layer}.attention.{which}_proj.weight"] = rows
            elif part.startswith("gamma_"):
                weights[f"{layer}.layer_scale{part[-1]}.lambda1"] = tensor
            else:
                weights[f"{layer}.{inner.get(stem, stem)}.{kind}"] = tensor
    processor = processor_like(one, "DINOv3ViTImageProcessor", size={"height": 256, "width": 256})
    agree(one, store(tmp_path / "hf", config, weights, processor), pixels=False, pooled=False)
