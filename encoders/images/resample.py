"""Resizing with torch's kernels for 8-bit images: the filters of Pillow, several times faster.

Values are rounded between the two passes in another place, so they differ from Pillow's by at most 2 of 255, when an
image is enlarged, and by at most 1 otherwise (tests/encoders/images/test_resampling.py). Knows torch and Pillow; knows
no encoder.
"""

import torch
from PIL import Image
from torch.nn import functional as F

from encoders.contract.values import ImageSize, Pixels
from encoders.images.preprocess import array_of, resize_exactly

_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}


def resize(image: Image.Image, size: ImageSize, resample: Image.Resampling) -> Pixels:
    """The RGB image's pixels at `size`, antialiased. Filters that torch does not have are left to Pillow.

    One call runs on one core, whatever torch's threads are set to.
    """
    if resample not in _MODES:
        return resize_exactly(image, size, resample)
    # Channels last, also by its strides: then so is the result, and nothing is left for torch to turn round. That
    # would wake its threads, and they fight with the forward's. NumPy turns the axes, as each of torch's calls lets go
    # of the interpreter, and a busy one takes long to come back.
    pixels = array_of(image).reshape(1, image.height, image.width, 3).transpose(0, 3, 1, 2)
    resized = F.interpolate(
        torch.from_numpy(pixels), size=tuple(size), mode=_MODES[resample], antialias=True, align_corners=False
    )
    resized_pixels: Pixels = resized.numpy()[0].transpose(1, 2, 0)
    return resized_pixels
