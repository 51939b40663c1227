"""The id that was meant: from another library's name for a model, or from the files of a folder. Reads no weights."""

import json
from pathlib import Path
from typing import Any


def hint_for_name(text: str) -> str:
    """A sentence with the id that another library's name of a model stands for; empty if it is none."""
    library, _, name = text.partition(":")
    if library in ("hf-hub", "hf_hub", "huggingface", "hub") and name:
        if name.startswith("timm/"):
            return f" Write timm:{name.removeprefix('timm/')}"
        return (
            f" Write hf:{name} if the repository is in transformers' format, openclip:ARCHITECTURE@TAG if it is in "
            "open_clip's (`visiontower models --scheme openclip` lists them)."
        )
    if library == "local-dir" and name:
        return f" Write openclip:{name} for a folder in open_clip's format, hf:{name} for one in transformers'."
    return ""


def hint_for_folder(folder: Path) -> str:
    """A sentence with the id that loads this folder, or says what it is; empty if nothing is known of it."""
    path = folder.resolve()
    config = read_json(folder / "config.json")
    if (folder / "open_clip_config.json").is_file():
        return f" It is in open_clip's format: write openclip:{path}"
    if (folder / "modules.json").is_file():
        inner = sorted(child for child in folder.iterdir() if (child / "config.json").is_file())
        where = f"write hf:{path / inner[0].name}" if inner else "its CLIP model is in a folder of its own"
        return f" It is a sentence-transformers folder: {where}"
    if name := timm_name(config):
        weights = next((file for file in ("model.safetensors", "pytorch_model.bin") if (folder / file).is_file()), None)
        return f" It is in timm's format: write timm:{name}@{path / (weights or 'model.safetensors')}"
    if isinstance(config.get("model_type"), str):
        return f" It is in transformers' format: write hf:{path}"
    if (folder / "saved_model.pb").is_file():
        return " It is TensorFlow's SavedModel: convert its weights to safetensors."
    if any(folder.glob("*.onnx")):
        return " It holds ONNX files: give the weights they were made of."
    if any(folder.glob("*.gguf")):
        return " It holds GGUF files: give the weights they were made of."
    return ""


def timm_name(config: dict[str, Any]) -> str | None:
    """The architecture in timm's own config.json; None if it is another library's."""
    name = config.get("architecture")
    return str(name) if name and ("pretrained_cfg" in config or "num_features" in config) else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
