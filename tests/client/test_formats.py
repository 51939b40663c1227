"""The bytes that the client writes and reads, held against the libraries that define them."""

import io
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from service.http.protocols.native.body import form_body
from tests.support.paths import ROOT
from visiontower_client import safetensors
from visiontower_client.form import form
from visiontower_client.images import png


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3), (300, 200, 3)])
def test_a_png_is_the_array(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for each in (pixels, pixels[::-1, ::-1], np.asfortranarray(pixels)):
        image = Image.open(io.BytesIO(png(each)))
        assert (image.format, image.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(image), each)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "bfloat16"])
def test_safetensors_are_read_as_the_library_writes_them(dtype: str) -> None:
    values = np.random.default_rng(0).normal(0, 50, (3, 4, 5))
    array: Any = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    found = safetensors.read(save({"a": array, "b": array[:0]}, {"word": "ü"}))
    assert found.metadata == {"word": "ü"}
    assert found.arrays["a"].dtype == np.dtype("float32" if dtype == "bfloat16" else dtype)
    np.testing.assert_array_equal(found.arrays["a"], array.astype(found.arrays["a"].dtype))
    assert found.arrays["b"].shape == (0, 4, 5)


def test_whatever_is_cut_is_refused() -> None:
    whole = save({"a": np.arange(100, dtype=np.float32)})
    for length in range(0, len(whole), 7):
        with pytest.raises((ValueError, KeyError)):
            safetensors.read(whole[:length])


def test_a_form_is_read_as_it_was_meant() -> None:
    images = [b"", b"\r\n--", bytes(range(256)), b"\x89PNG\r\n\x1a\n\r\n"]
    fields = [("text", ""), ("text", "ü \r\n--x\r\n"), ("template", 'a "{}"')]
    body = form(images, fields)
    read = form_body(body.content, content_type=body.content_type, max_images=9)
    assert read.images[2:] == images[2:]
    assert len(read.images) == 4
    assert read.fields == fields


def test_the_package_needs_httpx_and_numpy_only() -> None:
    """No torch, no Pillow, no tqdm, nothing of the service."""
    program = (
        "import sys, visiontower_client as v, numpy as np; from visiontower_client.images import bytes_of;"
        "bytes_of(np.zeros((2, 2, 3), np.uint8)); print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    line = [sys.executable, "-c", program]
    ran = subprocess.run(line, cwd=ROOT / "client", env={"PATH": ""}, capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert {"httpx", "numpy"} <= loaded
    assert not loaded & {
        "torch",
        "PIL",
        "tqdm",
        "encoders",
        "service",
        "pydantic",
        "safetensors",
        "orjson",
        "ml_dtypes",
    }
