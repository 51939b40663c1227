"""The models that are served: architectures of open_clip with random weights, in folders that open_clip loads."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from safetensors.torch import save_file
from torch import nn

_SMALL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
MODELS: dict[str, str | dict[str, Any]] = {
    "small": _SMALL,
    "vit-b-32": "ViT-B-32",
    "vit-b-16": "ViT-B-16",
    "vit-l-14": "ViT-L-14",
    "siglip-b-16": "ViT-B-16-SigLIP",
    "rn50": "RN50",
    "rn101": "RN101",
    "convnext": "convnext_base_w",
}
"""open_clip's name of an architecture, or a configuration of our own."""


def make(name: str, folder: Path, jpegs: list[bytes]) -> None:
    """Write open_clip_config.json and the weights, of seed 0. jpegs: what batch norms take their statistics from.

    The configuration is written last: it says that the folder is complete.
    """
    described = MODELS[name]
    config = copy.deepcopy(open_clip.get_model_config(described) if isinstance(described, str) else described)
    if config["text_cfg"].pop("hf_tokenizer_name", None):  # it is on the hub alone: CLIP's takes its place
        config["text_cfg"]["vocab_size"] = _SMALL["text_cfg"]["vocab_size"]
    preprocess = _preprocess(described, side=config["vision_cfg"]["image_size"])
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CustomTextCLIP(**arguments) if config.get("custom_text") else CLIP(**arguments)
    transform = image_transform_v2(PreprocessCfg(**preprocess), is_train=False)
    _settle(model.visual, torch.stack([transform(Image.open(io.BytesIO(jpeg))) for jpeg in jpegs]))
    weights = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "open_clip_model.safetensors")
    complete = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(complete, indent=2))


def _preprocess(architecture: str | dict[str, Any], *, side: int) -> dict[str, Any]:
    """As the first that trained the architecture; open_clip's own, if nobody has."""
    own = PreprocessCfg(size=side)
    tags = open_clip.list_pretrained_tags_by_model(architecture) if isinstance(architecture, str) else ()
    trained = open_clip.get_pretrained_cfg(architecture, tags[0]) if tags else {}
    preprocess: dict[str, Any] = merge_preprocess_dict(own, trained)
    return preprocess


def _settle(visual: nn.Module, pixels: torch.Tensor) -> None:
    """Give batch norms the pictures' statistics, as training would: without them all pictures have one vector."""
    norms = [module for module in visual.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = None  # the plain mean of all that was seen
    visual.train()
    with torch.inference_mode():
        visual(pixels)
    visual.eval()


def encoded(folder: Path, jpegs: list[bytes]) -> torch.Tensor:
    """What the model gives for each picture in float32 by open_clip's own path: [N, E], of length 1."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    rows = []
    with torch.inference_mode():
        for jpeg in jpegs:
            pixels = preprocess(Image.open(io.BytesIO(jpeg)).convert("RGB"))
            rows.append(model.encode_image(pixels[None], normalize=True)[0])
    return torch.stack(rows)
