"""A transformers checkpoint by transformers' own processor and forward."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from encoders.adapters.hf.checkpoint import Checkpoint
from encoders.contract.reference import ReferenceRow
from encoders.contract.values import Floats


class HfReference:
    """A Reference: AutoImageProcessor and AutoModel, as a model card's first example uses them."""

    library = f"transformers {transformers.__version__}"

    def __init__(self, checkpoint: Checkpoint) -> None:
        name, options = checkpoint.name, checkpoint.options
        self._processor: Any = transformers.AutoImageProcessor.from_pretrained(name, **options)
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
