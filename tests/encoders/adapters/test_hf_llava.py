"""LLaVA-style checkpoints: the vision tower and the projector give what transformers' own model makes of pixels.

Tolerance: as in test_hf.py.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from encoders import ImageSize, TokenKind, load
from encoders.contract.errors import EncoderIdError, OutputNotOffered, WeightsError
from encoders.runtime.torch_encoder import TorchEncoder
from tests.support.hf_folders import Twins, one_thread, write

TOLERANCE = 1e-5
LLAVAS = ["llava", "llava-layers", "llava-full", "llava-siglip", "llava-next", "llava-onevision", "vipllava"]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with one_thread():
        yield Twins(tmp_path_factory.mktemp("hf-llava"))


def pixels(size: ImageSize, count: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def assert_near(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def hidden_states(encoder: TorchEncoder, model: Any, images: NDArray[np.uint8]) -> tuple[Tensor, ...]:
    """transformers' own: the embeddings, then every block's output."""
    with torch.inference_mode():
        values = encoder.normalise(torch.from_numpy(images))
        states: tuple[Tensor, ...] = model.model.vision_tower(
            values, output_hidden_states=True, interpolate_pos_encoding=images.shape[1:3] != (32, 32)
        ).hidden_states
    return states


@pytest.mark.parametrize("family", ["llava", "llava-layers", "llava-full", "llava-siglip", "vipllava"])
def test_projected_tokens_are_the_models_own_image_features(twins: Twins, family: str) -> None:
    encoder, model = twins(family)
    images = pixels(encoder.spec.size())
    encoded = encoder.encode(images, encoder.spec.outputs(tokens=TokenKind.PROJECTED))
    with torch.inference_mode():
        features = model.get_image_features(pixel_values=encoder.normalise(torch.from_numpy(images))).pooler_output
    theirs = torch.stack(list(features))
    assert_near(encoded.tokens, theirs.numpy())
    assert encoded.prefix_tokens == (1 if family == "llava-full" else 0)
    assert encoded.tokens is not None
    assert encoded.tokens.shape == (2, encoded.prefix_tokens + 16, 48)


@pytest.mark.parametrize("family", LLAVAS)
def test_the_projector_reads_the_configured_layers_at_any_size(twins: Twins, family: str) -> None:
    encoder, model = twins(family)
    images = pixels(ImageSize(48, 32))
    encoded = encoder.encode(images, encoder.spec.outputs(pooled=True, tokens=TokenKind.PROJECTED))
    states = hidden_states(encoder, model, images)
    chosen = getattr(model.config, "vision_feature_layers", None) or model.config.vision_feature_layer
    layers = [chosen] if isinstance(chosen, int) else chosen
    first = 1 if encoder.spec.prefix_tokens and family != "llava-full" else 0
    with torch.inference_mode():
        theirs = model.model.multi_modal_projector(torch.cat([states[k][:, first:] for k in layers], dim=-1))
    assert encoded.grid == (6, 4)
    assert_near(encoded.tokens, theirs.numpy())
    assert encoded.pooled is not None
    assert encoded.pooled.shape == (2, 32)


@pytest.mark.parametrize("layer", [-2, 1])
def test_layer_k_plus_projector_is_transformers(twins: Twins, layer: int) -> None:
    encoder, model = twins("llava")
    images = pixels(encoder.spec.size())
    states = hidden_states(encoder, model, images)[1:]
    hidden = encoder.encode(images, encoder.spec.outputs(tokens=TokenKind.HIDDEN, layer=layer))
    projected = encoder.encode(images, encoder.spec.outputs(tokens=TokenKind.PROJECTED, layer=layer))
    assert_near(hidden.tokens, states[layer].numpy())
    with torch.inference_mode():
        theirs = model.model.multi_modal_projector(states[layer][:, 1:])
    assert_near(projected.tokens, theirs.numpy())
    if layer == -2:  # what LLaVA itself reads
        own = encoder.encode(images, encoder.spec.outputs(tokens=TokenKind.PROJECTED))
        np.testing.assert_array_equal(own.tokens, projected.tokens)


def test_generation_from_our_tokens_is_generation_from_the_image(twins: Twins) -> None:
    encoder, model = twins("llava")
    images = pixels(encoder.spec.size(), count=1)
    prompt = torch.tensor([[1, 5, *[59] * 16, 7, 11]])
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    from_pixels = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values=encoder.normalise(torch.from_numpy(images)),
        **options,
    )
    tokens = encoder.encode(images, encoder.spec.outputs(tokens=TokenKind.PROJECTED)).tokens
    embeds = model.get_input_embeddings()(prompt).detach().clone()
    embeds[0, prompt[0] == 59] = torch.from_numpy(tokens)[0]
    from_tokens = model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(prompt), **options)
    assert from_tokens.tolist() == from_pixels[:, prompt.shape[1] :].tolist()
    assert from_tokens.shape == (1, 8)
    blind = model.generate(
        inputs_embeds=torch.where((prompt == 59)[..., None], 0.0, embeds),
        attention_mask=torch.ones_like(prompt),
        **options,
    )
    assert blind.tolist() != from_tokens.tolist()  # the words do depend on the image


def test_a_projector_of_many_layers_takes_no_single_one(twins: Twins) -> None:
    encoder, _ = twins("llava-layers")
    with pytest.raises(OutputNotOffered, match="3 layers at once"):
        encoder.encode(pixels(encoder.spec.size()), encoder.spec.outputs(tokens=TokenKind.PROJECTED, layer=-2))


@pytest.mark.parametrize("family", ["llava", "llava-next", "llava-onevision", "vipllava"])
def test_the_language_model_is_not_loaded(twins: Twins, family: str) -> None:
    encoder, model = twins(family)
    seeing = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if any(part in name for part in ("vision_tower", "multi_modal_projector", "image_newline"))
    )
    assert encoder.spec.parameters == seeing
    assert not encoder.spec.has_text


def test_keys_of_published_checkpoints_load(twins: Twins, tmp_path: Any) -> None:
    """llava-hf's files say vision_tower.vision_model.encoder..., and hold a language model whose keys may be any."""
    encoder, _ = twins("llava")
    write("llava", tmp_path)
    weights = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    weights["language_model.model.layers.9.unheard_of.weight"] = torch.zeros(3)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    again = load(f"hf:{tmp_path}")
    assert again.spec.revision == encoder.spec.revision


@pytest.mark.parametrize("part", ["multi_modal_projector.linear_2", "vision_tower.encoder.layers.0.mlp.fc1"])
def test_a_missing_key_of_the_seeing_half_is_named(tmp_path: Any, part: str) -> None:
    write("llava", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights[f"{part}.renamed"] = weights.pop(f"{part}.bias")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError) as caught:
        load(f"hf:{tmp_path}")
    assert f"{part}.bias" in str(caught.value)
    assert f"{part}.renamed" in str(caught.value)


def test_an_unknown_vision_tower_is_refused(tmp_path: Any) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava", "vision_config": {"model_type": "swin"}}')
    with pytest.raises(EncoderIdError, match=r"'swin'.*dinov2.*pixtral"):
        load(f"hf:{tmp_path}@random")


SHAPES = [(64, 64), (90, 40), (40, 90), (31, 100), (20, 20), (200, 40), (33, 32)]


def theirs_of(family: str, model: Any, image: Image.Image) -> Tensor:
    """transformers' own processor and features."""
    side = {"height": 32, "width": 32}
    name = {"llava-next": "LlavaNext", "llava-onevision": "LlavaOnevision"}[family]
    processor = getattr(transformers, f"{name}ImageProcessorPil")(
        size=side, crop_size=side, image_grid_pinpoints=model.config.image_grid_pinpoints
    )
    with torch.inference_mode():
        given = processor(image, return_tensors="pt")
        options = {"vision_aspect_ratio": "anyres_max_2"} if family == "llava-onevision" else {}
        features = model.get_image_features(given["pixel_values"], image_sizes=given["image_sizes"], **options)
    tokens: Tensor = features.pooler_output[0]
    return tokens


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("family", ["llava-next", "llava-onevision"])
def test_views_joined_are_what_the_language_model_reads(twins: Twins, family: str, size: tuple[int, int]) -> None:
    encoder, model = twins(family)
    values = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(values)
    views = encoder.cut(image, exact=True)
    encoded = encoder.encode(np.stack(views), encoder.spec.outputs(tokens=TokenKind.PROJECTED))
    assert encoded.tokens is not None
    joined = encoder.join(list(encoded.tokens), ImageSize(image.height, image.width))
    theirs = theirs_of(family, model, image)
    assert joined.shape == theirs.shape
    assert_near(joined, theirs.numpy())
    assert len(views) <= encoder.spec.most_views
    assert len(joined) <= encoder.spec.most_joined


def test_a_model_that_cuts_no_images_says_so(twins: Twins) -> None:
    encoder, _ = twins("llava")
    assert encoder.spec.most_views == 0
    with pytest.raises(OutputNotOffered, match="does not cut images"):
        encoder.cut(Image.new("RGB", (9, 9)))
