"""What the server does by default against the reference (Pillow, float32): vectors of photographs, by their angle."""

import io

import numpy as np
import pytest

from encoders import decode, load
from encoders.contract.encoder import Encoder, Placement
from encoders.contract.values import Floats
from encoders.images.preprocess import enough
from tests.support.photographs import NAMES, photograph
from tests.support.suites import split

ENCODERS = ["demo:vit", "demo:resnet", "demo:convnext", "openclip:RN50@random", "openclip:ViT-B-32@random"]


def jpegs() -> list[bytes]:
    files = []
    for name in NAMES:
        out = io.BytesIO()
        photograph(name).save(out, "JPEG", quality=92)
        files.append(out.getvalue())
    return files


def vectors(encoder: Encoder, *, exact: bool) -> Floats:
    size = encoder.spec.image_size
    at_least = None if exact else enough(encoder.spec.preprocessing, size)
    images = (decode(jpeg, at_least=at_least) for jpeg in jpegs())
    pixels = np.stack([encoder.preprocess(image, size, exact=exact) for image in images])
    pooled = encoder.encode(pixels, encoder.spec.outputs(pooled=True)).pooled
    assert pooled is not None
    rows: Floats = pooled.astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("encoder_id", split(ENCODERS, quick=["demo:vit", "demo:resnet", "demo:convnext"]))
def test_the_default_way_is_at_cosine_0999_or_closer(encoder_id: str, dtype: str) -> None:
    reference = vectors(load(encoder_id, Placement()), exact=True)
    default = vectors(load(encoder_id, Placement(dtype=dtype)), exact=False)
    assert (reference * default).sum(axis=1).min() >= 0.999
