"""The hf adapter against transformers' own models, from the same folder: tiny random twins of every family.

Tolerance: both sides compute the same in float32, and may sum in another order, as of products that one side has in
one: 1e-5 on values of order 1.
"""

import copy
import inspect
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from encoders import ImageSize, Placement, TokenKind, load
from encoders.contract.errors import InvalidText, LayerNotFound, OutputNotOffered, UnsupportedResolution
from encoders.runtime.torch_encoder import TorchEncoder
from tests.support.hf_folders import FAMILIES, SIDE, Twins, one_thread, write
from tests.support.hf_tokenizers import TEXTS
from tests.support.suites import split

TOLERANCE = 1e-5
TOWERS = [name for name in FAMILIES if "llava" not in name]
CNNS = ["align", "convnext", "convnextv2", "dinov3-convnext", "resnet"]
VITS = [name for name in TOWERS if name not in CNNS]
QUICK = ["aimv2", "align", "beit", "chinese-clip", "clip", "clip-vision", "convnextv2", "data2vec-classifier"]
QUICK += [
    "depth-anything",
    "dinov2-registers",
    "dinov3",
    "dinov3-convnext",
    "mlcd",
    "resnet",
    "siglip",
    "siglip2",
    "swin",
]
QUICK += ["swinv2", "vit-mae", "vit-classifier"]
"""One of each kind."""
FIXED = ["aimv2", "aimv2-vision", "dpt-hybrid"]
"""Of one size."""
PATCH = ImageSize(8, 8)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with one_thread():
        yield Twins(tmp_path_factory.mktemp("hf"))


def pixels(size: ImageSize, count: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def vision_model(model: Any) -> Any:
    """The part of a whole model that sees, as transformers has it."""
    headed = [model.base_model_prefix] if "For" in type(model).__name__ else []
    for name in (*headed, "vision_model", "backbone"):
        model = getattr(model, name, None) or model
    return model


def swin_stages(vision: Any, values: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """The feature maps of Swin's stages, ahead of what halves the grid."""
    embedded, grid = vision.embeddings(values, **options)
    out = vision.encoder(embedded, grid, output_hidden_states=True, output_hidden_states_before_downsampling=True)
    return list(out.reshaped_hidden_states[1:])


def unshuffled(tokens: Tensor, ids_restore: Tensor) -> Tensor:
    """ViT-MAE's tokens in the order of the patches."""
    index = ids_restore[..., None].expand(-1, -1, tokens.shape[-1])
    return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, index)], dim=1)


def reference(encoder: TorchEncoder, model: Any, images: NDArray[np.uint8]) -> tuple[Any, list[Tensor]]:
    """Transformers' own output for these pixels, and the raw output of each of its layers."""
    values = encoder.normalise(torch.from_numpy(images))
    vision = vision_model(model)
    options: dict[str, Any] = {"output_hidden_states": True}
    kind = vision.config.model_type
    if kind == "siglip2_vision_model":
        rows, cols = images.shape[1] // 8, images.shape[2] // 8
        patches = values.permute(0, 2, 3, 1).reshape(len(images), rows, 8, cols, 8, 3)
        values = patches.permute(0, 1, 3, 2, 4, 5).reshape(len(images), rows * cols, -1)
        options["pixel_attention_mask"] = torch.ones(values.shape[:2], dtype=torch.int32)
        options["spatial_shapes"] = torch.tensor([[rows, cols]] * len(images))
    elif "interpolate_pos_encoding" in inspect.signature(vision.forward).parameters:
        options["interpolate_pos_encoding"] = images.shape[1:3] != (SIDE, SIDE)
    if kind == "vit_mae":
        vision.config.mask_ratio = 0.0
    with torch.inference_mode():
        if kind in ("swin", "swinv2"):
            options.pop("output_hidden_states")
            vision = copy.deepcopy(vision)  # Swin's blocks keep sizes
            return vision(values, **options), swin_stages(vision, values, options)
        out = vision(values, **options)
    layers = list(out.hidden_states[1:])
    if kind == "align_vision_model":  # one for every block: the last of each grid
        layers = [a for a, b in zip(layers, [*layers[1:], values], strict=True) if a.shape[2:] != b.shape[2:]]
    if kind == "vit_mae":
        layers = [unshuffled(layer, out.ids_restore) for layer in layers]
        out.last_hidden_state = unshuffled(out.last_hidden_state, out.ids_restore)
    return out, layers


def final_tokens(model: Any, out: Any) -> Tensor:
    vision = vision_model(model)
    if "feature_maps" in out:  # of a backbone, whose output has no final tokens by themselves
        mapped: Tensor = out.feature_maps[-1]
        return mapped
    with torch.inference_mode():
        if hasattr(vision, "pre_layrnorm"):  # of CLIP's make: last_hidden_state is before the norm
            normed: Tensor = vision.post_layernorm(out.last_hidden_state)
            return normed
    last: Tensor = out.last_hidden_state
    return last.flatten(2).transpose(1, 2) if last.ndim == 4 else last


def pooled_vector(encoder: TorchEncoder, model: Any, out: Any) -> Tensor:
    whole = getattr(model, "clip", model)
    with torch.inference_mode():
        if hasattr(whole, "visual_projection"):
            projected: Tensor = whole.visual_projection(out.pooler_output)
            return projected
        if hasattr(whole, "vision_proj"):
            projected = whole.vision_proj(out.last_hidden_state[:, 0])
            return projected
    if out.get("pooler_output") is None:
        final, prefix = final_tokens(model, out), encoder.spec.prefix_tokens
        return final[:, 0] if encoder.spec.pooling == "class" else final[:, prefix:].mean(dim=1)
    pooled: Tensor = out.pooler_output
    return pooled.flatten(1)


def assert_near(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def cosine(a: Any, b: Any) -> Any:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize("family", split(TOWERS, quick=QUICK))
def test_native_tokens_and_pooled_are_transformers(twins: Twins, family: str) -> None:
    encoder, model = twins(family)
    images = pixels(encoder.spec.size())
    encoded = encoder.encode(images, encoder.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN))
    out, _ = reference(encoder, model, images)
    assert_near(encoded.tokens, final_tokens(model, out))
    assert_near(encoded.pooled, pooled_vector(encoder, model, out))
    assert encoded.tokens is not None
    assert encoded.pooled is not None
    rows, cols = encoder.spec.grid()
    assert encoded.grid == (rows, cols)
    assert encoded.prefix_tokens == encoder.spec.prefix_tokens
    assert encoded.tokens.shape == (2, encoder.spec.prefix_tokens + rows * cols, encoder.spec.hidden_size)
    assert encoded.pooled.shape == (2, encoder.spec.pooled_size)


@pytest.mark.parametrize(
    ("family", "size"),
    split(
        product(
            (name for name in VITS if name not in FIXED), [ImageSize(48, 48), ImageSize(32, 64), ImageSize(72, 40)]
        ),
        quick=[(name, ImageSize(72, 40)) for name in QUICK if name in VITS and name not in FIXED],
    ),
)
def test_other_sizes_of_vits_are_transformers(twins: Twins, family: str, size: ImageSize) -> None:
    encoder, model = twins(family)
    images = pixels(encoder.spec.size(size))
    encoded = encoder.encode(images, encoder.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN))
    out, _ = reference(encoder, model, images)
    assert encoded.grid == (size.height // 8, size.width // 8) == encoder.spec.grid(size)
    assert_near(encoded.tokens, final_tokens(model, out))
    assert_near(encoded.pooled, pooled_vector(encoder, model, out))


@pytest.mark.parametrize(
    ("family", "size"),
    [
        *product(
            (name for name in CNNS if name != "align"), [ImageSize(32, 32), ImageSize(96, 64), ImageSize(79, 101)]
        ),
        *product(["align", "swin", "swin-classifier", "swinv2"], [ImageSize(40, 40), ImageSize(96, 64)]),
        *product(["swin", "swinv2"], [ImageSize(79, 101)]),
    ],
)
def test_other_sizes_of_stages_are_transformers(twins: Twins, family: str, size: ImageSize) -> None:
    encoder, model = twins(family)
    images = pixels(encoder.spec.size(size))
    encoded = encoder.encode(images, encoder.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN))
    out, layers = reference(encoder, model, images)
    assert encoded.grid == tuple(layers[-1].shape[2:]) == encoder.spec.grid(size)
    for k, layer in enumerate(layers):
        stage = encoder.encode(images, encoder.spec.outputs(tokens=TokenKind.HIDDEN, layer=k))
        assert stage.grid == tuple(layer.shape[2:])
        assert_near(stage.tokens, layer.flatten(2).transpose(1, 2))
    assert_near(encoded.tokens, final_tokens(model, out))
    assert_near(encoded.pooled, pooled_vector(encoder, model, out))


@pytest.mark.parametrize("family", split(TOWERS, quick=QUICK))
def test_layers_are_raw_block_outputs(twins: Twins, family: str) -> None:
    encoder, model = twins(family)
    images = pixels(encoder.spec.size())
    _, layers = reference(encoder, model, images)
    assert encoder.spec.layers == len(layers)
    for k, layer in enumerate(layers):
        theirs = layer.flatten(2).transpose(1, 2) if layer.ndim == 4 else layer
        for index in (k, k - len(layers)):
            encoded = encoder.encode(images, encoder.spec.outputs(tokens=TokenKind.HIDDEN, layer=index))
            assert_near(encoded.tokens, theirs)
            assert encoded.grid.rows * encoded.grid.cols + encoded.prefix_tokens == theirs.shape[1]
            if encoder.spec.layer_sizes:
                assert encoder.spec.layer_sizes[k] == theirs.shape[2]
    with pytest.raises(LayerNotFound):
        encoder.spec.outputs(tokens=TokenKind.HIDDEN, layer=len(layers))


@pytest.mark.parametrize("family", split(TOWERS, quick=QUICK))
def test_a_layer_and_the_pooled_vector_in_one_forward_are_those_of_two(twins: Twins, family: str) -> None:
    encoder, _ = twins(family)
    images = pixels(encoder.spec.size())
    both = encoder.encode(images, encoder.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN, layer=1))
    layer = encoder.encode(images, encoder.spec.outputs(tokens=TokenKind.HIDDEN, layer=1))
    pooled = encoder.encode(images, encoder.spec.outputs(pooled=True))
    np.testing.assert_array_equal(both.tokens, layer.tokens)
    np.testing.assert_array_equal(both.pooled, pooled.pooled)
    assert pooled.tokens is None
    assert layer.pooled is None


@pytest.mark.parametrize("family", split([*TOWERS, "llava"], quick=[*QUICK, "llava"]))
def test_a_row_of_a_batch_is_the_single_images(twins: Twins, family: str) -> None:
    encoder, _ = twins(family)
    images = pixels(encoder.spec.size(), count=3)
    outputs = encoder.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN)
    batch = encoder.encode(images, outputs)
    for index in range(3):
        single = encoder.encode(images[index : index + 1], outputs)
        assert_near(batch.row(index).tokens, single.row(0).tokens)
        assert_near(batch.row(index).pooled, single.row(0).pooled)


@pytest.mark.parametrize("family", split([*TOWERS, "llava"], quick=[*QUICK, "llava"]))
def test_bfloat16_points_where_float32_does(twins: Twins, family: str) -> None:
    """Eight bits of mantissa leave an error near 1 % a layer; its direction is random, so cosines stay above 0.99."""
    encoder, _ = twins(family)
    half = load(encoder.spec.id, Placement(dtype="bfloat16"))
    assert half.spec.revision == encoder.spec.revision
    size = encoder.spec.size(None if family in FIXED else ImageSize(64, 96))
    outputs = encoder.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN)
    images = pixels(size)
    full, low = encoder.encode(images, outputs), half.encode(images, outputs)
    assert low.tokens is not None
    assert str(low.tokens.dtype) == "bfloat16"
    assert cosine(full.tokens, low.tokens).mean() > 0.99
    assert cosine(full.pooled, low.pooled).min() > 0.99


def test_rotary_frequencies_stay_float32_in_bfloat16(twins: Twins) -> None:
    encoder, model = twins("dinov3")
    half = load(encoder.spec.id, Placement(dtype="bfloat16"))
    assert isinstance(half, TorchEncoder)
    tower: Any = half.tower
    assert tower.model.rope_embeddings.inv_freq.dtype == torch.float32
    assert torch.equal(tower.model.rope_embeddings.inv_freq, model.rope_embeddings.inv_freq)
    assert tower.model.embeddings.cls_token.dtype == torch.bfloat16


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_texts_and_logits_are_transformers(twins: Twins, family: str) -> None:
    """Through the whole of CLIPModel.forward / SiglipModel.forward, which also normalise and scale."""
    encoder, model = twins(family)
    images = pixels(encoder.spec.size())
    ids = encoder.tokenize(TEXTS).ids
    assert ids.shape == (len(TEXTS), encoder.spec.context_length)
    texts = encoder.encode_text(ids)
    options: dict[str, Any] = {}
    values = encoder.normalise(torch.from_numpy(images))
    if family == "siglip2":
        values = values.reshape(2, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, -1)
        options["pixel_attention_mask"] = torch.ones(2, 16, dtype=torch.int32)
        options["spatial_shapes"] = torch.tensor([[4, 4]] * 2)
    with torch.inference_mode():
        out = model(input_ids=torch.from_numpy(ids), pixel_values=values, **options)
    theirs = out.text_embeds
    assert cosine(texts, theirs).min() > 1 - 1e-6  # theirs are normalised
    scoring = encoder.spec.require_text()
    assert scoring.activation == ("softmax" if family == "clip" else "sigmoid")
    pooled = encoder.encode(images, encoder.spec.outputs(pooled=True)).pooled
    assert pooled is not None
    cosines = cosine(pooled[:, None], texts[None])
    logits = scoring.logit_scale * cosines + scoring.logit_bias
    np.testing.assert_allclose(logits, out.logits_per_image.numpy(), rtol=0, atol=1e-4 * max(1, scoring.logit_scale))


@pytest.mark.parametrize(
    "family",
    split(
        ["aimv2", "align", "altclip", "blip", "blip-retrieval", "chinese-clip", "clipseg", "metaclip2"],
        quick=["aimv2", "align", "blip-retrieval", "chinese-clip"],
    ),
)
def test_texts_and_logits_of_the_described_are_transformers(twins: Twins, family: str) -> None:
    """From the checkpoint's own tokenizer with its attention mask, padded to the longest text alone."""
    encoder, model = twins(family)
    images = pixels(encoder.spec.size())
    texts = [text.lower() for text in TEXTS]
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder.spec.id.removeprefix("hf:"))
    given = tokenizer(texts, padding=True, truncation=True, max_length=encoder.spec.context_length, return_tensors="pt")
    inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
    inputs["pixel_values"] = encoder.normalise(torch.from_numpy(images))
    with torch.inference_mode():
        if family == "blip-retrieval":
            theirs = model(**inputs, use_itm_head=False).itm_score
        else:
            theirs = getattr(model, "clip", model)(**inputs).logits_per_image
    tokenized = encoder.tokenize(texts)
    assert tokenized.ids.shape == (len(texts), encoder.spec.context_length)
    vectors = encoder.encode_text(tokenized.ids)
    pooled = encoder.encode(images, encoder.spec.outputs(pooled=True)).pooled
    assert pooled is not None
    scoring = encoder.spec.require_text()
    assert (scoring.activation, scoring.logit_bias) == ("softmax", 0)
    logits = scoring.logit_scale * cosine(pooled[:, None], vectors[None])
    np.testing.assert_allclose(logits, theirs.numpy(), rtol=0, atol=1e-5 * max(1, scoring.logit_scale))


TEXT_TOWERS = ["aimv2", "align", "altclip", "blip", "blip-retrieval", "chinese-clip", "clip", "clipseg", "metaclip2"]


@pytest.mark.parametrize("family", [*TEXT_TOWERS, "siglip", "siglip2"])
def test_a_text_gives_the_same_whatever_its_length_and_the_texts_beside_it(twins: Twins, family: str) -> None:
    """As transformers gives it with all of its padding."""
    encoder, model = twins(family)
    ids = encoder.tokenize([" ".join(["cat"] * count) for count in range(10)]).ids
    together = encoder.encode_text(ids)
    alone = np.concatenate([encoder.encode_text(ids[row : row + 1]) for row in range(len(ids))])
    np.testing.assert_allclose(together, alone, rtol=0, atol=TOLERANCE)
    given = {"input_ids": torch.from_numpy(ids)}
    if "siglip" not in family:
        assert encoder.text is not None
        lengths = encoder.text.lengths(ids)
        given["attention_mask"] = torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None]).long()
    with torch.inference_mode():
        if family == "blip-retrieval":
            theirs = model.text_proj(model.text_encoder(**given).last_hidden_state[:, 0])
        else:
            theirs = getattr(model, "clip", model).get_text_features(**given).pooler_output
    assert cosine(alone, theirs).min() > 1 - TOLERANCE


def test_the_context_is_what_a_text_tower_was_trained_on(twins: Twins, tmp_path: Path) -> None:
    """BERT's tokenizer allows 512, as do its positions; Chinese-CLIP was trained on 52."""
    assert twins("blip")[0].spec.context_length == 35
    assert twins("align")[0].spec.context_length == 40  # all its positions, though ALIGN's processor cuts at 64
    write("align", tmp_path / "align")
    settings = tmp_path / "align" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 9}))
    encoder = load(f"hf:{tmp_path / 'align'}")
    assert encoder.spec.context_length == 9
    assert encoder.tokenize(TEXTS).truncated.tolist() == [False, False, True]


def test_a_swin_keeps_nothing_of_a_smaller_image(twins: Twins) -> None:
    """transformers' own block keeps the window and the shift of the smallest grid that it has seen."""
    encoder, model = twins("swin")
    large, native = pixels(ImageSize(64, 64)), pixels(encoder.spec.size())
    outputs = encoder.spec.outputs(tokens=TokenKind.HIDDEN)
    before = encoder.encode(large, outputs).tokens
    encoder.encode(native, outputs)
    np.testing.assert_array_equal(encoder.encode(large, outputs).tokens, before)
    fresh = type(model)(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.inference_mode():
        theirs = fresh(encoder.normalise(torch.from_numpy(large)), interpolate_pos_encoding=True)
    assert_near(before, theirs.last_hidden_state)


def test_a_swin_v2_padded_to_whole_windows_gives_numbers_in_float16(twins: Twins) -> None:
    """The keys of its padding are zeros, and transformers divides them by their length."""
    encoder, _ = twins("swinv2")
    half = load(encoder.spec.id, Placement(dtype="float16"))
    images, outputs = pixels(ImageSize(48, 80)), encoder.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN)
    full, low = encoder.encode(images, outputs), half.encode(images, outputs)
    assert cosine(full.tokens, low.tokens).min() > 0.999
    assert cosine(full.pooled, low.pooled).min() > 0.999


def test_a_swin_is_not_run_where_no_window_fits(twins: Twins) -> None:
    with pytest.raises(UnsupportedResolution, match="at least 25"):
        twins("swin")[0].spec.size(ImageSize(24, 24))


def test_an_aimv2_with_learned_positions_has_one_size(twins: Twins) -> None:
    with pytest.raises(UnsupportedResolution, match="one fixed size"):
        twins("aimv2-vision")[0].spec.size(ImageSize(48, 48))


@pytest.mark.parametrize("family", ["clip", "clip-vision-projected"])
def test_projected_clip_tokens_lead_to_its_image_embedding(twins: Twins, family: str) -> None:
    encoder, model = twins(family)
    images = pixels(encoder.spec.size())
    out, _ = reference(encoder, model, images)
    encoded = encoder.encode(images, encoder.spec.outputs(pooled=True, tokens=TokenKind.PROJECTED))
    with torch.inference_mode():
        theirs = model.visual_projection(final_tokens(model, out))
    assert_near(encoded.tokens, theirs)
    assert encoded.tokens is not None
    assert_near(encoded.tokens[:, 0], encoded.pooled)
    last = encoder.encode(images, encoder.spec.outputs(tokens=TokenKind.PROJECTED, layer=-1))
    assert_near(last.tokens, encoded.tokens)


def test_dense_clip_features_are_the_last_blocks_values(twins: Twins) -> None:
    """As if the last block's attention were the identity, its residual and its MLP not there."""
    encoder, model = twins("clip")
    images = pixels(ImageSize(32, 48))
    _, layers = reference(encoder, model, images)
    block = model.vision_model.encoder.layers[-1]
    with torch.inference_mode():
        values = block.self_attn.v_proj(block.layer_norm1(layers[-2]))
        theirs = model.visual_projection(model.vision_model.post_layernorm(block.self_attn.out_proj(values)))
    encoded = encoder.encode(images, encoder.spec.outputs(pooled=True, tokens=TokenKind.DENSE))
    assert encoded.prefix_tokens == 0
    assert encoded.grid == (4, 6)
    assert_near(encoded.tokens, theirs[:, 1:])


@pytest.mark.parametrize("family", ["siglip", "siglip2", "siglip-vision"])
def test_dense_siglip_features_are_the_head_over_one_patch_alone(twins: Twins, family: str) -> None:
    encoder, model = twins(family)
    images = pixels(encoder.spec.size())
    out, _ = reference(encoder, model, images)
    encoded = encoder.encode(images, encoder.spec.outputs(tokens=TokenKind.DENSE))
    with torch.inference_mode():
        alone = out.last_hidden_state.reshape(-1, 1, 32)
        theirs = vision_model(model).head(alone).reshape(2, 16, 32)
    assert_near(encoded.tokens, theirs)
    with pytest.raises(OutputNotOffered):
        encoder.spec.outputs(tokens=TokenKind.PROJECTED)


@pytest.mark.parametrize("family", ["dinov2", "dinov3", "convnext", "vit", "resnet", "clip-vision", "llava"])
def test_without_a_joint_space_nothing_pretends_to_one(twins: Twins, family: str) -> None:
    spec = twins(family)[0].spec
    assert spec.embed_dim is None
    assert not spec.has_text
    with pytest.raises(OutputNotOffered):
        spec.outputs(tokens=TokenKind.DENSE)
    with pytest.raises(OutputNotOffered):
        twins(family)[0].tokenize(["a"])


def test_native_is_what_the_processor_makes_where_positions_are_resampled_anyway(twins: Twins, tmp_path: Path) -> None:
    """DINOv2's checkpoints: positions for 518 pixels, a processor that crops 224. CLIP's tower is bound to its own."""
    for family, expected in (("dinov2", 56), ("dinov3", 56), ("clip-vision", SIDE)):
        model = write(family, tmp_path / family)
        settings = {"image_processor_type": "BitImageProcessor", "size": 64, "crop_size": 56}
        (tmp_path / family / "preprocessor_config.json").write_text(json.dumps(settings))
        encoder = load(f"hf:{tmp_path / family}")
        assert isinstance(encoder, TorchEncoder)
        assert encoder.spec.image_size == (expected, expected)
        assert encoder.spec.preprocessing.crop_pct == 0.875
        images = pixels(encoder.spec.size())
        encoded = encoder.encode(images, encoder.spec.outputs(tokens=TokenKind.HIDDEN))
        out, _ = reference(encoder, model, images)
        assert_near(encoded.tokens, final_tokens(model, out))


def test_a_text_that_is_no_text_is_the_callers_error(twins: Twins) -> None:
    with pytest.raises(InvalidText):
        twins("clip")[0].tokenize(["a lone surrogate \ud800"])


def test_sizes_that_are_no_multiple_of_the_patch_are_refused(twins: Twins) -> None:
    with pytest.raises(UnsupportedResolution) as caught:
        twins("clip")[0].spec.size(ImageSize(36, 40))
    assert caught.value.facts["nearest"] == [[32, 40], [40, 40]]


@pytest.mark.parametrize(
    ("family", "kind", "layers", "prefix", "pooling"),
    [
        ("clip", "vit", 4, 1, "class"),
        ("siglip", "vit", 4, 0, "attention"),
        ("dinov2-registers", "vit", 4, 4, "class"),
        ("dinov3", "vit", 4, 5, "class"),
        ("dinov3-convnext", "convnext", 4, 1, "mean"),
        ("convnextv2", "convnext", 4, 0, "mean"),
        ("resnet", "resnet", 4, 0, "mean"),
        ("llava", "vit", 4, 1, "class"),
        ("llava-siglip", "vit", 4, 0, "mean"),
    ],
)
def test_the_spec_says_what_it_is(twins: Twins, family: str, kind: str, layers: int, prefix: int, pooling: str) -> None:
    spec = twins(family)[0].spec
    assert (spec.family, spec.layers, spec.prefix_tokens, spec.pooling) == (kind, layers, prefix, pooling)
    assert spec.id.startswith("hf:/")
    assert spec.parameters > 0
    assert len(spec.revision) == 12
