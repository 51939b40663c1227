"""visiontower's encoders: images -> patch tokens, pooled and text embeddings, as NumPy arrays.

from pathlib import Path
from encoders import TokenKind, load, pixels_of

encoder = load("demo:vit")
pixels = pixels_of(encoder, Path("cat.jpg").read_bytes())
encoded = encoder.encode(pixels[None], encoder.spec.outputs(tokens=TokenKind.HIDDEN, pooled=True))
"""

from encoders.adapters.registry import EncoderId, blueprint, load, schemes
from encoders.contract.encoder import Blueprint, Encoder, Forward, Placement
from encoders.contract.spec import EncoderSpec, Preprocessing, Resolutions, Scoring
from encoders.contract.values import Encoded, Grid, ImageSize, Outputs, TokenKind
from encoders.images.decode import decode
from encoders.images.pixels import pixels_of
from encoders.images.preprocess import preprocess

__all__ = [
    "Blueprint",
    "Encoded",
    "Encoder",
    "EncoderId",
    "EncoderSpec",
    "Forward",
    "Grid",
    "ImageSize",
    "Outputs",
    "Placement",
    "Preprocessing",
    "Resolutions",
    "Scoring",
    "TokenKind",
    "blueprint",
    "decode",
    "load",
    "pixels_of",
    "preprocess",
    "schemes",
]
