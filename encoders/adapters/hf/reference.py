"""A transformers checkpoint by transformers' own processor and forward."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from encoders.adapters.hf.checkpoint import Checkpoint
from encoders.adapters.hf.preprocessing import Seen, seen_by
from encoders.contract.errors import WeightsError
from encoders.contract.reference import ReferenceRow
from encoders.contract.spec import EncoderSpec, Preprocessing
from encoders.contract.values import Floats, ImageSize


@dataclass(frozen=True)
class Noting(Checkpoint):
    """A checkpoint without settings of an image processor, that notes whose defaults an adapter asks for."""

    asked: list[str] = field(default_factory=list)

    def seen(self, default: str) -> Seen:
        """As Checkpoint.seen."""
        self.asked.append(default)
        return super().seen(default)

    def default_for(self, spec: EncoderSpec) -> Any:
        """That image processor at the size of the spec. Raises WeightsError if its rules are then others."""
        processor = getattr(transformers, self.asked[-1])()
        _resize(processor, spec.image_size)
        seen = seen_by(processor, configured=False)
        if _rules(seen.preprocessing, seen.size) != _rules(spec.preprocessing, spec.image_size):
            raise WeightsError(
                f"{self.id} has no preprocessor_config.json, and {self.asked[-1]}'s defaults at {spec.image_size} are "
                "not what is served, so there is nothing to compare with.",
                model=self.id,
            )
        return processor


def _rules(preprocessing: Preprocessing, size: ImageSize) -> tuple[Preprocessing, ImageSize, float]:
    """What of an image is seen, in pixels instead of as a share."""
    return replace(preprocessing, crop_pct=1.0), size, math.floor(min(size) / preprocessing.crop_pct)


def _resize(processor: Any, size: ImageSize) -> None:
    """Gives an image processor another size, of which it crops the same share."""
    wanted = {"height": size.height, "width": size.width}
    crop = processor.crop_size if getattr(processor, "do_center_crop", False) else None
    share = size.height / crop["height"] if crop else 1
    if crop:
        processor.crop_size = type(crop)(**wanted)
    given = processor.size or {}  # NaFlex has none
    if given.get("shortest_edge"):
        processor.size = type(given)(shortest_edge=int(given["shortest_edge"] * share) if crop else size.height)
    elif "height" in given:
        processor.size = type(given)(**{side: int(given[side] * share) for side in wanted} if crop else wanted)


class HfReference:
    """A Reference: AutoImageProcessor and AutoModel, as a model card's first example uses them.

    processor: in place of the checkpoint's, where that has no settings of one.
    """

    library = f"transformers {transformers.__version__}"

    def __init__(self, checkpoint: Checkpoint, processor: Any = None) -> None:
        name, options = checkpoint.name, checkpoint.options
        self._processor: Any = processor or transformers.AutoImageProcessor.from_pretrained(name, **options)
        self._model: Any = transformers.AutoModel.from_pretrained(name, dtype=torch.float32, **options).eval()
        self._checkpoint = checkpoint

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> ReferenceRow:
        """As Reference.encode.

        The forward of CLIP and its kin norms the class token alone; the patch tokens get the same norm here, as
        final tokens do everywhere in visiontower.
        """
        inputs = self._processor(images=image, return_tensors="pt")
        vision = getattr(self._model, "vision_model", self._model)
        seen = vision(**inputs)
        tokens: Tensor = seen.last_hidden_state
        if any(name in vision.config.model_type for name in ("clip", "mlcd")):
            tokens = vision.post_layernorm(tokens)
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        joint = hasattr(self._model, "get_image_features")
        pooled = (self._model.get_image_features(**inputs) if joint else seen).pooler_output
        pixels = inputs["pixel_values"]
        return ReferenceRow(
            pixels[0].numpy() if pixels.ndim == 4 else None,
            tokens[0].numpy(),
            None if pooled is None else pooled.flatten(1)[0].numpy(),
        )

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """As Reference.embed_texts: padded to the context length, as these models were trained."""
        config = self._model.config.text_config
        tokenizer = self._checkpoint.tokenizer(vocabulary=config.vocab_size)
        assert tokenizer is not None, "the encoder has a text half"
        ids = tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=config.max_position_embeddings,
            return_tensors="pt",
        )
        if config.model_type.startswith("siglip"):  # trained without a mask, whatever its tokenizer gives
            ids = {"input_ids": ids["input_ids"]}
        embedded: Floats = self._model.get_text_features(**ids).pooler_output.numpy()
        return embedded
