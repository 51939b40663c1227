"""What is measured: a model and pictures for it, and what every server must answer. Made once, kept in build/bench."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.images import LARGE, PHOTOGRAPHS, THUMBNAILS, Kind, pictures
from encoders.contract.spec import Preprocessing

FOLDER = Path("build/bench")

_SETTLING = 16
"""Pictures that a model's batch norms take their statistics from."""

Vectors: TypeAlias = NDArray[np.float32]
"""[N, E], each row of length 1."""

RIGHT = 0.99
"""Cosine to its reference from which an answer is right: bfloat16 gives 0.999, another picture less than this."""


@dataclass(frozen=True)
class Work:
    """Pictures of one kind through one model of benchmarks/models.py, pooled vectors out."""

    name: str
    model: str
    kind: Kind

    @cached_property
    def folder(self) -> Path:
        """The model's: open_clip_config.json and weights."""
        folder = (FOLDER / "models" / self.model).absolute()
        if not (folder / "open_clip_config.json").is_file():
            from benchmarks import models

            models.make(self.model, folder, self._candidates[:_SETTLING])
        return folder

    @cached_property
    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.folder / "open_clip_config.json").read_text())
        return config

    @property
    def side(self) -> int:
        """Of the square that the model sees, in pixels."""
        side: int = self._config["model_cfg"]["vision_cfg"]["image_size"]
        return side

    @property
    def preprocessing(self) -> Preprocessing:
        """How the model sees a picture."""
        config = self._config["preprocess_cfg"]
        return Preprocessing(tuple(config["mean"]), tuple(config["std"]), resize=config["resize_mode"])

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
            from benchmarks import models

            np.save(file, models.encoded(self.folder, self._candidates).numpy())
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
        Work("vit-b-16", "vit-b-16", PHOTOGRAPHS),
        Work("vit-l-14", "vit-l-14", PHOTOGRAPHS),
        Work("siglip-b-16", "siglip-b-16", PHOTOGRAPHS),
        Work("rn50", "rn50", PHOTOGRAPHS),
        Work("rn101", "rn101", PHOTOGRAPHS),
        Work("convnext", "convnext", PHOTOGRAPHS),
    )
}


def distinct(vectors: Vectors, *, below: float) -> list[int]:
    """Of rows of length 1, in order, those whose cosine to each one kept before is less than `below`."""
    kept: list[int] = []
    for index, vector in enumerate(vectors):
        if np.all(vectors[kept] @ vector < below):
            kept.append(index)
    return kept
