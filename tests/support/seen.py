"""Which part of an image an encoder sees, found by looking: each pixel of a test image says where it is."""

import numpy as np
from PIL import Image

from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize
from encoders.images.preprocess import preprocess


def seen_box(how: Preprocessing, image: ImageSize, target: ImageSize) -> tuple[float, float, float, float]:
    """Left, top, width and height, in the image's pixels, of what `preprocess` makes the target of.

    The image's red grows from left to right and its green from top to bottom. So the middle of the target says which
    part of the image is how far from its edges; fill beyond the edges is extrapolated.
    """
    rows, cols = (np.linspace(40, 215, side) for side in image)
    red, green = np.meshgrid(cols, rows)
    picture = Image.fromarray(np.stack([red, green, np.full_like(red, 255)], -1).round().astype(np.uint8))
    pixels = preprocess(picture, how, target).astype(float)
    inside = pixels[..., 2] > 200  # fill is black

    def side(values: np.ndarray, length: int, full: int) -> tuple[float, float]:
        at = np.flatnonzero(values > 0)
        at = at[len(at) // 8 : len(at) - len(at) // 8] if len(at) > 16 else at
        slope, start = np.polyfit(at + 0.5, (values[at] - 40) / 175 * (full - 1) + 0.5, 1)
        return start, slope * length

    across = np.where(inside.any(0), (pixels[..., 0] * inside).sum(0) / np.maximum(inside.sum(0), 1), 0)
    down = np.where(inside.any(1), (pixels[..., 1] * inside).sum(1) / np.maximum(inside.sum(1), 1), 0)
    left, width = side(across, target.width, image.width)
    top, height = side(down, target.height, image.height)
    return left, top, width, height
