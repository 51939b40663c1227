"""A checkpoint needs weights that fit, a tokenizer that fits and a supported type; nothing is run or guessed."""

import json
import pickle
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from encoders import ImageSize, TokenKind, load
from encoders.adapters.registry import blueprint, reference
from encoders.contract.errors import EncoderIdError, WeightsError
from encoders.runtime.torch_encoder import TorchEncoder
from tests.support.clip_names import clip_names
from tests.support.closeness import cosines
from tests.support.hf_folders import FAMILIES, Twins, one_thread
from tests.support.hf_tokenizers import TEXTS, write_clip_tokenizer
from tests.support.photographs import photographs


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with one_thread():
        yield Twins(tmp_path_factory.mktemp("hf-checkpoint"))


@pytest.fixture
def folder(twins: Twins, tmp_path: Path) -> Path:
    """A copy of the CLIP twin, to spoil."""
    encoder, _ = twins("clip")
    copy = tmp_path / "copy"
    shutil.copytree(encoder.spec.id.removeprefix("hf:"), copy)
    return copy


@pytest.fixture
def bare(twins: Twins, tmp_path: Path) -> Path:
    """A copy of the ViT twin, which has no texts: quick to load."""
    encoder, _ = twins("vit")
    copy = tmp_path / "bare"
    shutil.copytree(encoder.spec.id.removeprefix("hf:"), copy)
    return copy


def change(folder: Path, **changes: Any) -> None:
    """Replaces tensors by name (dots as __); None takes one out."""
    weights = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        weights.pop(name.replace("__", "."), None)
        if tensor is not None:
            weights[name.replace("__", ".")] = tensor
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def images(size: ImageSize) -> Any:
    return np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8)


def test_a_missing_key_is_fatal_and_named(folder: Path) -> None:
    change(folder, visual_projection__weight=None)
    with pytest.raises(WeightsError, match=r"missing: visual_projection\.weight"):
        load(f"hf:{folder}")


def test_a_renamed_key_is_fatal_and_both_names_are_given(folder: Path) -> None:
    change(folder, logit_scale=None, logit_scales=torch.tensor(1.0))
    with pytest.raises(WeightsError, match=r"missing: logit_scale; unexpected: logit_scales") as caught:
        load(f"hf:{folder}")
    assert caught.value.facts["missing"] == ["logit_scale"]


def test_a_misshapen_key_is_fatal_and_both_shapes_are_given(folder: Path) -> None:
    change(folder, visual_projection__weight=torch.zeros(24, 30))
    with pytest.raises(WeightsError, match=r"visual_projection\.weight is \[24, 30\], must be \[24, 32\]"):
        load(f"hf:{folder}")


def test_position_ids_of_old_checkpoints_are_no_misfit(folder: Path, twins: Twins) -> None:
    change(folder, vision_model__embeddings__position_ids=torch.arange(17)[None])
    assert load(f"hf:{folder}").spec.revision == twins("clip")[0].spec.revision


def test_a_truncated_file_is_a_weights_error(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError):
        load(f"hf:{folder}")


def test_torch_files_load_but_run_nothing(folder: Path, twins: Twins) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert load(f"hf:{folder}").spec.revision == twins("clip")[0].spec.revision

    class Attack:
        def __reduce__(self) -> Any:
            return Path.touch, (folder / "ran",)

    torch.save({"logit_scale": Attack()}, folder / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(WeightsError):
        load(f"hf:{folder}")
    assert not (folder / "ran").exists()


def test_code_in_a_checkpoint_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    load(f"hf:{folder}")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"model_type": "bert"}, EncoderIdError, "'bert', which is not supported. Supported: "),
        ({"model_type": "made_up"}, EncoderIdError, "made_up"),
        ({}, EncoderIdError, "names no model_type"),
        (None, WeightsError, "no config.json"),
    ],
)
def test_an_unsupported_folder_says_why(tmp_path: Path, config: Any, error: type[Exception], words: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=words):
        load(f"hf:{tmp_path}")


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no folder"):
        load(f"hf:{tmp_path}/absent")


def test_a_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(EncoderIdError, match="no revision"):
        load(f"hf:{folder}@main")


def test_random_weights_are_seeded_and_not_the_folders(folder: Path, twins: Twins) -> None:
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    first, second = load(f"hf:{folder}@random"), load(f"hf:{folder}@random")
    assert torch.equal(torch.random.get_rng_state(), state)  # a caller's randomness is left alone
    assert first.spec.revision == second.spec.revision != twins("clip")[0].spec.revision
    assert first.spec.id == f"hf:{folder}@random"
    assert first.spec.has_text
    encoded = first.encode(images(first.spec.size()), first.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN))
    assert np.isfinite(np.asarray(encoded.pooled)).all()


@pytest.mark.parametrize("family", ["siglip2", "dinov3", "resnet", "llava-next"])
def test_random_weights_need_no_more_than_a_configuration(family: str, tmp_path: Path) -> None:
    FAMILIES[family][1]().save_pretrained(tmp_path)
    encoder = load(f"hf:{tmp_path}@random")
    encoded = encoder.encode(images(ImageSize(64, 64)), encoder.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN))
    assert np.isfinite(np.asarray(encoded.tokens)).all()
    assert not encoder.spec.has_text


def test_without_tokenizer_files_a_clip_is_refused(folder: Path) -> None:
    """transformers 5 would make a tokenizer of two tokens from nothing."""
    (folder / "vocab.json").unlink()
    with pytest.raises(WeightsError, match="no tokenizer files"):
        load(f"hf:{folder}")


def test_a_tokenizer_larger_than_the_text_tower_is_refused(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"spare": 49408}))
    with pytest.raises(WeightsError, match="49409 tokens, its text tower 49408"):
        load(f"hf:{folder}")


def test_clip_token_ids_are_open_clips(twins: Twins) -> None:
    """Up to the end of each text: open_clip pads with 0, OpenAI's checkpoints on the Hub with the end token."""
    encoder, _ = twins("clip")
    ours = encoder.tokenize(TEXTS).ids
    theirs = open_clip.get_tokenizer("ViT-B-32", context_length=20)(TEXTS).numpy()
    np.testing.assert_array_equal(ours[theirs != 0], theirs[theirs != 0])
    assert (ours[theirs == 0] == 49407).all()
    assert ours.dtype == np.int64


def test_many_threads_share_the_tokenizer(twins: Twins) -> None:
    encoder, _ = twins("clip")
    expected = [encoder.tokenize(TEXTS[: 1 + k % 3]).ids for k in range(24)]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.setdefault(k, encoder.tokenize(TEXTS[: 1 + k % 3]).ids))
        for k in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(24):
        np.testing.assert_array_equal(found[k], expected[k])


def test_loading_is_quiet_and_leaves_the_librarys_own_loudness(folder: Path, capfd: Any) -> None:
    before = transformers.utils.logging.get_verbosity()
    load(f"hf:{folder}")
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    assert transformers.utils.logging.get_verbosity() == before


def test_one_checkpoint_gives_the_same_through_open_clip_and_transformers(tmp_path: Path) -> None:
    """Final tokens, pooled and text vectors; both are float32 and differ in how attention is fused: 1e-5."""
    width, heads, layers = 64, 1, 3  # open_clip counts heads of 64
    torch.manual_seed(4)
    model: Any = open_clip.CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": width, "layers": layers, "head_width": width},
        text_cfg={"context_length": 20, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers},
    ).eval()
    half = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
    }
    text = {"vocab_size": 49408, "max_position_embeddings": 20, "bos_token_id": 49406, "eos_token_id": 49407}
    transformers.CLIPConfig(
        vision_config={**half, "image_size": 32, "patch_size": 8}, text_config={**half, **text}, projection_dim=24
    ).save_pretrained(tmp_path)
    save_file(clip_names(model.state_dict()), tmp_path / "model.safetensors", {"format": "pt"})
    write_clip_tokenizer(tmp_path)
    encoder = load(f"hf:{tmp_path}")
    assert isinstance(encoder, TorchEncoder)

    batch = images(ImageSize(32, 32))
    encoded = encoder.encode(batch, encoder.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN))
    ids = encoder.tokenize(TEXTS).ids
    model.visual.output_tokens = True
    with torch.inference_mode():
        pooled, patches = model.visual(encoder.normalise(torch.from_numpy(batch)))
        texts = model.encode_text(torch.from_numpy(ids))
    assert encoded.tokens is not None
    assert encoded.pooled is not None
    np.testing.assert_allclose(encoded.tokens[:, 1:], patches.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(encoded.pooled, pooled.numpy(), rtol=0, atol=1e-5)
    # open_clip reads the text at the largest id, which is the end token in both paddings.
    np.testing.assert_allclose(encoder.encode_text(ids), texts.numpy(), rtol=0, atol=1e-5)
    assert encoder.spec.require_text().logit_scale == pytest.approx(model.logit_scale.exp().item())


def shards(folder: Path, *, prefix: str = "") -> None:
    """Splits the weights into two files with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index: dict[str, str] = {}
    for number, names in enumerate((sorted(weights)[:9], sorted(weights)[9:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({prefix + name: weights[name] for name in names}, folder / file, {"format": "pt"})
        index |= {prefix + name: file for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.mark.parametrize("scale", [float("nan"), 1000.0])
def test_a_scale_of_scores_that_is_no_number_is_refused(folder: Path, scale: float) -> None:
    change(folder, logit_scale=torch.tensor(scale))
    with pytest.raises(WeightsError, match=r"the scale or bias of its scores is (nan|inf)"):
        load(f"hf:{folder}")


@pytest.mark.parametrize("family", ["clip-vision", "dinov2", "dinov3", "siglip-vision", "vit"])
def test_a_prefix_before_all_names_is_taken_off(twins: Twins, tmp_path: Path, family: str) -> None:
    encoder, _ = twins(family)
    copy = tmp_path / "copy"
    shutil.copytree(encoder.spec.id.removeprefix("hf:"), copy)
    weights = {f"model.{name}": tensor for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert load(f"hf:{copy}").spec.revision == encoder.spec.revision


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
def test_weights_in_parts_load_by_any_name(bare: Path, prefix: str, twins: Twins) -> None:
    shards(bare, prefix=prefix)
    assert load(f"hf:{bare}").spec.revision == twins("vit")[0].spec.revision


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no file .*00002-of-00002"),
        (b"", "00002-of-00002.safetensors is empty"),
        (b"version https://git-lfs.github.com/spec/v1", "00002-of-00002.safetensors is a pointer of Git LFS"),
    ],
)
def test_a_part_that_is_none_is_named(bare: Path, content: bytes | None, words: str) -> None:
    shards(bare)
    part = bare / "model-00002-of-00002.safetensors"
    part.unlink()
    if content is not None:
        part.write_bytes(content)
    with pytest.raises(WeightsError, match=words):
        load(f"hf:{bare}")


def test_a_broken_index_is_named(bare: Path) -> None:
    shards(bare)
    (bare / "model.safetensors.index.json").write_text("{")
    with pytest.raises(WeightsError, match=r"index\.json names no files"):
        load(f"hf:{bare}")


def test_an_index_without_metadata_is_told_to_have_some(bare: Path) -> None:
    shards(bare)
    index = bare / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))
    with pytest.raises(WeightsError, match=r'index\.json has no metadata: write "metadata": \{\} into it'):
        load(f"hf:{bare}")


def test_a_folder_without_weights_names_what_it_has(bare: Path) -> None:
    (bare / "model.safetensors").rename(bare / "tf_model.h5")
    with pytest.raises(WeightsError, match=r"no model\.safetensors .* It has tf_model\.h5"):
        load(f"hf:{bare}")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_numbers_are_not_taken_for_weights(bare: Path, dtype: torch.dtype) -> None:
    weights = load_file(bare / "model.safetensors")
    change(bare, pooler__dense__weight=(weights["pooler.dense.weight"] * 9).to(dtype))
    with pytest.raises(WeightsError, match=r"quantised \(pooler\.dense\.weight"):
        load(f"hf:{bare}")


def configure(folder: Path, file: str, **settings: Any) -> None:
    found = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(found | settings))


def test_a_quantised_checkpoint_is_refused_by_its_method(bare: Path) -> None:
    configure(bare, "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(WeightsError, match=r"quantised \(gptq\)"):
        load(f"hf:{bare}")


@pytest.mark.parametrize("settings", [{"pad_token": None}, {"model_max_length": 0}, {"model_max_length": "77"}])
def test_a_tokenizer_that_no_text_gets_through_ends_the_start(folder: Path, settings: dict[str, Any]) -> None:
    """It loads, and then every text would be refused as if it were the caller's fault."""
    configure(folder, "tokenizer_config.json", **settings)
    with pytest.raises(WeightsError, match=r"tokenizer of .* cannot be used"):
        load(f"hf:{folder}")


def test_a_tokenizer_without_its_merges_is_refused(folder: Path) -> None:
    (folder / "merges.txt").write_text("")  # it would cut every word into letters
    with pytest.raises(WeightsError, match=r"merges\.txt is empty"):
        load(f"hf:{folder}")
    (folder / "merges.txt").unlink()
    with pytest.raises(WeightsError, match=r"without its merges\.txt"):
        load(f"hf:{folder}")


@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
@pytest.mark.parametrize("family", ["clip", "chinese-clip"])
def test_texts_are_cut_and_padded_at_the_end_whatever_the_tokenizer_says(
    family: str, side: str, twins: Twins, tmp_path: Path
) -> None:
    encoder, _ = twins(family)
    copy = tmp_path / "copy"
    shutil.copytree(encoder.spec.id.removeprefix("hf:"), copy)
    configure(copy, "tokenizer_config.json", **{side: "left"})
    texts = [*TEXTS, "a cat " * 60]
    np.testing.assert_array_equal(load(f"hf:{copy}").tokenize(texts).ids, encoder.tokenize(texts).ids)


def test_a_setting_that_the_architecture_ignores_is_ignored(twins: Twins, tmp_path: Path) -> None:
    """DINOv2 has no registers, and a kernel for attention belongs to the machine that it was trained on."""
    encoder, _ = twins("dinov2")
    copy = tmp_path / "copy"
    shutil.copytree(encoder.spec.id.removeprefix("hf:"), copy)
    configure(copy, "config.json", num_register_tokens=3, _attn_implementation="flash_attention_2")
    changed = load(f"hf:{copy}")
    assert changed.spec.prefix_tokens == 1
    size = encoder.spec.image_size
    outputs = encoder.spec.outputs(tokens=TokenKind.HIDDEN)
    np.testing.assert_array_equal(
        changed.encode(images(size), outputs).tokens, encoder.encode(images(size), outputs).tokens
    )


@pytest.mark.parametrize("settings", [{"patch_size": 0}, {"hidden_act": "nothing"}])
def test_a_configuration_that_cannot_be_built_is_a_sentence(bare: Path, settings: dict[str, Any]) -> None:
    configure(bare, "config.json", **settings)
    with pytest.raises(WeightsError, match=r"do not fit together|is none"):
        load(f"hf:{bare}")


def test_a_type_that_is_no_name_gets_no_hint_to_the_same_id(bare: Path) -> None:
    configure(bare, "config.json", model_type=5)
    with pytest.raises(EncoderIdError, match=r"names no model_type, so it is not of transformers\.$"):
        load(f"hf:{bare}")


def written(model: Any, folder: Path) -> str:
    """Its id."""
    model.save_pretrained(folder)
    return f"hf:{folder}"


_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.mark.parametrize("channels", [1, 4])
def test_a_tower_that_reads_no_rgb_is_refused_with_the_cause(tmp_path: Path, channels: int) -> None:
    vit = transformers.ViTModel(transformers.ViTConfig(**_SMALL, num_channels=channels))
    siglip = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_SMALL, num_channels=channels))
    for number, model in enumerate((vit, siglip)):
        encoder_id = written(model, tmp_path / str(number))
        for make in (load, blueprint):
            with pytest.raises(WeightsError, match="channel dimension"):
                make(encoder_id)


@pytest.mark.parametrize("changes", [{"image_size": (48, 32)}, {"image_size": (48, 32), "patch_size": (16, 8)}])
def test_a_tower_that_runs_at_its_own_size_alone_offers_no_other(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**{**_SMALL, **changes}))
    encoder = load(written(model, tmp_path))
    assert encoder.spec.resolutions.only == encoder.spec.image_size == ImageSize(48, 32)
    encoder.encode(images(encoder.spec.image_size), encoder.spec.outputs(pooled=True))


@pytest.mark.parametrize("part", ["", "vision_config", "text_config"])
def test_outputs_are_read_whatever_the_configuration_says_of_tuples(folder: Path, twins: Twins, part: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (config[part] if part else config)["return_dict"] = False
    (folder / "config.json").write_text(json.dumps(config))
    encoder, whole = load(f"hf:{folder}"), twins("clip")[0]
    outputs, ids = whole.spec.outputs(pooled=True), whole.tokenize(TEXTS).ids
    found, expected = (each.encode(images(whole.spec.image_size), outputs).pooled for each in (encoder, whole))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(encoder.encode_text(ids), whole.encode_text(ids))


@pytest.mark.parametrize("family", ["clip", "clip-vision", "dinov2", "deit", "vit", "siglip", "mlcd"])
def test_without_settings_of_pixels_the_reference_has_the_defaults_that_are_served(twins: Twins, family: str) -> None:
    encoder, _ = twins(family)
    size, outputs = encoder.spec.image_size, encoder.spec.outputs(pooled=True)
    row = reference(encoder.spec.id).encode(photographs()[0])
    pixels = encoder.preprocess(photographs()[0], size, exact=True)
    found = encoder.encode(pixels[None], outputs).pooled
    assert found is not None
    assert row.pooled is not None
    assert cosines(found[0], row.pooled) > 1 - 1e-4


def test_defaults_that_transformers_has_not_at_this_size_have_no_reference(twins: Twins) -> None:
    """ConvNeXt's processor crops below 384 pixels, and squashes from there on."""
    with pytest.raises(WeightsError, match=r"no preprocessor_config\.json, and ConvNextImageProcessor's defaults"):
        reference(twins("convnext")[0].spec.id)


@pytest.mark.parametrize("kind", ["Beit", "Data2VecVision"])
def test_the_heads_of_a_segmenter_are_left_out(tmp_path: Path, kind: str) -> None:
    config = FAMILIES["beit"][1]().to_dict() | {"model_type": getattr(transformers, f"{kind}Config").model_type}
    config |= {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": True}
    config.pop("out_features")
    getattr(transformers, f"{kind}ForSemanticSegmentation")(
        getattr(transformers, f"{kind}Config")(**config)
    ).save_pretrained(tmp_path)
    assert load(f"hf:{tmp_path}").spec.layers == 4
