"""A third party's encoder, installed beside ours, is an encoder like any other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from encoders.adapters.registry import ENTRY_POINTS, EncoderId, load, schemes
from encoders.contract.errors import EncoderIdError
from tests.support.paths import ROOT

PLUGIN = ROOT / "tests" / "plugin"

USE_IT = """
import json
import numpy as np
from encoders import TokenKind, blueprint, load
encoder = load("lenet:5@random")
pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
encoded = encoder.encode(pixels, encoder.spec.outputs(tokens=TokenKind.HIDDEN, pooled=True))
alone = encoder.encode(pixels[1:], encoder.spec.outputs(tokens=TokenKind.HIDDEN))
outputs = encoder.spec.outputs(tokens=TokenKind.HIDDEN, pooled=True, layer=0)
print(json.dumps({
    "cost": blueprint("lenet:5@random").cost(encoder.spec.size(), outputs, device="cpu").requested(2) > 0,
    "mismatch": encoder.spec.mismatch(
        encoder.encode(pixels, outputs), images=2, size=encoder.spec.size(), outputs=outputs
    ),
    "grid": encoded.grid, "spec_grid": encoder.spec.grid(),
    "tokens": encoded.tokens.shape, "pooled": encoded.pooled.shape,
    "row_equal": bool(np.allclose(encoded.tokens[1], alone.tokens[0], atol=1e-6)),
}))
"""


def test_an_installed_plugin_loads_by_id(tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = tmp_path / "source"
    source.mkdir()
    for file in ("pyproject.toml", "visiontower_lenet.py"):  # a copy: building writes beside the source
        (source / file).write_bytes((PLUGIN / file).read_bytes())
    subprocess.run([*install, "--target", str(tmp_path / "site"), str(source)], check=True, capture_output=True)
    path = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    ran = subprocess.run(
        [sys.executable, "-c", USE_IT],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    said = json.loads(ran.stdout)
    assert said == {
        "cost": True,
        "mismatch": None,
        "grid": [5, 5],
        "spec_grid": [5, 5],
        "tokens": [2, 25, 16],
        "pooled": [2, 84],
        "row_equal": True,
    }


def test_two_plugins_of_one_scheme_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        installed = tmp_path / f"{name}-1.0.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (installed / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nmine = {name}:build\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EncoderIdError, match=r"'mine' is claimed by (one:build and by two|two:build and by one):build"):
        schemes()


def test_an_unknown_scheme_names_the_known() -> None:
    with pytest.raises(EncoderIdError, match=r"demo.*hf.*openclip.*timm"):
        load("clip:ViT-B-32")


@pytest.mark.parametrize("text", ["", "ViT-B-32", "openclip:", ":x", "timm:resnet50@"])
def test_what_is_no_id_is_told_the_form(text: str) -> None:
    with pytest.raises(EncoderIdError, match="SCHEME:NAME@WEIGHTS"):
        EncoderId.parse(text)


@pytest.mark.parametrize("text", ["demo:vit", "openclip:RN50@/a/b@c.safetensors", "hf:org/name@refs/pr/1"])
def test_an_id_survives_parsing(text: str) -> None:
    assert str(EncoderId.parse(text)) == text


def test_the_fake_encoder_is_deterministic() -> None:
    fake = load("fake:any")
    pixels = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(1, 32, 32, 3)
    outputs = fake.spec.outputs(pooled=True)
    np.testing.assert_array_equal(fake.encode(pixels, outputs).pooled, load("fake:any").encode(pixels, outputs).pooled)
