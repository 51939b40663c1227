"""Image bytes -> an encoder's pixels, in one call. Knows encoders by their contract; imports no torch.

Everybody who encodes an image file takes these steps with these defaults, so one photograph gives one vector.
"""

from encoders.contract.encoder import Encoder
from encoders.contract.values import ImageSize, Pixels
from encoders.images.decode import MAX_PIXELS, decode_for


def pixels_of(
    encoder: Encoder,
    image_bytes: bytes,
    size: ImageSize | None = None,
    *,
    exact: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Pixels:
    """Pixels uint8 [H, W, 3] of an image file.

    size: None for the encoder's own. exact: every pixel is decoded, and the result equals that of the model's own
    transforms. By default a large JPEG is decoded at a part of its size and a faster resize is taken; a value is then
    off by a few of 255 (docs/decisions/0003-fast-pixels.md).

    Raises UnsupportedResolution, and what decode raises.
    """
    size = encoder.spec.size(size)
    image = decode_for(encoder.spec.preprocessing, image_bytes, size, exact=exact, max_pixels=max_pixels)
    return encoder.preprocess(image, size, exact=exact)
