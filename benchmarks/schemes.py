"""A model of open_clip as other libraries keep it: the same weights under their names. Made once, beside the model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.works import Vectors, Work


class NotServed(RuntimeError):
    """A server that has no such model."""


def transformers_folder(work: Work) -> Path:
    """The model, its image processor and its tokenizer, as transformers keeps them.

    Raises NotServed for a model that is no vision transformer of CLIP's.
    """
    folder = work.folder.with_name(f"{work.folder.name}-hf")
    described = json.loads((work.folder / "open_clip_config.json").read_text())
    if not described["model_cfg"]["vision_cfg"].get("patch_size"):
        raise NotServed(f"{work.model} is not converted to transformers: CLIP's vision transformers alone are")
    if not (folder / _LAST).is_file():
        _write_for_transformers(described, work.folder, folder)
    return folder


_LAST = "preprocessor_config.json"
"""The file that is written last."""


def _write_for_transformers(described: dict[str, Any], source: Path, target: Path) -> None:
    from safetensors.torch import load_file
    from transformers import CLIPImageProcessor, CLIPModel

    model = CLIPModel(_configuration(described["model_cfg"]))
    model.load_state_dict(_renamed(load_file(source / "open_clip_model.safetensors")), strict=True)
    model.save_pretrained(target)
    _tokenizer().save_pretrained(target)
    side = described["model_cfg"]["vision_cfg"]["image_size"]
    CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=described["preprocess_cfg"]["mean"],
        image_std=described["preprocess_cfg"]["std"],
    ).save_pretrained(target)


def _configuration(model: dict[str, Any]) -> Any:
    from transformers import CLIPConfig

    vision, text = model["vision_cfg"], model["text_cfg"]
    return CLIPConfig(
        projection_dim=model["embed_dim"],
        vision_config={
            **_transformer(vision["width"], vision["layers"], vision["width"] // vision.get("head_width", 64)),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        text_config={
            **_transformer(text["width"], text["layers"], text["heads"]),
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
        },
    )


def _transformer(width: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return {**sizes, "num_attention_heads": heads, "hidden_act": "gelu"}


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


def _renamed(weights: dict[str, Any]) -> dict[str, Any]:
    renamed = {
        "visual_projection.weight": weights.pop("visual.proj").T.contiguous(),
        "text_projection.weight": weights.pop("text_projection").T.contiguous(),
        "logit_scale": weights.pop("logit_scale"),
    }
    weights.pop("attn_mask", None)
    for name, value in weights.items():
        start = next(start for start in _NAMES if name == start or name.startswith(f"{start}."))
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


def _tokenizer() -> Any:
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, SimpleTokenizer
    from transformers import CLIPTokenizer

    simple = SimpleTokenizer()
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {special.get(token, token): index for token, index in simple.encoder.items()}
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    return CLIPTokenizer(vocabulary, merges, model_max_length=DEFAULT_CONTEXT_LENGTH)


TIMM = {
    "vit-b-32": "vit_base_patch32_clip_224.datacompxl",
    "vit-b-16": "vit_base_patch16_clip_224.datacompxl",
    "vit-l-14": "vit_large_patch14_clip_224.datacompxl",
    "convnext": "convnext_base.clip_laion2b",
}
"""timm's name of a model's architecture, with a tag that sees pictures as the model does: timm crops most to 90 %."""


def timm_id(work: Work) -> str:
    """The vision half for visiontower, as timm keeps it. Raises NotServed if timm has none that sees alike."""
    if work.model not in TIMM:
        raise NotServed(f"timm has no {work.model} that sees pictures as open_clip's: it has {', '.join(TIMM)}")
    file = work.folder.with_name(f"{work.folder.name}-timm") / "model.safetensors"
    if not file.is_file():
        _write_for_timm(work, file)
    return f"timm:{TIMM[work.model]}@{file}"


def _write_for_timm(work: Work, file: Path) -> None:
    """By timm's own reading of open_clip's checkpoints. Its classifier is CLIP's projection."""
    import timm
    from safetensors.torch import save_file

    weights = {"file": str(work.folder / "open_clip_model.safetensors")}
    trunk: Any = timm.create_model(TIMM[work.model], pretrained=True, pretrained_cfg_overlay=weights)
    state = trunk.state_dict()
    file.parent.mkdir(exist_ok=True)
    np.save(file.with_name("projection.npy"), state[f"{trunk.pretrained_cfg['classifier']}.weight"].numpy())
    save_file(state, file)


def projection(work: Work) -> Vectors:
    """[E, C]: from what timm pools to CLIP's vector."""
    matrix: NDArray[np.float32] = np.load(Path(timm_id(work).rpartition("@")[2]).with_name("projection.npy"))
    return matrix
