"""Every image processor class that a supported family uses, to the pixel, over the settings that checkpoints have.

The reference is transformers' PIL backend where a class has one; else its torchvision backend, whose values may be two
of 255 off, as it rounds between its two passes.
"""

from typing import Any

import numpy as np
import pytest
import transformers
from numpy.typing import NDArray
from PIL import Image

from encoders.adapters.hf.preprocessing import seen_by
from encoders.images.preprocess import preprocess
from tests.support.suites import split

EDGE, SQUARE = {"shortest_edge": 224}, {"height": 224, "width": 224}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("CLIPImageProcessor", {}),
    "clip-int": ("CLIPImageProcessor", {"size": 256, "crop_size": 224}),
    "clip-crop-larger": ("CLIPImageProcessor", {"size": {"shortest_edge": 200}, "crop_size": SQUARE}),
    "clip-crop-larger-by-odd": ("CLIPImageProcessor", {"size": {"shortest_edge": 217}, "crop_size": SQUARE}),
    "clip-squash": ("CLIPImageProcessor", {"size": SQUARE}),
    "clip-squash-crop": ("CLIPImageProcessor", {"size": {"height": 256, "width": 256}}),
    "clip-squash-no-crop": ("CLIPImageProcessor", {"size": {"height": 192, "width": 256}, "do_center_crop": False}),
    "clip-rectangle": ("CLIPImageProcessor", {"size": EDGE, "crop_size": {"height": 196, "width": 280}}),
    "clip-rectangle-tall": ("CLIPImageProcessor", {"size": EDGE, "crop_size": {"height": 336, "width": 192}}),
    "clip-nearest": ("CLIPImageProcessor", {"resample": 0}),
    "clip-lanczos": ("CLIPImageProcessor", {"resample": 1}),
    "chinese-clip": ("ChineseCLIPImageProcessor", {}),
    "bit": ("BitImageProcessor", {"size": {"shortest_edge": 256}}),
    "deit": ("DeiTImageProcessor", {}),
    "deit-384": ("DeiTImageProcessor", {"size": 438, "crop_size": 384}),
    "deit-crop-larger": ("DeiTImageProcessor", {"size": {"height": 181, "width": 181}, "crop_size": SQUARE}),
    "deit-no-crop": ("DeiTImageProcessor", {"do_center_crop": False}),
    "vit": ("ViTImageProcessor", {}),
    "vit-rectangle": ("ViTImageProcessor", {"size": {"height": 192, "width": 288}}),
    "beit": ("BeitImageProcessor", {}),
    "beit-crop": ("BeitImageProcessor", {"size": {"height": 256, "width": 256}, "do_center_crop": True}),
    "blip": ("BlipImageProcessor", {}),
    "siglip": ("SiglipImageProcessor", {}),
    "dpt": ("DPTImageProcessor", {}),
    "dpt-multiple": ("DPTImageProcessor", {"size": {"height": 380, "width": 500}, "ensure_multiple_of": 14}),
    "convnext-224": ("ConvNextImageProcessor", {"size": EDGE}),
    "convnext-384": ("ConvNextImageProcessor", {}),
    "convnext-1": ("ConvNextImageProcessor", {"size": EDGE, "crop_pct": 1.0}),
    "levit": ("LevitImageProcessor", {}),
    "levit-squash": ("LevitImageProcessor", {"size": {"height": 256, "width": 256}}),
    "efficientnet": ("EfficientNetImageProcessor", {}),
    "efficientnet-crop": ("EfficientNetImageProcessor", {"do_center_crop": True}),
    "mobilenet-v1": ("MobileNetV1ImageProcessor", {}),
    "mobilenet-v2": ("MobileNetV2ImageProcessor", {}),
    "segformer": ("SegformerImageProcessor", {}),
    "segformer-told-to-crop": ("SegformerImageProcessor", {"do_center_crop": True, "crop_size": SQUARE}),
    "gemma3-told-to-crop": ("Gemma3ImageProcessor", {"do_center_crop": True, "crop_size": SQUARE}),
    "llava-next": ("LlavaNextImageProcessor", {"size": {"shortest_edge": 256}, "crop_size": SQUARE}),
    "another-class-rule": ("CLIPImageProcessor", {"rescale_offset": True, "include_top": True}),
    "llava": ("LlavaImageProcessor", {}),
    "llava-padded": ("LlavaImageProcessor", {"do_pad": True}),
    "gemma3": ("Gemma3ImageProcessor", {}),
    "internvl": ("GotOcr2ImageProcessor", {"size": {"height": 448, "width": 448}}),
    "cohere2-vision": ("Cohere2VisionImageProcessor", {"crop_to_patches": False}),
    "dinov3": ("DINOv3ViTImageProcessor", {}),
}  # fmt: skip
RAW = {"do_rescale": False, "do_normalize": False}
SHAPES = {"wide": (400, 600), "tall": (600, 400), "strip": (37, 501), "native": (224, 224), "small": (61, 83)}
QUICK = [(name, "wide") for name in SETTINGS] + [(name, "small") for name in SETTINGS if "crop" in name]


def picture(height: int, width: int) -> Image.Image:
    """Smooth like a photograph, with edges and some noise."""
    rng = np.random.default_rng(height)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 80 * np.sin(x / (7 + 3 * k)) * np.cos(y / (11 - 2 * k)) + 40 * (x > width // 3) for k in range(3)]
    noisy = np.stack(waves, axis=-1) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def theirs(processor: Any, image: Image.Image, **options: Any) -> NDArray[Any]:
    values = processor(image, return_tensors="np", **options)["pixel_values"]
    first: NDArray[Any] = np.asarray(values).reshape(-1, *np.shape(values)[-3:])[0]
    return first.transpose(1, 2, 0)


def made(settings: str) -> Any:
    name, options = SETTINGS[settings]
    return getattr(transformers, f"{name}Pil", getattr(transformers, name))(**options)


CASES = [(settings, shape) for settings in SETTINGS for shape in SHAPES]


@pytest.mark.parametrize(("settings", "shape"), split(CASES, quick=QUICK))
def test_pixels_are_the_image_processors(settings: str, shape: str) -> None:
    processor, image = made(settings), picture(*SHAPES[shape])
    seen = seen_by(processor, configured=True)
    ours = preprocess(image, seen.preprocessing, seen.size)
    raw = theirs(processor, image, **RAW, **({"include_top": False} if "efficientnet" in settings else {}))
    assert raw.shape == ours.shape
    off = np.abs(raw.astype(np.float64) - ours)
    assert off.max() <= (0 if processor.backend == "pil" else 2)
    if processor.backend == "pil":
        mean, std = (np.array(v, np.float32) for v in (seen.preprocessing.mean, seen.preprocessing.std))
        values = (ours / np.float32(255) - mean) / std
        np.testing.assert_allclose(values, theirs(processor, image), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"rescale_offset": True},
        {"include_top": False},
        {"rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False, "do_normalize": False},
        {"do_rescale": False, "include_top": False},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_offset": True},
    ],
)
def test_values_are_efficientnets(options: dict[str, Any]) -> None:
    processor, image = transformers.EfficientNetImageProcessorPil(**options), picture(400, 600)
    seen = seen_by(processor, configured=True)
    ours = preprocess(image, seen.preprocessing, seen.size) / np.float32(255)
    mean, std = (np.array(v, np.float32) for v in (seen.preprocessing.mean, seen.preprocessing.std))
    np.testing.assert_allclose((ours - mean) / std, theirs(processor, image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("CLIPImageProcessor", {"do_resize": False}, "do_resize: false"),
        ("CLIPImageProcessor", {"do_center_crop": False}, "do_center_crop: false"),
        ("BitImageProcessor", {"size": {"shortest_edge": 300, "longest_edge": 400}}, "shortest_edge and longest_edge"),
        ("ViTImageProcessor", {"size": {"longest_edge": 400}}, "longest_edge"),
        ("ViTImageProcessor", {"resample": 4}, "filter box"),
        ("ViTImageProcessor", {"do_pad": True, "pad_size": {"height": 256, "width": 256}}, "pad_size"),
        ("DeiTImageProcessor", {"crop_size": {"height": 224, "width": 192}}, "other proportions"),
        ("ViTImageProcessor", {"image_mean": [0.5]}, "1 channels"),
        ("PerceiverImageProcessor", {}, "PerceiverImageProcessor has rules of its own"),
        ("MobileViTImageProcessor", {}, "MobileViTImageProcessor has rules of its own"),
        ("DonutImageProcessor", {}, "DonutImageProcessor has rules of its own"),
        ("DPTImageProcessor", {"do_pad": True, "size_divisor": 14}, "size_divisor"),
        ("ConvNextImageProcessor", {"size": {"height": 224, "width": 224}}, "shortest_edge"),
        ("LevitImageProcessor", {"do_pad": True, "pad_size": {"height": 256, "width": 256}}, "pad_size"),
        ("Gemma3ImageProcessor", {"size": {"shortest_edge": 256}}, "shortest_edge"),
        ("CLIPImageProcessor", {"image_std": [0.5, 0, 0.5]}, "image_std .* of 0"),
    ],
)
@pytest.mark.parametrize("backend", ["", "Pil"])
def test_a_setting_without_counterpart_is_refused_by_name(
    name: str, options: dict[str, Any], words: str, backend: str
) -> None:
    with pytest.raises(ValueError, match=words):
        seen_by(getattr(transformers, name + backend)(**options), configured=True)


@pytest.mark.parametrize(
    ("name", "options", "side"),
    [
        ("Siglip2ImageProcessor", {"max_num_patches": 400}, 320),
        ("Qwen2VLImageProcessor", {"max_pixels": 28 * 28 * 400}, 560),
        ("PixtralImageProcessor", {"size": {"longest_edge": 1024}}, 1024),
        ("DPTImageProcessor", {"size": {"height": 518, "width": 518}, "keep_aspect_ratio": True}, 518),
        ("Idefics3ImageProcessor", {"max_image_size": {"longest_edge": 364}}, 364),
        ("LlavaNextImageProcessor", {"size": {"shortest_edge": 336}, "crop_size": 336}, 336),
    ],
)
def test_models_of_many_sizes_are_squashed_to_the_one_asked_for(name: str, options: dict[str, Any], side: int) -> None:
    seen = seen_by(getattr(transformers, name)(**options), configured=True)
    assert seen.size == (side, side)
    assert seen.preprocessing.resize == "squash"
    assert seen.preprocessing.crop_pct == 1
