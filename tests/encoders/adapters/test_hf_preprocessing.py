"""Preprocessing against transformers' image processors on photographs.

With their PIL backend: equal to the pixel. With their torchvision backend, which rounds between its two passes: within
one step of 255 but for one value in a thousand, which is two steps off. DINOv3 has that backend alone.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from encoders import ImageSize, preprocess
from encoders.adapters.hf.checkpoint import Checkpoint
from encoders.adapters.hf.preprocessing import Seen, seen_by
from encoders.adapters.registry import EncoderId
from tests.support.hf_folders import FAMILIES
from tests.support.photographs import NAMES, photograph

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPImageProcessor", {}),
    "clip-336": (
        "CLIPImageProcessor",
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    ),
    "siglip": ("SiglipImageProcessor", {}),
    "siglip2-fixed": ("SiglipImageProcessor", {"size": {"height": 256, "width": 256}, "resample": 2}),
    "dinov2": ("BitImageProcessor", {"size": {"shortest_edge": 256}}),
    "dinov2-518": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 518}, "crop_size": {"height": 392, "width": 392}},
    ),
    "vit": ("ViTImageProcessor", {}),
    "convnext-224": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}),
    "convnext-384": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "resnet-50": ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}, "crop_pct": 0.95, "resample": 3}),
    "llava-padded": ("LlavaImageProcessor", {"do_pad": True}),
}
RAW: dict[str, Any] = {"do_rescale": False, "do_normalize": False}


def raw(processor: Any, name: str) -> NDArray[Any]:
    """The processor's image before it rescales and normalises, [H, W, 3]."""
    values = processor(photograph(name), return_tensors="pt", **RAW)["pixel_values"]
    return np.asarray(values.squeeze(0).permute(1, 2, 0))


def ours(seen: Seen, name: str) -> NDArray[np.uint8]:
    return preprocess(photograph(name), seen.preprocessing, seen.size)


@pytest.mark.parametrize("photo", NAMES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_pixels_are_those_of_the_pil_processor(settings: str, photo: str) -> None:
    name, options = SETTINGS[settings]
    processor = getattr(transformers, f"{name}Pil")(**options)
    np.testing.assert_array_equal(ours(seen_by(processor, configured=True), photo), raw(processor, photo))


@pytest.mark.parametrize("photo", NAMES)
@pytest.mark.parametrize("settings", [*SETTINGS, "dinov3"])
def test_pixels_are_all_but_those_of_the_torchvision_processor(settings: str, photo: str) -> None:
    name, options = {**SETTINGS, "dinov3": ("DINOv3ViTImageProcessor", {})}[settings]
    processor = getattr(transformers, name)(**options)
    difference = np.abs(ours(seen_by(processor, configured=True), photo).astype(float) - raw(processor, photo))
    assert difference.max() <= 2
    assert (difference > 1).mean() < 1e-3


@pytest.mark.parametrize("name", ["LlavaNextImageProcessorPil", "LlavaOnevisionImageProcessorPil"])
def test_any_resolution_models_are_given_their_base_view(name: str) -> None:
    processor = getattr(transformers, name)()
    theirs = processor(photograph("coffee"), return_tensors="pt", **RAW)["pixel_values"][0, 0]
    seen = seen_by(processor, configured=True)
    np.testing.assert_array_equal(ours(seen, "coffee"), np.asarray(theirs.permute(1, 2, 0)))


def test_naflex_sees_a_square_image_as_its_processor_does() -> None:
    processor = transformers.Siglip2ImageProcessorPil()
    patches = processor(photograph("astronaut"), return_tensors="pt", **RAW)["pixel_values"][0]
    theirs = patches.reshape(16, 16, 16, 16, 3).permute(0, 2, 1, 3, 4).reshape(256, 256, 3)
    seen = seen_by(processor, configured=True)
    assert seen.size == (256, 256)
    np.testing.assert_array_equal(ours(seen, "astronaut"), theirs.numpy())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
    ],
)
def test_values_are_scaled_and_normalised_as_configured(options: dict[str, Any]) -> None:
    processor = transformers.CLIPImageProcessorPil(**options)
    seen = seen_by(processor, configured=True)
    theirs = processor(photograph("chelsea"), return_tensors="np")["pixel_values"][0]
    values = torch.from_numpy(ours(seen, "chelsea")).permute(2, 0, 1).numpy() / np.float32(255)
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (seen.preprocessing.mean, seen.preprocessing.std))
    np.testing.assert_allclose((values - mean) / std, theirs, rtol=1e-5, atol=1e-5)


def written(folder: Path, family: str, **settings: Any) -> Checkpoint:
    FAMILIES[family][1]().save_pretrained(folder)
    if settings:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return Checkpoint.of(EncoderId("hf", str(folder)), with_weights=True)


@pytest.mark.parametrize(
    ("family", "settings", "size", "crop_pct"),
    [
        ("clip", {"feature_extractor_type": "CLIPFeatureExtractor", "size": 336, "crop_size": 336}, 336, 1.0),
        ("vit", {"feature_extractor_type": "ViTFeatureExtractor", "size": 384}, 384, 1.0),
        ("convnext", {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.95}, 224, 0.95),
        ("dinov2", {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}}, 224, 0.875),
        ("siglip2", {"image_processor_type": "Siglip2ImageProcessorFast", "max_num_patches": 400}, 320, 1.0),
    ],
)
def test_files_old_and_new_are_read(
    tmp_path: Path, family: str, settings: dict[str, Any], size: int, crop_pct: float
) -> None:
    seen = written(tmp_path, family, **settings).seen("ViTImageProcessor")
    assert seen.configured
    assert seen.size == (size, size)
    assert seen.preprocessing.crop_pct == crop_pct


def test_a_processor_saved_inside_processor_config_is_read(tmp_path: Path) -> None:
    settings = {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.1, 0.2, 0.3]}
    checkpoint = written(tmp_path, "clip")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert checkpoint.seen("ViTImageProcessor").preprocessing.mean == (0.1, 0.2, 0.3)


def test_without_a_file_the_familys_defaults_apply(tmp_path: Path) -> None:
    seen = written(tmp_path, "clip").seen("CLIPImageProcessor")
    assert not seen.configured
    assert seen.preprocessing.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert seen.preprocessing.resize == "shortest"


def test_a_crop_keeps_its_share_at_other_sizes() -> None:
    seen = seen_by(transformers.BitImageProcessor(size={"shortest_edge": 256}), configured=True)
    image = photograph("astronaut")  # 512 x 512: the crop is its middle 448 pixels
    middle = image.crop((32, 32, 480, 480))
    twice = preprocess(image, seen.preprocessing, ImageSize(448, 448))
    np.testing.assert_array_equal(twice, np.asarray(middle))
