"""visiontower's encoders: images -> patch tokens, pooled and text embeddings, as NumPy arrays.

from encoders import TokenKind, decode, load

encoder = load("demo:vit")
size = encoder.spec.size()
pixels = encoder.preprocess(decode(open("cat.jpg", "rb").read()), size)
encoded = encoder.encode(pixels[None], encoder.spec.outputs(tokens=TokenKind.HIDDEN, pooled=True))
"""

from encoders.adapters.registry import EncoderId, load, schemes
from encoders.contract.encoder import Encoder, Placement
from encoders.contract.spec import EncoderSpec, Preprocessing, Resolutions, Scoring
from encoders.contract.values import Encoded, Grid, ImageSize, Outputs, TokenKind
from encoders.images.decode import decode
from encoders.images.preprocess import preprocess

__all__ = [
    "Encoded",
    "Encoder",
    "EncoderId",
    "EncoderSpec",
    "Grid",
    "ImageSize",
    "Outputs",
    "Placement",
    "Preprocessing",
    "Resolutions",
    "Scoring",
    "TokenKind",
    "decode",
    "load",
    "preprocess",
    "schemes",
]
