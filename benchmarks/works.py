"""What is measured: a model and pictures for it, and what every server must answer. Made once, kept in build/bench."""

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.images import LARGE, PHOTOGRAPHS, THUMBNAILS, Kind, pictures

FOLDER = Path("build/bench")

Vectors: TypeAlias = NDArray[np.float32]
"""[N, E], each row of length 1."""

_VIT_B_32 = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
_SMALL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
RIGHT = 0.99
"""Cosine to its reference from which an answer is right: bfloat16 gives 0.9999, another picture less than this."""

MODELS: dict[str, dict[str, Any]] = {"vit-b-32": _VIT_B_32, "small": _SMALL}
"""open_clip configurations by name. Weights are random, seed 0, and lie in one file that every server loads."""


@dataclass(frozen=True)
class Work:
    """Pictures of one kind through one model, pooled vectors out."""

    name: str
    model: str
    kind: Kind

    @property
    def side(self) -> int:
        """Of the square that the model sees, in pixels."""
        side: int = MODELS[self.model]["vision_cfg"]["image_size"]
        return side

    @cached_property
    def folder(self) -> Path:
        """The model's: open_clip_config.json and weights."""
        folder = (FOLDER / "models" / self.model).absolute()
        if not (folder / "open_clip_config.json").is_file():
            _make_model(self.model, folder)
        return folder

    @property
    def encoder_id(self) -> str:
        """The model's id for visiontower."""
        return f"openclip:{self.folder}"

    @cached_property
    def _candidates(self) -> list[bytes]:
        return pictures(self.kind, FOLDER / "images")

    @cached_property
    def _encoded(self) -> Vectors:
        """Of all candidates, kept under the digest of what they were made from."""
        digest = hashlib.sha256((self.folder / "open_clip_model.safetensors").read_bytes())
        for jpeg in self._candidates:
            digest.update(jpeg)
        file = FOLDER / "references" / f"{self.name}-{digest.hexdigest()[:12]}.npy"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, _encoded(self.folder, self._candidates))
        vectors: Vectors = np.load(file)
        return vectors

    @cached_property
    def _chosen(self) -> list[int]:
        """With random weights many pictures look alike: these do not, so no picture's answer passes for another's."""
        return distinct(self._encoded, below=RIGHT)

    @cached_property
    def pictures(self) -> list[bytes]:
        """JPEG files."""
        return [self._candidates[index] for index in self._chosen]

    @cached_property
    def references(self) -> Vectors:
        """What the model gives for each picture in float32 by open_clip's own path: [N, E], of length 1."""
        references: Vectors = self._encoded[self._chosen]
        return references


WORKS = {
    work.name: work
    for work in (
        Work("vit-b-32", "vit-b-32", PHOTOGRAPHS),
        Work("small", "small", THUMBNAILS),
        Work("12mp", "vit-b-32", LARGE),
    )
}


def distinct(vectors: Vectors, *, below: float) -> list[int]:
    """Of rows of length 1, in order, those whose cosine to each one kept before is less than `below`."""
    kept: list[int] = []
    for index, vector in enumerate(vectors):
        if np.all(vectors[kept] @ vector < below):
            kept.append(index)
    return kept


def _make_model(name: str, folder: Path) -> None:
    """The configuration is written last: it says that the folder is complete."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(**MODELS[name])
    weights = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    preprocess = {"mean": OPENAI_DATASET_MEAN, "std": OPENAI_DATASET_STD, "interpolation": "bicubic"}
    config = {"model_cfg": MODELS[name], "preprocess_cfg": {**preprocess, "resize_mode": "shortest"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2))


def _encoded(folder: Path, jpegs: list[bytes]) -> Vectors:
    import open_clip
    import torch

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    rows = []
    with torch.inference_mode():
        for jpeg in jpegs:
            pixels = preprocess(Image.open(io.BytesIO(jpeg)).convert("RGB"))
            rows.append(model.encode_image(pixels[None], normalize=True)[0].numpy())
    return np.stack(rows)
