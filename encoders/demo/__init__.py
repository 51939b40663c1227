"""`demo:vit`, `demo:resnet`, `demo:convnext`: small CLIPs trained on drawn scenes, their weights in this package.

world.py, sketches.py    draw scenes of shapes and things, with captions and boxes
vocabulary.py            the reduced CLIP vocabulary their text tower reads
train.py, objective.py   train them:    python -m encoders.demo.train --help
evaluate.py              measure them:  python -m encoders.demo.evaluate --help
weights/                 what they learnt (fp16), and report.json with what was measured
"""

from pathlib import Path

from encoders.errors import EncoderIdError
from encoders.registry import EncoderId
from encoders.tower import TorchEncoder
from encoders.types import Placement

NAMES = ("vit", "resnet", "convnext")
WEIGHTS = Path(__file__).parent / "weights"


def load(encoder_id: EncoderId, placement: Placement) -> TorchEncoder:
    """A demo encoder, through the same adapter as any open_clip model. Raises EncoderIdError for another name."""
    if encoder_id.name not in NAMES or encoder_id.weights is not None:
        known = ", ".join(f"demo:{name}" for name in NAMES)
        raise EncoderIdError(
            f"There is no '{encoder_id}'. Known: {known}; they take no @WEIGHTS.", model=str(encoder_id)
        )
    from encoders.demo import saved  # training imports this package for its world alone, without open_clip
    from encoders.demo.vocabulary import tokenizer
    from encoders.openclip import clip_encoder

    model, preprocess_cfg = saved.load(encoder_id.name, WEIGHTS, weights=not placement.is_blueprint)
    return clip_encoder(model, preprocess_cfg, tokenizer=tokenizer(), encoder_id=str(encoder_id), placement=placement)
