"""`demo:vit`, `demo:resnet`, `demo:convnext`: small CLIPs trained on drawn scenes, their weights in this package.

weights/    what they learnt (fp16), how (PROVENANCE.md), and what was measured (report.json); training/demo/ made them
"""

from pathlib import Path

from encoders.adapters.registry import EncoderId
from encoders.contract.encoder import Placement
from encoders.contract.errors import EncoderIdError
from encoders.runtime.torch_encoder import TorchEncoder

NAMES = ("vit", "resnet", "convnext")
WEIGHTS = Path(__file__).parent / "weights"


def load(encoder_id: EncoderId, placement: Placement) -> TorchEncoder:
    """A demo encoder, through the same adapter as any open_clip model. Raises EncoderIdError for another name."""
    if encoder_id.name not in NAMES or encoder_id.weights is not None:
        known = ", ".join(f"demo:{name}" for name in NAMES)
        raise EncoderIdError(
            f"There is no '{encoder_id}'. Known: {known}; they take no @WEIGHTS.", model=str(encoder_id)
        )
    from encoders.adapters.demo import saved  # training imports this package for its world alone, without open_clip
    from encoders.adapters.demo.vocabulary import tokenizer
    from encoders.adapters.openclip.clip import clip_encoder

    model, preprocess_cfg = saved.load(encoder_id.name, WEIGHTS, weights=not placement.is_blueprint)
    return clip_encoder(model, preprocess_cfg, tokenizer=tokenizer(), encoder_id=str(encoder_id), placement=placement)
