"""open_clip's folder as one of transformers', which is what Infinity loads: the same weights under other names."""

import json
from pathlib import Path

from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, SimpleTokenizer
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer


def convert(source: Path, target: Path) -> None:
    """Write the model, its image processor and its tokenizer to `target`."""
    described = json.loads((source / "open_clip_config.json").read_text())
    model = CLIPModel(_config(described["model_cfg"]))
    model.load_state_dict(_renamed(load_file(source / "open_clip_model.safetensors")), strict=True)
    model.save_pretrained(target)
    size = described["model_cfg"]["vision_cfg"]["image_size"]
    images = CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=described["preprocess_cfg"]["mean"],
        image_std=described["preprocess_cfg"]["std"],
    )
    CLIPProcessor(images, _tokenizer(target)).save_pretrained(target)


def _config(model):
    vision, text = model["vision_cfg"], model["text_cfg"]
    return CLIPConfig(
        projection_dim=model["embed_dim"],
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": "gelu",
            "projection_dim": model["embed_dim"],
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "hidden_act": "gelu",
            "projection_dim": model["embed_dim"],
        },
    )


_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
}
_PARTS = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.": ".self_attn.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def _renamed(weights):
    renamed = {
        "visual_projection.weight": weights.pop("visual.proj").T.contiguous(),
        "text_projection.weight": weights.pop("text_projection").T.contiguous(),
        "logit_scale": weights.pop("logit_scale"),
    }
    weights.pop("attn_mask", None)
    for name, value in weights.items():
        start = next(start for start in _NAMES if name == start or name.startswith(start + "."))
        name = _NAMES[start] + name[len(start) :]
        for theirs, ours in _PARTS.items():
            name = name.replace(theirs, ours)
        if ".in_proj_" in name:
            head, kind = name.split("in_proj_")
            parts = value.chunk(3)
            renamed |= {f"{head}{x}_proj.{kind}": part.clone() for x, part in zip("qkv", parts, strict=True)}
        else:
            renamed[name] = value
    return renamed


def _tokenizer(folder: Path) -> CLIPTokenizer:
    simple = SimpleTokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): index for token, index in simple.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    return CLIPTokenizer(folder / "vocab.json", folder / "merges.txt", model_max_length=DEFAULT_CONTEXT_LENGTH)
