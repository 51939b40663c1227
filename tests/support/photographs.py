"""Photographs that scikit-image carries inside its package (no download), as RGB images of several shapes."""

from functools import cache

import numpy as np
from PIL import Image
from skimage import data

NAMES = ("astronaut", "coffee", "chelsea", "rocket")
"""512x512, 400x600, 300x451 and 427x640 (height x width)."""


@cache
def photograph(name: str) -> Image.Image:
    return Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")


def photographs() -> list[Image.Image]:
    return [photograph(name) for name in NAMES]
