"""Where weights are kept, as the libraries that fetch them have it."""

import os
from collections.abc import Mapping
from pathlib import Path

from service.doctor.facts import Folder
from service.doctor.machine import folder


def caches() -> Mapping[str, Folder]:
    """By the library whose it is. timm and transformers keep theirs with Hugging Face's."""
    from huggingface_hub.constants import HF_HUB_CACHE

    own = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    torch = Path(os.environ.get("TORCH_HOME", own / "torch"), "hub")
    places = {
        "Hugging Face": Path(HF_HUB_CACHE),
        "open_clip": Path("~/.cache/clip"),  # of OpenAI's own files
        "torch": torch,
    }
    return {name: folder(place.expanduser(), counts=True) for name, place in places.items()}
