"""`demo:vit`, `demo:resnet`, `demo:convnext`: small CLIPs trained on drawn scenes, their weights in this package.

weights/    what they learnt (fp16), how (PROVENANCE.md), and what was measured (report.json); training/demo/ made them
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from open_clip.model import CLIP

from encoders.adapters.demo import saved
from encoders.adapters.demo.vocabulary import tokenizer
from encoders.adapters.openclip.clip import clip_parts
from encoders.adapters.openclip.reference import OpenClipReference
from encoders.adapters.registry import EncoderId
from encoders.contract.errors import EncoderIdError
from encoders.contract.reference import Reference
from encoders.runtime.parts import TorchParts

NAMES = ("vit", "resnet", "convnext")
WEIGHTS = Path(__file__).parent / "weights"


def build(encoder_id: EncoderId, *, with_weights: bool) -> TorchParts:
    """A demo encoder, by way of open_clip's adapter. Raises EncoderIdError for another name."""
    model, preprocess_cfg = _saved(encoder_id, with_weights=with_weights)
    parts = clip_parts(
        model, preprocess_cfg, tokenizer=tokenizer(), encoder_id=str(encoder_id), with_weights=with_weights
    )
    return replace(parts, spec=replace(parts.spec, trained_on="drawings"))


def reference(encoder_id: EncoderId) -> Reference:
    """The same weights as open_clip runs them. Raises EncoderIdError for another name."""
    model, preprocess_cfg = _saved(encoder_id, with_weights=True)
    return OpenClipReference(model, preprocess_cfg, tokenizer())


def weights_files(encoder_id: EncoderId) -> list[Path]:
    """The file in this package."""
    return [saved.weights_file(encoder_id.name, WEIGHTS)]


def _saved(encoder_id: EncoderId, *, with_weights: bool) -> tuple[CLIP, dict[str, Any]]:
    if encoder_id.name not in NAMES or encoder_id.weights is not None:
        known = ", ".join(f"demo:{name}" for name in NAMES)
        raise EncoderIdError(
            f"There is no '{encoder_id}'. Known: {known}; they take no @WEIGHTS.", model=str(encoder_id)
        )
    return saved.load(encoder_id.name, WEIGHTS, weights=with_weights)
