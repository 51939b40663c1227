"""Vectors of photographs by the default path and by the reference (Pillow, float32): the angle between them."""

import io

import numpy as np
import pytest

from encoders import load, pixels_of
from encoders.contract.encoder import Encoder, Placement
from encoders.contract.values import Floats
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
    pixels = np.stack([pixels_of(encoder, jpeg, exact=exact) for jpeg in jpegs()])
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
