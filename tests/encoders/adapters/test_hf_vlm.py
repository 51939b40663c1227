"""Vision-language models: what the vision half gives is what transformers' own whole model makes of the same pixels.

Tolerance: 1e-5 of the largest value, for another order of the same sums.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import vision_utils

from encoders import ImageSize, TokenKind, load
from encoders.adapters.registry import blueprint
from encoders.contract.errors import EncoderIdError, OutputNotOffered, UnsupportedResolution, WeightsError
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.trace import Trace
from tests.support.hf_folders import PATCH, VLMS, Twins, one_thread, write
from tests.support.suites import split

TOLERANCE = 1e-5
PACKED = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe", "glm4v"]
PIXTRAL = ["llava-pixtral", "mistral3", "mistral3-layers"]
FREE = [*PACKED, *PIXTRAL, "paligemma", "blip-2", "llava-dinov2"]
"""Those that take other sizes than their own."""
OTHER = ImageSize(48, 80)
"""Not whole windows of Qwen2.5-VL, so that some are cut."""
QUICK = ["qwen2.5-vl", "internvl", "gemma3", "mistral3", "blip-2"]


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with one_thread():
        yield Twins(tmp_path_factory.mktemp("hf-vlm"))


def size_of(family: str, encoder: TorchEncoder) -> ImageSize:
    return OTHER if family in FREE else encoder.spec.image_size


def pixels(size: ImageSize, count: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def tower(model: Any) -> Any:
    names = ("visual", "vision_tower", "vision_model")
    whole = getattr(model, "model", model)
    return next(getattr(whole, name) for name in names if hasattr(whole, name))


def inputs(family: str, encoder: TorchEncoder, images: NDArray[np.uint8]) -> dict[str, Any]:
    """What transformers' processor of the family makes of images of this size, as get_image_features takes it."""
    if family in PACKED:
        name = "Glm4vImageProcessor" if family == "glm4v" else "Qwen2VLImageProcessor"
        processor = getattr(transformers, name)(patch_size=PATCH, do_resize=False)
        made = processor(images=list(images), return_tensors="pt")
        return {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
    values = encoder.normalise(torch.from_numpy(images))
    if family in PIXTRAL:
        return {"pixel_values": values, "image_sizes": torch.tensor([images.shape[1:3]] * len(images))}
    if family in ("idefics3", "smolvlm"):
        return {"pixel_values": values[:, None]}
    if family in ("paligemma", "blip-2"):
        return {"pixel_values": values, "interpolate_pos_encoding": True}
    return {"pixel_values": values}


def image_features(family: str, encoder: TorchEncoder, model: Any, images: NDArray[np.uint8]) -> Tensor:
    with torch.inference_mode():
        features = model.get_image_features(**inputs(family, encoder, images), return_dict=True).pooler_output
    return features if isinstance(features, Tensor) else torch.stack(list(features))


def hidden(family: str, encoder: TorchEncoder, model: Any, images: NDArray[np.uint8]) -> tuple[Tensor, list[Tensor]]:
    """transformers' own final tokens and those of every block, in row-major order."""
    options, vision = inputs(family, encoder, images), tower(model)
    first = options.pop("pixel_values")
    if "image_grid_thw" in options:
        options["grid_thw"] = options.pop("image_grid_thw")
    if family in ("idefics3", "smolvlm"):
        first = first[:, 0]
    normed: list[Tensor] = []
    if family == "glm4v":  # its last_hidden_state is merged already
        handle = vision.post_layernorm.register_forward_hook(lambda module, given, output: normed.append(output))
    with torch.inference_mode():
        out = vision(first, output_hidden_states=True, return_dict=True, **options)
    states = list(out.hidden_states[-encoder.spec.layers :])
    final = out.last_hidden_state
    if family == "glm4v":
        handle.remove()
        final, states = normed[0], [*out.hidden_states[1 : encoder.spec.layers], torch.empty(0)]
    places = row_major(family, vision, ImageSize(*images.shape[1:3]))

    def ordered(tokens: Tensor) -> Tensor:
        return tokens.reshape(len(images), -1, tokens.shape[-1])[:, places]

    return ordered(final), [ordered(state) if len(state) else state for state in states]


def row_major(family: str, vision: Any, size: ImageSize) -> list[int]:
    """Where transformers keeps the token of each place of the grid, row by row."""
    rows, cols = (side // PATCH for side in size)
    if family not in PACKED:
        prefix = 1 if family in ("internvl", "blip-2", "llava-dinov2") else 0
        return list(range(prefix + rows * cols))
    places = {}
    order = [
        (row, col)
        for block_row in range(0, rows, 2)
        for block_col in range(0, cols, 2)
        for row in (block_row, block_row + 1)
        for col in (block_col, block_col + 1)
    ]
    if family == "qwen2.5-vl":
        blocks, _ = vision_utils.get_vision_window_index(
            torch.tensor([[1, rows, cols]]),
            spatial_merge_size=2,
            window_size=vision.config.window_size,
            patch_size=PATCH,
        )
        order = [order[4 * block + k] for block in blocks.tolist() for k in range(4)]
    for place, at in enumerate(order):
        places[at] = place
    return [places[row, col] for row in range(rows) for col in range(cols)]


def assert_near(ours: Any, theirs: Tensor) -> None:
    scale = float(theirs.abs().max())
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize("family", split(VLMS, quick=QUICK))
def test_projected_tokens_are_what_the_language_model_reads(twins: Twins, family: str) -> None:
    encoder, model = twins(family)
    spec, size = encoder.spec, size_of(family, encoder)
    images, outputs = pixels(size), encoder.spec.outputs(pooled=True, tokens=TokenKind.PROJECTED)
    encoded = encoder.encode(images, outputs)
    theirs = image_features(family, encoder, model, images)
    assert_near(encoded.tokens, theirs)
    assert spec.mismatch(encoded, images=2, size=size, outputs=outputs) is None
    assert encoded.grid.rows * encoded.grid.cols == theirs.shape[1] == spec.token_count(size, outputs)
    one = encoder.encode(images[1:], outputs)
    assert_near(one.tokens, theirs[1:])


@pytest.mark.parametrize("family", split(VLMS, quick=QUICK))
def test_hidden_tokens_are_row_major_and_transformers_own(twins: Twins, family: str) -> None:
    encoder, model = twins(family)
    spec, size = encoder.spec, size_of(family, encoder)
    images = pixels(size)
    final, states = hidden(family, encoder, model, images)
    encoded = encoder.encode(images, spec.outputs(pooled=True, tokens=TokenKind.HIDDEN))
    assert_near(encoded.tokens, final)
    assert encoded.grid == (size.height // PATCH, size.width // PATCH) == spec.grid(size)
    assert_near(encoded.pooled, final[:, 0] if spec.pooling == "class" else final[:, spec.prefix_tokens :].mean(dim=1))
    for layer in (-2, 0):
        outputs = spec.outputs(pooled=True, tokens=TokenKind.HIDDEN, layer=layer)
        encoded = encoder.encode(images, outputs)
        assert_near(encoded.tokens, states[layer])
        assert spec.mismatch(encoded, images=2, size=size, outputs=outputs) is None


@pytest.mark.parametrize("family", split(VLMS, quick=QUICK))
def test_the_plan_is_what_a_forward_takes_to_the_byte(twins: Twins, tmp_path: Path, family: str) -> None:
    encoder, _ = twins(family)
    size = size_of(family, encoder)
    write(family, tmp_path)
    drawn = blueprint(f"hf:{tmp_path}")
    for outputs in (
        encoder.spec.outputs(pooled=True, tokens=TokenKind.PROJECTED),
        encoder.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN),
        encoder.spec.outputs(tokens=TokenKind.HIDDEN, layer=-2),
    ):
        cost = drawn.cost(size, outputs, device="cpu")
        for count in (1, 3):
            with torch.inference_mode(), Trace() as trace:
                encoder.run(torch.from_numpy(pixels(size, count)), outputs)
            assert trace.peak == cost.requested(count)
        assert drawn.cost(size, outputs, device="cuda").tokens == cost.tokens


@pytest.mark.parametrize("family", split(VLMS, quick=QUICK))
def test_the_language_model_is_neither_read_nor_kept(twins: Twins, family: str) -> None:
    encoder, model = twins(family)
    language = ("language_model", "text_model", "lm_head")
    seeing = sum(p.numel() for name, p in model.named_parameters() if not any(part in name for part in language))
    assert encoder.spec.parameters == seeing


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "glm4v", "mistral3"])
def test_models_of_native_resolution_take_any_size_their_patches_allow(twins: Twins, family: str) -> None:
    encoder, _ = twins(family)
    spec = encoder.spec
    assert spec.image_size == (448, 448)
    assert spec.size(ImageSize(16, 160)) == (16, 160)
    with pytest.raises(UnsupportedResolution, match="a multiple of 16"):
        spec.size(ImageSize(24, 32))


def test_a_single_layer_is_not_projected(twins: Twins) -> None:
    encoder, _ = twins("gemma3")
    with pytest.raises(OutputNotOffered, match="layers that its configuration names"):
        encoder.encode(pixels(encoder.spec.image_size), encoder.spec.outputs(tokens=TokenKind.PROJECTED, layer=1))


NEW_KEYS = {
    "qwen2-vl": {"visual.": "model.visual.", "model.": "model.language_model."},
    "gemma3": {
        "vision_tower.": "model.vision_tower.vision_model.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "language_model.model.": "model.language_model.",
    },
    "internvl": {
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "language_model.model.": "model.language_model.",
    },
}
"""Where newer checkpoints say it otherwise than `save_pretrained`, by the start of a key."""


@pytest.mark.parametrize("family", NEW_KEYS)
def test_both_layouts_of_keys_load(twins: Twins, tmp_path: Path, family: str) -> None:
    encoder, _ = twins(family)
    write(family, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    renamed = {}
    for name, tensor in weights.items():
        start = next((start for start in NEW_KEYS[family] if name.startswith(start)), "")
        renamed[NEW_KEYS[family].get(start, "") + name.removeprefix(start)] = tensor
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    assert load(f"hf:{tmp_path}").spec.revision == encoder.spec.revision


def quantised(weights: dict[str, Tensor], method: str, *, seeing: bool) -> dict[str, Tensor]:
    """The matrices of the language model as `method` saves them, and those of the seeing half if it is `seeing`."""
    found = {}
    for name, tensor in weights.items():
        sees = any(part in name for part in ("visual", "vision_tower", "multi_modal_projector"))
        if tensor.ndim != 2 or (sees and not seeing):
            found[name] = tensor
        elif method == "fp8":
            found |= {name: tensor.to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1, 1)}
        else:
            numbers = torch.zeros(4, 4, dtype=torch.int32)
            found |= {name.replace("weight", part): numbers.clone() for part in ("qweight", "qzeros")}
    return found


@pytest.mark.parametrize("method", ["fp8", "awq"])
@pytest.mark.parametrize("family", ["qwen2-vl", "qwen3-vl-moe", "mistral3", "llava"])
def test_the_language_model_alone_may_be_quantised(twins: Twins, tmp_path: Path, family: str, method: str) -> None:
    encoder, _ = twins(family)
    write(family, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    save_file(quantised(weights, method, seeing=False), tmp_path / "model.safetensors", {"format": "pt"})
    assert load(f"hf:{tmp_path}").spec.revision == encoder.spec.revision
    save_file(quantised(weights, method, seeing=True), tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="quantised"):
        load(f"hf:{tmp_path}")


def test_another_tower_inside_is_refused(tmp_path: Path) -> None:
    config = transformers.PaliGemmaConfig(vision_config={"model_type": "clip_vision_model"}, text_config={})
    config.save_pretrained(tmp_path)
    with pytest.raises(EncoderIdError, match=r"'clip_vision_model'.*Supported: siglip_vision_model"):
        load(f"hf:{tmp_path}@random")


def test_native_is_at_most_what_the_processor_makes(tmp_path: Path) -> None:
    VLMS["qwen2-vl"][1]().save_pretrained(tmp_path)
    transformers.Qwen2VLImageProcessor(patch_size=PATCH, min_pixels=16 * 16, max_pixels=100 * 100).save_pretrained(
        tmp_path
    )
    spec = load(f"hf:{tmp_path}@random").spec
    assert spec.image_size == (96, 96)
    assert spec.preprocessing.resize == "squash"


def test_a_missing_key_of_the_seeing_half_is_named(tmp_path: Path) -> None:
    write("gemma3", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if name.endswith("mm_soft_emb_norm.weight"))
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="mm_soft_emb_norm"):
        load(f"hf:{tmp_path}")


def test_llava_with_siglip_and_default_drops_the_first_patch(twins: Twins) -> None:
    """As transformers does: the tower has no class token, so 15 of 16 patches are read, and they are no grid."""
    encoder, model = twins("llava-siglip-default")
    images, outputs = pixels(encoder.spec.image_size), encoder.spec.outputs(tokens=TokenKind.PROJECTED)
    encoded = encoder.encode(images, outputs)
    assert_near(encoded.tokens, image_features("llava-siglip-default", encoder, model, images))
    assert encoded.grid == (1, 15)
    assert encoded.prefix_tokens == 0
    assert encoder.spec.mismatch(encoded, images=2, size=encoder.spec.image_size, outputs=outputs) is None
    assert encoder.spec.token_count(encoder.spec.image_size, outputs) == 15


def test_patches_that_cannot_be_merged_are_refused(tmp_path: Path) -> None:
    _, config = VLMS["idefics3"]
    made = config()
    made.vision_config.image_size = 40
    made.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="5x5 patches cannot be merged 2 by 2"):
        load(f"hf:{tmp_path}@random")


def test_pixtrals_tower_by_itself_takes_batches_of_any_size(tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = transformers.PixtralVisionModel(
        transformers.PixtralVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, patch_size=PATCH
        )
    ).eval()
    model.save_pretrained(tmp_path)
    encoder = load(f"hf:{tmp_path}")
    assert isinstance(encoder, TorchEncoder)
    assert encoder.spec.image_size == (448, 448)
    images = pixels(OTHER)
    encoded = encoder.encode(images, encoder.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN))
    with torch.inference_mode():
        theirs = model(encoder.normalise(torch.from_numpy(images))).last_hidden_state.reshape(2, -1, 32)
    assert encoded.grid == (6, 10)
    assert_near(encoded.tokens, theirs)
    assert_near(encoded.pooled, theirs.mean(dim=1))


def configured(family: str, folder: Path, part: str | None, **settings: Any) -> str:
    """The id of the family's configuration alone, with settings changed, in a part of it or at the top."""
    config = VLMS[family][1]().to_dict()
    (config[part] if part else config).update(settings)
    (folder / "config.json").write_text(json.dumps(config))
    return f"hf:{folder}@random"


@pytest.mark.parametrize(
    ("family", "part", "setting", "value"),
    [
        ("gemma3", None, "mm_tokens_per_image", 0),
        ("gemma3", None, "mm_tokens_per_image", 1000),
        ("gemma3", None, "mm_tokens_per_image", 5),
        ("qwen2.5-vl", "vision_config", "spatial_merge_size", 0),
        ("mistral3", None, "spatial_merge_size", 0),
        ("mistral3", None, "vision_feature_layer", 9),
        ("internvl", None, "vision_feature_layer", 9),
        ("idefics3", None, "scale_factor", 0),
        ("cohere2-vision", None, "downsample_factor", 0),
    ],
)
def test_a_setting_that_nothing_can_be_projected_by_is_refused_by_name(
    family: str, part: str | None, setting: str, value: int, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=setting):
        blueprint(configured(family, tmp_path, part, **{setting: value}))


@pytest.mark.parametrize(
    ("family", "setting", "value"),
    [
        ("internvl", "vision_feature_select_strategy", "full"),
        ("internvl", "vision_feature_layer", [1, 2]),
        ("aya-vision", "vision_feature_layer", [1, 2]),
        ("mistral3", "vision_feature_layer", [1, 2]),
    ],
)
def test_settings_that_its_own_projection_does_not_fit_are_refused(
    family: str, setting: str, value: object, tmp_path: Path
) -> None:
    """Transformers' own forward fails too."""
    with pytest.raises(WeightsError, match=r"with its settings nothing can be projected \("):
        blueprint(configured(family, tmp_path, None, **{setting: value}))


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl", "glm4v", "paligemma"])
def test_projected_tokens_are_as_wide_as_the_projection_says(family: str, tmp_path: Path) -> None:
    """The projection ends in a width of its own, whatever that of the language model."""
    encoder = load(configured(family, tmp_path, "text_config", hidden_size=40))
    size = ImageSize(*encoder.spec.resolutions.multiple) if family in PACKED else encoder.spec.image_size
    outputs = encoder.spec.outputs(tokens=TokenKind.PROJECTED)
    encoded = encoder.encode(pixels(size, 1), outputs)
    assert encoder.spec.projected_size == 48
    assert encoder.spec.mismatch(encoded, images=1, size=size, outputs=outputs) is None
