"""`timm:NAME[@WEIGHTS]`: a timm backbone as a token encoder, image only.

Nothing is assumed of a backbone that timm does not declare.
"""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache

from encoders.adapters.hints import hint_for_folder, hint_for_name
from encoders.adapters.registry import EncoderId
from encoders.adapters.timm.reference import TimmReference
from encoders.adapters.timm.spec import native_size, preprocessing_of, trunk_spec
from encoders.adapters.timm.tower import TimmTower
from encoders.contract.errors import EncoderIdError
from encoders.contract.reference import Reference
from encoders.runtime.parts import TorchParts
from encoders.runtime.weights import fitting, load_strictly, seeded
from encoders.runtime.weights_file import read_weights


def build(encoder_id: EncoderId, *, with_weights: bool) -> TorchParts:
    """The parts of a timm backbone. NAME may carry timm's tag (`resnet50.a1_in1k`); WEIGHTS is a file, or `random`.

    Raises EncoderIdError for a name timm does not know, WeightsError for weights that cannot be had or do not fit.
    """
    trunk = _created(encoder_id, with_weights=with_weights)
    with fitting(str(encoder_id), "its configuration"):
        return trunk_parts(trunk, encoder_id=str(encoder_id))


def trunk_parts(trunk: Any, *, encoder_id: str) -> TorchParts:
    """The parts of timm's model, which has no classifier."""
    size = native_size(trunk)
    tower = TimmTower(trunk, size)
    spec = trunk_spec(tower, encoder_id=encoder_id, preprocessing=preprocessing_of(trunk), image_size=size)
    return TorchParts(spec, tower)


def reference(encoder_id: EncoderId) -> Reference:
    """The same backbone as timm runs it. Raises EncoderIdError or WeightsError."""
    return TimmReference(_created(encoder_id, with_weights=True))


def weights_files(encoder_id: EncoderId) -> list[Path]:
    """The file that an id names, or the one in the cache of timm's library."""
    if encoder_id.weights is not None:
        return [Path(encoder_id.weights)]
    config: Any = timm.get_pretrained_cfg(encoder_id.name)
    if not config.hf_hub_id:
        return [Path(torch.hub.get_dir(), "checkpoints", Path(config.url).name)]
    names = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    cached = (try_to_load_from_cache(config.hf_hub_id, name) for name in names)
    return [Path(path) for path in cached if isinstance(path, str)][:1]


def _created(encoder_id: EncoderId, *, with_weights: bool) -> Any:
    name, weights = encoder_id.name, encoder_id.weights
    if name.partition(".")[0] not in timm.list_models():
        raise EncoderIdError(f"timm has no model '{name}'.{_meant(name)}", model=str(encoder_id))
    with seeded(), fitting(str(encoder_id), weights or "timm's pretrained weights"):
        trunk: Any = timm.create_model(name, pretrained=weights is None and with_weights, num_classes=0)
        if weights is not None and with_weights and not encoder_id.is_random:
            _load_file(trunk, Path(weights), encoder_id=str(encoder_id))
    return trunk


def _meant(name: str) -> str:
    """The id that a name timm does not know may stand for, as a sentence."""
    if Path(name).is_dir():
        return hint_for_folder(Path(name))
    bare = name.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("timm/")
    if bare != name and bare.partition(".")[0] in timm.list_models():
        return f" Write timm:{bare}"
    if hint := hint_for_name(name):
        return hint
    close = difflib.get_close_matches(name, timm.list_models(), n=3)
    return f" Did you mean {', '.join(close)}?" if close else " `visiontower models --scheme timm` lists them."


def _load_file(trunk: Any, path: Path, *, encoder_id: str) -> None:
    """A local timm checkpoint; its classifier, which a token encoder does not have, is left out."""
    state = read_weights(path, encoder_id=encoder_id, own=trunk.state_dict().keys())
    classifier = trunk.pretrained_cfg.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    kept = {key: value for key, value in state.items() if not key.startswith(tuple(f"{name}." for name in names))}
    load_strictly(trunk, kept, encoder_id=encoder_id, source=str(path))
