"""Files of weights as people have them, through each scheme: read safely, or refused in a sentence with what to do."""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from encoders.adapters.registry import EncoderId, blueprint, load
from encoders.adapters.timm import build as timm_parts
from encoders.contract.errors import EncoderIdError, VisiontowerError, WeightsError
from encoders.runtime.weights_file import read_weights
from tests.support.hf_folders import write

MODEL = "test_vit"
WRAPPERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda weights: weights,
    "state-dict": lambda weights: {"state_dict": weights, "epoch": 3},
    "model": lambda weights: {"model": weights},
    "twice": lambda weights: {"model": {"state_dict": weights}},
    "compiled": lambda weights: {f"_orig_mod.{name}": value for name, value in weights.items()},
    "parallel": lambda weights: {f"module.{name}": value for name, value in weights.items()},
    "both": lambda weights: {f"module._orig_mod.{name}": value for name, value in weights.items()},
    "other-way": lambda weights: {f"_orig_mod.module.{name}": value for name, value in weights.items()},
    "lightning": lambda weights: {"state_dict": {f"model.{name}": value for name, value in weights.items()}},
    "numpy-scalar": lambda weights: {"state_dict": weights, "best": np.float64(0.5), "step": np.int64(7)},
    "numpy-array": lambda weights: {"state_dict": weights, "losses": np.arange(3.0)},
    "namespace": lambda weights: {"state_dict": weights, "args": argparse.Namespace(lr=0.1, name="x")},
}


def weights_of(fill: float | None = None) -> dict[str, Tensor]:
    torch.manual_seed(3)
    weights: dict[str, Tensor] = timm.create_model(MODEL, num_classes=0).state_dict()
    return weights if fill is None else {name: torch.full_like(value, fill) for name, value in weights.items()}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_file_is_the_plain_one(wrapper: str, tmp_path: Path) -> None:
    weights = weights_of()
    torch.save(WRAPPERS[wrapper](weights), tmp_path / "saved.pth")
    save_file(weights, tmp_path / "plain.safetensors")
    saved, plain = load(f"timm:{MODEL}@{tmp_path}/saved.pth"), load(f"timm:{MODEL}@{tmp_path}/plain.safetensors")
    assert saved.spec.revision == plain.spec.revision


@pytest.mark.parametrize("wrapper", ["compiled", "numpy-scalar", "namespace", "both"])
def test_a_wrapped_file_loads_into_an_hf_folder(wrapper: str, tmp_path: Path) -> None:
    model = write("vit", tmp_path)
    plain = load(f"hf:{tmp_path}").spec.revision
    (tmp_path / "model.safetensors").unlink()
    torch.save(WRAPPERS[wrapper](dict(model.state_dict())), tmp_path / "pytorch_model.bin")
    assert load(f"hf:{tmp_path}").spec.revision == plain


def test_compiled_names_in_an_hf_folders_safetensors_are_read(tmp_path: Path) -> None:
    model = write("vit", tmp_path)
    plain = load(f"hf:{tmp_path}").spec.revision
    save_file(WRAPPERS["compiled"](dict(model.state_dict())), tmp_path / "model.safetensors", {"format": "pt"})
    assert load(f"hf:{tmp_path}").spec.revision == plain


@pytest.mark.parametrize("averaged", ["state_dict_ema", "model_ema"])
def test_averaged_weights_are_taken_and_the_log_says_so(
    averaged: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"state_dict": weights_of(0.0), averaged: weights_of()}, tmp_path / "both.pth")
    tower: Any = timm_parts(EncoderId.parse(f"timm:{MODEL}@{tmp_path}/both.pth"), with_weights=True).tower
    ours = tower.trunk.state_dict()
    theirs = timm.create_model(MODEL, num_classes=0, checkpoint_path=str(tmp_path / "both.pth"))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours[name], value)
    assert f"{averaged} beside state_dict: the averaged (EMA) weights" in caplog.text


class Whole(nn.Linear):
    """A model of somebody's own class, pickled as a whole."""


def saved(value: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "empty": ("w.safetensors", lambda path: path.write_bytes(b""), "is empty: 0 bytes"),
    "empty-bin": ("w.bin", lambda path: path.write_bytes(b""), "is empty: 0 bytes"),
    "folder": ("w.safetensors", lambda path: path.mkdir(), "is a folder"),
    "noise": ("w.pth", lambda path: path.write_bytes(b"\x05noise" * 100), "damaged"),
    "cut": ("w.safetensors", lambda path: path.write_bytes(b"\x10\x20" + b"\0" * 6 + b'{"a'), "damaged or cut off"),
    "gguf": ("w.bin", lambda path: path.write_bytes(b"GGUF" + b"\0" * 60), "GGUF"),
    "keras": ("w.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 60), "HDF5"),
    "onnx": ("w.onnx", lambda path: path.write_bytes(b"\x08\x07" * 40), "ONNX"),
    "flax": ("w.msgpack", lambda path: path.write_bytes(b"\x81\xa6" * 40), "Flax"),
    "lfs": ("w.bin", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "page": ("w.bin", lambda path: path.write_text("<!DOCTYPE html><html></html>"), "web page"),
    "whole-model": ("w.pth", saved(Whole(2, 2)), "Save the weights alone"),
    "no-weights": ("w.pth", saved({"epoch": 3}), "holds no weights by name"),
    "a-list": ("w.pth", saved([1, 2]), "holds no weights by name"),
    "one-tensor": ("w.pth", saved(torch.zeros(3)), "holds no weights by name"),
    "lora": ("w.pth", saved({"base_model.model.x.lora_A.weight": torch.zeros(2, 2)}), "merge_and_unload"),
    "another": (
        "w.pth",
        saved({"conv.weight": torch.zeros(2, 2)}),
        "does not fit .*missing: .*unexpected: conv.weight",
    ),
}
SCHEMES = {"timm": f"timm:{MODEL}", "openclip": "openclip:RN50"}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("scheme", ["timm", pytest.param("openclip", marks=pytest.mark.slow)])
def test_a_file_that_is_not_these_weights_is_refused_in_a_sentence(scheme: str, case: str, tmp_path: Path) -> None:
    name, make, words = REFUSED[case]
    make(tmp_path / name)
    with pytest.raises(WeightsError, match=words) as caught:
        load(f"{SCHEMES[scheme]}@{tmp_path / name}")
    message = str(caught.value)
    assert len(message) < 2_000
    assert message.isprintable()


@pytest.mark.parametrize(
    "case", [case for case in REFUSED if REFUSED[case][0].endswith((".safetensors", ".bin", ".pth"))]
)
def test_an_hf_folder_with_such_a_file_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    write("vit", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    name, make, _ = REFUSED[case]
    make(tmp_path / ("model.safetensors" if name.endswith("safetensors") else "pytorch_model.bin"))
    with pytest.raises(WeightsError) as caught:
        load(f"hf:{tmp_path}")
    assert len(str(caught.value)) < 2_000
    assert str(caught.value).isprintable()


def test_an_adapter_beside_the_base_weights_is_refused_by_name(tmp_path: Path) -> None:
    write("vit", tmp_path)
    save_file(weights_of(), tmp_path / "plain.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    for encoder_id in (f"hf:{tmp_path}", f"timm:{MODEL}@{tmp_path}/plain.safetensors", f"openclip:{tmp_path}"):
        with pytest.raises(WeightsError, match=r"PEFT adapter.*merge_and_unload"):
            load(encoder_id)


def test_no_code_in_a_file_is_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": weights_of(), "best": Attack()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="code in a file is not run"):
        load(f"timm:{MODEL}@{tmp_path}/w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("wrapper", ["compiled", "parallel", "numpy-scalar", "namespace"])
def test_open_clip_reads_them_too(wrapper: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    model = open_clip.CLIP(**json.loads(json.dumps(config)))
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    plain = load(f"openclip:{tmp_path}").spec.revision
    torch.save(WRAPPERS[wrapper](dict(model.state_dict())), tmp_path / "open_clip_pytorch_model.bin")
    assert load(f"openclip:{tmp_path}").spec.revision == plain


@pytest.mark.parametrize(
    ("encoder_id", "words"),
    [
        ("hf-hub:timm/resnet50.a1_in1k", r"Write timm:resnet50\.a1_in1k$"),
        ("hf_hub:openai/clip-vit-base-patch32", "Write hf:openai/clip-vit-base-patch32 if"),
        ("hf:hf-hub:openai/x", "Write hf:openai/x if"),
        ("timm:hf_hub:timm/resnet50.a1_in1k", r"Write timm:resnet50\.a1_in1k$"),
        ("timm:hf-hub:timm/vit_tiny_patch16_224", r"Write timm:vit_tiny_patch16_224$"),
        ("openclip:hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", r"Write openclip:ViT-B-32@laion2b_s34b_b79k$"),
        ("openclip:hf-hub:timm/ViT-B-16-SigLIP", r"Write openclip:ViT-B-16-SigLIP@webli$"),
        ("demo:vit?preprocess=x", "demo has no option 'preprocess'; it takes none"),
        ("openclip:RN50@random?size=3", "openclip has no option 'size'; it takes preprocess, quick_gelu"),
        ("openclip:RN50@random?preprocess=nope", "'nope' is no pretrained tag of RN50"),
        ("openclip:RN50@random?quick_gelu=yes", "true or false"),
    ],
)
def test_an_id_of_another_library_gets_the_id_to_use(encoder_id: str, words: str) -> None:
    for build in (load, blueprint):
        with pytest.raises(VisiontowerError, match=words):
            build(encoder_id)


def folder_of(path: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


TIMM_CONFIG = {"architecture": "resnet50", "num_classes": 10, "pretrained_cfg": {"tag": "a1_in1k"}}
FOLDERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "timm-to-hf": ("hf", {"config.json": TIMM_CONFIG, "model.safetensors": ""}, "Write|write timm:resnet50@.*model"),
    "timm-to-openclip": ("openclip", {"config.json": TIMM_CONFIG}, "write timm:resnet50@"),
    "openclip-to-hf": ("hf", {"open_clip_config.json": {}}, "write openclip:/"),
    "openclip-to-timm": ("timm", {"open_clip_config.json": {}}, "write openclip:/"),
    "hf-to-openclip": ("openclip", {"config.json": {"model_type": "clip"}}, "write hf:/"),
    "hf-to-timm": ("timm", {"config.json": {"model_type": "vit"}}, "write hf:/"),
    "sentence-transformers": (
        "hf",
        {"modules.json": [], "0_CLIPModel/config.json": {"model_type": "clip"}},
        "write hf:/.*0_CLIPModel",
    ),
    "onnx": ("hf", {"model.onnx": "x"}, "ONNX"),
    "not-json": ("hf", {"config.json": "{not json"}, "is no configuration"),
    "list": ("hf", {"config.json": [1, 2]}, "is no configuration"),
    "no-type": ("hf", {"config.json": {"a": 1}}, "names no model_type"),
    "number": ("hf", {"config.json": {"model_type": 3}}, "names no model_type"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_another_library_gets_the_id_to_use(case: str, tmp_path: Path) -> None:
    scheme, files, words = FOLDERS[case]
    folder = folder_of(tmp_path, files)
    for build in (load, blueprint):
        with pytest.raises(VisiontowerError, match=words) as caught:
            build(f"{scheme}:{folder}")
        assert len(str(caught.value)) < 600


def test_a_file_in_place_of_a_folder_is_told_the_schemes_for_files(tmp_path: Path) -> None:
    save_file(weights_of(), tmp_path / "w.safetensors")
    with pytest.raises(VisiontowerError, match=r"is a file; .*timm:MODEL@FILE"):
        load(f"hf:{tmp_path}/w.safetensors")


def test_an_unreadable_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_weights(tmp_path / "loop", encoder_id="timm:x")


class TestPreprocessingOfAFile:
    """What all pretrained tags of the architecture agree on; where they do not, the log says so."""

    @pytest.mark.parametrize(
        ("name", "mean", "resize", "interpolation"),
        [
            ("ViT-B-16-SigLIP", 0.5, "squash", "bicubic"),
            ("PE-Core-B-16", 0.5, "squash", "bilinear"),
            ("MobileCLIP-S1", 0.0, "shortest", "bilinear"),
            ("ViT-L-14-CLIPA", 0.485, "squash", "bilinear"),
            ("RN50", 0.48145466, "shortest", "bicubic"),
        ],
    )
    def test_the_tags_agree(self, name: str, mean: float, resize: str, interpolation: str) -> None:
        found = blueprint(f"openclip:{name}@random").spec.preprocessing
        assert (found.mean[0], found.resize, found.interpolation) == (mean, resize, interpolation)

    def test_where_they_disagree_the_log_names_the_choices(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
        file = f"openclip:ViT-L-14@{tmp_path}/w.safetensors"
        with caplog.at_level(logging.WARNING):
            found = blueprint(file).spec
        assert found.preprocessing.mean[0] == pytest.approx(0.48145466)
        assert "disagree" in caplog.text
        assert "?preprocess=TAG" in caplog.text
        assert "laion2b_s32b_b82k" in caplog.text
        caplog.clear()
        chosen = blueprint(f"{file}?preprocess=laion2b_s32b_b82k&quick_gelu=false").spec
        assert chosen.preprocessing.mean == (0.5, 0.5, 0.5)
        assert chosen.id == f"{file}?preprocess=laion2b_s32b_b82k&quick_gelu=false"
        assert caplog.text == ""


def test_whatever_a_plug_in_raises_ends_in_a_sentence_with_the_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text(
        "def build(encoder_id, *, with_weights):\n"
        "    raise AttributeError('\\x1b[31mno\\x1b[0m such\\n' + 'x' * 9999)\n"
    )
    installed = tmp_path / "broken_plugin-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        "[visiontower.encoders]\nbroken = broken_plugin:build\nabsent = no_such_module:build\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for build in (load, blueprint):
        with pytest.raises(VisiontowerError, match="broken:x cannot be built: AttributeError: no such x") as caught:
            build("broken:x")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
        with pytest.raises(VisiontowerError, match="absent:x cannot be built: ModuleNotFoundError"):
            build("absent:x")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise SystemExit('bye')", "SystemExit: bye"),
        ("raise type('PanicException', (BaseException,), {})('a panic in Rust')", "PanicException: a panic in Rust"),
        ("raise type('Odd', (Exception,), {'__str__': lambda self: 1 / 0})()", "Odd: Odd"),
        ("return None", "AttributeError: 'NoneType' object has no attribute 'blueprint'"),
        ("return type('Parts', (), {'blueprint': lambda self, *, dtype: None})()", "has no attribute 'spec'"),
    ],
)
def test_a_plug_in_that_gives_no_blueprint_is_a_sentence(
    body: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd_plugin.py").write_text(f"def build(encoder_id, *, with_weights):\n    {body}\n")
    installed = tmp_path / "odd_plugin-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-plugin\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[visiontower.encoders]\nodd = odd_plugin:build\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "odd_plugin", raising=False)
    with pytest.raises(EncoderIdError, match=f"odd:x cannot be built: .*{words}"):
        blueprint("odd:x")
