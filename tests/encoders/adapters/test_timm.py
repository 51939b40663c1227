"""The timm adapter against timm itself, on photographs; and its promises for every family it names."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config

from encoders.adapters.registry import EncoderId, load
from encoders.adapters.timm import build
from encoders.contract.encoder import Encoder
from encoders.contract.errors import EncoderIdError, OutputNotOffered, UnsupportedResolution, WeightsError
from encoders.contract.values import ImageSize, TokenKind
from tests.support.closeness import close
from tests.support.photographs import photograph, photographs

NAMES = [
    "resnet18",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "convnext_atto",
    "convnextv2_atto",
    "swin_tiny_patch4_window7_224",
    "vit_tiny_patch16_224",
    "eva02_tiny_patch14_224",
]


@pytest.fixture(scope="module", params=NAMES)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return load(f"timm:{request.param}@random")


def reference(encoder: Encoder) -> Any:
    """timm's own model, fixed to its native size, with the weights the adapter drew."""
    name = encoder.spec.id.removeprefix("timm:").removesuffix("@random")
    model = timm.create_model(name, num_classes=0).eval()
    model.load_state_dict(weights_of(encoder.spec.id))
    return model


def weights_of(encoder_id: str) -> dict[str, torch.Tensor]:
    """As the adapter draws them, under timm's names: an encoder has other blocks."""
    tower: Any = build(EncoderId.parse(encoder_id), with_weights=True).tower
    weights: dict[str, torch.Tensor] = tower.trunk.state_dict()
    return weights


def batch(encoder: Encoder, size: ImageSize) -> Any:
    return np.stack([encoder.preprocess(photo, size, exact=True) for photo in photographs()])


def test_tokens_pooled_and_layers_equal_timms(encoder: Encoder) -> None:
    """At the native size, from timm's own transform: float32 on both sides, so only last digits may differ."""
    spec, model = encoder.spec, reference(encoder)
    transform: Any = create_transform(**resolve_data_config({}, model=model))
    pixels = torch.stack([transform(photo) for photo in photographs()])
    layers = encoder.tower.geometry.layers  # type: ignore[attr-defined]
    with torch.inference_mode():
        final = model.forward_features(pixels)
        pooled = model.forward_head(final)
        _, (raw,) = model.forward_intermediates(pixels, indices=[layers[1]])
    if final.ndim == 4:
        final = final.flatten(1, 2) if getattr(model, "output_fmt", "") == "NHWC" else final.flatten(2).transpose(1, 2)
    found = encoder.encode(batch(encoder, spec.size()), spec.outputs(tokens=TokenKind.HIDDEN, pooled=True))
    close(found.tokens, final)
    close(found.pooled, pooled)
    layer = encoder.encode(batch(encoder, spec.size()), spec.outputs(tokens=TokenKind.HIDDEN, layer=1))
    assert layer.tokens is not None
    assert layer.grid == tuple(raw.shape[2:])
    close(layer.tokens[:, layer.prefix_tokens :], raw.flatten(2).transpose(1, 2))


def test_the_spec_is_what_the_encoder_gives(encoder: Encoder) -> None:
    spec = encoder.spec
    assert spec.resolutions.only is None
    step = spec.resolutions.multiple
    sizes = [spec.image_size, ImageSize(spec.patch_size.height * 7, spec.patch_size.width * 5)]
    sizes.append(ImageSize(step.height * (150 // step.height), step.width * (101 // step.width)))
    for size in sizes:
        assert spec.size(size) == size
        found = encoder.encode(batch(encoder, size)[:1], spec.outputs(tokens=TokenKind.HIDDEN, pooled=True))
        assert found.grid == spec.grid(size)
        assert found.tokens is not None
        assert found.pooled is not None
        assert found.tokens.shape == (1, spec.prefix_tokens + found.grid.rows * found.grid.cols, spec.hidden_size)
        assert found.pooled.shape == (1, spec.pooled_size)
    for layer in range(spec.layers):
        found = encoder.encode(
            batch(encoder, spec.image_size)[:1], spec.outputs(tokens=TokenKind.HIDDEN, layer=layer, pooled=True)
        )
        assert found.tokens is not None
        assert found.tokens.shape[2] == (spec.layer_sizes[layer] if spec.layer_sizes else spec.hidden_size)


def test_a_batch_row_equals_the_single_image(encoder: Encoder) -> None:
    spec = encoder.spec
    pixels = batch(encoder, spec.size())
    outputs = spec.outputs(tokens=TokenKind.HIDDEN, pooled=True)
    whole, alone = encoder.encode(pixels, outputs), encoder.encode(pixels[2:3], outputs)
    for a, b in ((whole.tokens, alone.tokens), (whole.pooled, alone.pooled)):
        assert a is not None
        assert b is not None
        close(a[2], b[0])


def test_pixels_equal_timms_transform(encoder: Encoder) -> None:
    transform: Any = create_transform(**resolve_data_config({}, model=reference(encoder)))
    preprocessing = encoder.spec.preprocessing
    for photo in photographs():
        ours = encoder.preprocess(photo, encoder.spec.size(), exact=True).astype(np.float32).transpose(2, 0, 1) / 255
        mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
        np.testing.assert_allclose((ours - mean) / std, transform(photo).numpy(), atol=1e-5)


def test_an_image_only_encoder_says_so(encoder: Encoder) -> None:
    assert not encoder.spec.has_text
    with pytest.raises(OutputNotOffered, match="no text tower"):
        encoder.tokenize(["a cat"])


def test_a_position_table_is_resampled_as_timms_own() -> None:
    encoder = load("timm:vit_tiny_patch16_224@random")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    model.load_state_dict(weights_of(encoder.spec.id))
    size = ImageSize(160, 320)
    pixels = encoder.preprocess(photograph("coffee"), size)[None]
    found = encoder.encode(pixels, encoder.spec.outputs(tokens=TokenKind.HIDDEN))
    with torch.inference_mode():
        expected = model.forward_features(encoder.normalise(torch.from_numpy(pixels)))  # type: ignore[attr-defined]
    close(found.tokens, expected)


def test_a_tower_of_one_size_refuses_others() -> None:
    encoder = load("timm:mixer_s32_224@random")
    with pytest.raises(UnsupportedResolution, match=r"one fixed size.*224x224"):
        encoder.spec.size(ImageSize(256, 256))


def test_a_checkpoint_with_its_classifier_loads(tmp_path: Path) -> None:
    model = timm.create_model("convnext_atto", num_classes=10).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = load(f"timm:convnext_atto@{tmp_path}/model.safetensors")
    pixels = batch(encoder, encoder.spec.size())
    found = encoder.encode(pixels, encoder.spec.outputs(tokens=TokenKind.HIDDEN))
    with torch.inference_mode():
        expected = model.forward_features(encoder.normalise(torch.from_numpy(pixels)))  # type: ignore[attr-defined]
    close(found.tokens, expected.flatten(2).transpose(1, 2))


def test_a_checkpoint_that_does_not_fit_is_fatal_and_named(tmp_path: Path) -> None:
    weights = timm.create_model("convnext_atto", num_classes=0).state_dict()
    del weights["stem.0.weight"]
    weights["stem.9.weight"] = torch.zeros(1)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing: stem\.0\.weight.*unexpected: stem\.9\.weight"):
        load(f"timm:convnext_atto@{tmp_path}/model.safetensors")


def test_a_missing_file_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no file"):
        load(f"timm:convnext_atto@{tmp_path}/nothing.safetensors")


def test_an_unknown_name_names_the_closest() -> None:
    with pytest.raises(EncoderIdError, match="convnext_atto"):
        load("timm:convnext_ato@random")
