"""Loading: checkpoints of open_clip's in files and folders, and those that are none."""

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from encoders.adapters.registry import load
from encoders.contract.errors import EncoderIdError, WeightsError
from encoders.contract.values import ImageSize
from tests.support.closeness import close
from tests.support.tiny_clip import TINY_VIT, normalised, run, tiny


@pytest.fixture
def small_architecture(monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny architecture that open_clip knows by name for the length of a test."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-test", TINY_VIT)
    return "tiny-test"


def pooled_of(encoder: Any) -> Any:
    return run(encoder, ImageSize(64, 64), pooled=True).pooled


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt"])
def test_a_local_file_loads(small_architecture: str, tmp_path: Path, suffix: str) -> None:
    model = tiny(TINY_VIT)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    else:
        torch.save(model.state_dict(), path)
    encoder = load(f"openclip:{small_architecture}@{path}")
    with torch.inference_mode():
        close(pooled_of(encoder), model.visual(normalised(encoder, ImageSize(64, 64))))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # OpenAI's files are what they are
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # what it was before torch 2.15
def test_openais_torchscript_file_loads_with_their_activation(small_architecture: str, tmp_path: Path) -> None:
    """Their archives hold half-precision weights, three extra facts, and were trained with QuickGELU."""

    class Archive(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            for name, part in model.named_children():
                self.add_module(name, part)
            for name, parameter in model.named_parameters(recurse=False):
                self.register_parameter(name, parameter)
            for fact, value in (("input_resolution", 64), ("context_length", 16), ("vocab_size", 49408)):
                self.register_buffer(fact, torch.tensor(value))

        def forward(self, x: Tensor) -> Tensor:
            return x

    model = open_clip.CLIP(**copy.deepcopy(TINY_VIT), quick_gelu=True).eval()
    halves = copy.deepcopy(model).half()
    path = tmp_path / "tiny.pt"
    torch.jit.save(torch.jit.trace(Archive(halves), torch.zeros(1)), path)  # type: ignore[no-untyped-call]
    encoder = load(f"openclip:{small_architecture}@{path}")
    rounded = halves.float()
    with torch.inference_mode():
        close(pooled_of(encoder), rounded.visual(normalised(encoder, ImageSize(64, 64))))  # type: ignore[arg-type]


def test_a_folder_loads(tmp_path: Path) -> None:
    model = tiny(TINY_VIT)
    config = {"model_cfg": TINY_VIT, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    encoder = load(f"openclip:{tmp_path}")
    assert encoder.spec.preprocessing.mean == (0.1, 0.2, 0.3)
    with torch.inference_mode():
        close(pooled_of(encoder), model.visual(normalised(encoder, ImageSize(64, 64))))  # type: ignore[arg-type]


def test_a_folder_takes_no_other_weights(tmp_path: Path) -> None:
    with pytest.raises(EncoderIdError, match="brings its own weights"):
        load(f"openclip:{tmp_path}@random")


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_are_fatal_and_named(small_architecture: str, tmp_path: Path, change: str) -> None:
    weights = {k: v.contiguous() for k, v in tiny(TINY_VIT).state_dict().items()}
    if change == "missing":
        del weights["visual.ln_post.weight"]
    elif change == "unexpected":
        weights["visual.ln_post.extra"] = torch.zeros(2)
    else:
        weights["visual.ln_post.weight"] = torch.zeros(5)
    path = tmp_path / "weights.safetensors"
    save_file(weights, path)
    with pytest.raises(WeightsError, match=r"visual\.ln_post\.(weight|extra)"):
        load(f"openclip:{small_architecture}@{path}")


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 broken"])
def test_a_file_that_holds_no_weights_is_fatal(small_architecture: str, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"does not load|is empty|holds no weights"):
        load(f"openclip:{small_architecture}@{path}")


def test_a_pickle_with_code_is_refused(small_architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    torch.save({"x": Path("somewhere")}, path)  # a class outside torch: weights_only must refuse to build it
    with pytest.raises(WeightsError, match=r"does not load|is empty|holds no weights"):
        load(f"openclip:{small_architecture}@{path}")


def test_an_unknown_architecture_names_the_closest() -> None:
    with pytest.raises(EncoderIdError, match="ViT-B-32"):
        load("openclip:ViT-B-33@random")


def test_weights_must_be_asked_for() -> None:
    with pytest.raises(EncoderIdError, match=r"laion2b_s34b_b79k.*'random'"):
        load("openclip:ViT-B-32")


def test_an_unknown_tag_names_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="laion2b_s34b_b79k"):
        load("openclip:ViT-B-32@nosuchtag")


def test_random_weights_are_the_same_each_time(small_architecture: str) -> None:
    first, second = (load(f"openclip:{small_architecture}@random") for _ in range(2))
    assert first.spec.revision == second.spec.revision


@pytest.mark.parametrize("pool", ["parallel", "cascade"])
def test_a_tower_that_does_not_run_is_refused_with_the_cause(monkeypatch: pytest.MonkeyPatch, pool: str) -> None:
    """open_clip norms what these pools give in another width than theirs, and raises in every forward."""
    vision = {**TINY_VIT["vision_cfg"], "attentional_pool": pool, "attn_pooler_heads": 4}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-test", {**TINY_VIT, "vision_cfg": vision})
    with pytest.raises(WeightsError, match="normalized_shape"):
        load("openclip:tiny-test@random")
