"""Text halves of open_clip: CoCa's own, and models of transformers: roberta, xlm-roberta, nllb, mt5."""

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch

from encoders import load
from encoders.adapters.registry import blueprint
from encoders.contract.errors import WeightsError
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.trace import Trace
from tests.support.closeness import close
from tests.support.openclip_folders import TEXT_MODELS, WORDS, write, write_to_hub_cache
from tests.support.suites import split

TEXTS = ["w1", " ".join(WORDS), "w3 w2 w1", " ".join(WORDS * 3)]


@pytest.fixture(scope="module", params=TEXT_MODELS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchEncoder, Any]:
    """The encoder of a folder, and open_clip's own model."""
    folder = tmp_path_factory.mktemp(request.param)
    model = write(request.param, folder)
    encoder = load(f"openclip:{folder}")
    assert isinstance(encoder, TorchEncoder)
    return encoder, model


def test_a_text_tower_of_transformers_gives_what_open_clip_gives(served: tuple[TorchEncoder, Any]) -> None:
    encoder, model = served
    ids = encoder.tokenize(TEXTS).ids
    np.testing.assert_array_equal(ids, open_clip.get_tokenizer(f"local-dir:{encoder.spec.id[9:]}")(TEXTS).numpy())
    with torch.inference_mode():
        theirs = model.encode_text(torch.from_numpy(ids), normalize=False)
    close(encoder.encode_text(ids), theirs)


def test_its_context_length_is_that_of_its_tokenizer_in_blueprint_and_encoder(
    served: tuple[TorchEncoder, Any],
) -> None:
    """Not the 100 positions that the text tower has, nor the 76 of CoCa's decoder."""
    encoder, _ = served
    assert encoder.spec.context_length == blueprint(encoder.spec.id).spec.context_length == 77
    assert encoder.tokenize(["w1"]).ids.shape == (1, 77)


def test_its_forward_takes_what_was_planned(served: tuple[TorchEncoder, Any]) -> None:
    encoder, _ = served
    ids = torch.from_numpy(encoder.tokenize(TEXTS[:3]).ids)
    with torch.inference_mode(), Trace() as trace:
        encoder.run_text(ids)
    cost = blueprint(encoder.spec.id).text_cost(device="cpu")
    assert trace.peak == cost.requested(3)
    assert trace.flops == 3 * cost.flops


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_is_planned_for_a_card(served: tuple[TorchEncoder, Any], dtype: str) -> None:
    cost = blueprint(served[0].spec.id, dtype=dtype).text_cost(device="cuda")
    assert cost.requested(2) > cost.requested(1) > 0


def test_padding_changes_nothing(served: tuple[TorchEncoder, Any]) -> None:
    """A text alone, and the same beside a longer one."""
    encoder, _ = served
    alone, beside = (encoder.encode_text(encoder.tokenize(texts).ids)[0] for texts in (["w1"], ["w1", TEXTS[1]]))
    close(alone, torch.from_numpy(beside))


_TEXT = {"context_length": 16, "layers": 2, "width": 16, "heads": 2}
COCA: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8, "output_tokens": True},
    "text_cfg": {**_TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**_TEXT, "attn_pooler_heads": 2},
    "custom_text": True,
}


def test_cocas_own_text_tower_gives_what_open_clip_gives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its mask is one for each head of each text."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-coca", COCA)
    model = open_clip.create_model("tiny-coca").eval()
    torch.save(model.state_dict(), tmp_path / "coca.pt")
    encoder = load(f"openclip:tiny-coca@{tmp_path / 'coca.pt'}")
    ids = encoder.tokenize(TEXTS).ids
    with torch.inference_mode():
        theirs = model.encode_text(torch.from_numpy(ids), normalize=False)
    close(encoder.encode_text(ids), theirs)
    for row, text in enumerate(TEXTS):
        close(encoder.encode_text(encoder.tokenize([text]).ids)[0], theirs[row])


ARCHITECTURES = {
    "roberta-ViT-B-32": ("roberta-base", "roberta"),
    "coca_roberta-ViT-B-32": ("roberta-base", "coca"),
    "xlm-roberta-base-ViT-B-32": ("xlm-roberta-base", "xlm-roberta"),
    "xlm-roberta-large-ViT-H-14": ("xlm-roberta-large", "xlm-roberta"),
    "nllb-clip-base": ("facebook/nllb-200-distilled-600M", "nllb"),
    "nllb-clip-base-siglip": ("facebook/nllb-200-distilled-600M", "nllb"),
    "nllb-clip-large": ("facebook/nllb-200-distilled-1.3B", "nllb"),
    "mt5-base-ViT-B-32": ("google/mt5-base", "mt5"),
    "mt5-xl-ViT-H-14": ("google/mt5-xl", "mt5"),
}
"""open_clip's own that name a text model on the hub; here with a tiny one of its type."""


@pytest.mark.parametrize("name", split(ARCHITECTURES, quick=["coca_roberta-ViT-B-32", "nllb-clip-base"]))
def test_open_clips_own_architectures_are_planned(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository, kind = ARCHITECTURES[name]
    write_to_hub_cache(kind, repository, tmp_path)
    drawn = blueprint(f"openclip:{name}@random")
    assert drawn.spec.context_length == 77
    for device in ("cpu", "cuda"):
        assert drawn.text_cost(device=device).requested(1) > 0


@pytest.mark.slow
def test_an_architecture_of_open_clip_is_loaded_from_the_hubs_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    write_to_hub_cache("roberta", "roberta-base", tmp_path)
    encoder = load("openclip:roberta-ViT-B-32@random")
    assert encoder.spec.context_length == 77
    assert encoder.encode_text(encoder.tokenize(TEXTS).ids).shape == (4, 512)


def test_what_is_missing_of_the_hub_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name, repository in (
        ("roberta-ViT-B-32", "roberta-base"),
        ("nllb-clip-base-siglip", "facebook/nllb-200-distilled-600M"),
        ("mt5-xl-ViT-H-14", "google/mt5-xl"),
    ):
        with pytest.raises(WeightsError) as caught:
            blueprint(f"openclip:{name}@random")
        said = str(caught.value)
        assert said.startswith(f"The text tower of openclip:{name}@random needs config.json of {repository}: ")
        assert f"hf download {repository} config.json" in said
        assert caught.value.facts["repository"] == repository


def test_a_folder_without_its_tokenizer_names_the_files(tmp_path: Path) -> None:
    write("roberta", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"The tokenizer of .* needs tokenizer\.json, .* or vocab\.txt of .*folder"):
        load(f"openclip:{tmp_path}")


def test_random_weights_are_served_without_text_where_the_tokenizer_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
        "text_cfg": {"layers": 1, "width": 16, "heads": 2, "hf_tokenizer_name": "someone/words"},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-words", config)
    assert not load("openclip:tiny-words@random").spec.has_text
    assert "needs tokenizer.json" in caplog.text
    assert "of someone/words: not in the cache" in caplog.text
