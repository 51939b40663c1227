"""An open_clip model by open_clip's own forward and transform."""

from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from encoders.adapters.timm.reference import final_tokens
from encoders.contract.reference import ReferenceRow
from encoders.contract.values import Floats


class OpenClipReference:
    """A Reference. preprocess_cfg: as open_clip keeps it. tokenizer: None where the model is used without texts."""

    library = f"open_clip {open_clip.__version__}"

    def __init__(
        self, model: Any, preprocess_cfg: dict[str, Any], tokenizer: Callable[[list[str]], Tensor] | None
    ) -> None:
        self._model = model.float().eval()
        config = PreprocessCfg(**{**preprocess_cfg, "size": model.visual.image_size})
        self._transform = image_transform_v2(config, is_train=False)
        self._tokenizer = tokenizer

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> ReferenceRow:
        """As Reference.encode."""
        pixels = self._transform(image)
        batch = pixels.unsqueeze(0)
        pooled = self._model.encode_image(batch)
        return ReferenceRow(pixels.numpy(), self._tokens(batch)[0].numpy(), pooled[0].numpy())

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """As Reference.embed_texts."""
        assert self._tokenizer is not None, "the encoder has no text half"
        embedded: Floats = self._model.encode_text(self._tokenizer(list(texts))).numpy()
        return embedded

    def _tokens(self, pixels: Tensor) -> Tensor:
        """Final tokens [B, N, C]: after the tower's last norm, unless that norm stands behind the pooling."""
        visual: Any = self._model.visual
        if isinstance(visual, TimmModel):
            return final_tokens(visual.trunk, visual.trunk.forward_features(pixels))
        if isinstance(visual, ModifiedResNet):
            normed, layout = False, "NCHW"
        else:
            normed, layout = visual.attn_pool is None and not visual.final_ln_after_pool, "NLC"
        found: list[Tensor] = visual.forward_intermediates(
            pixels, indices=1, normalize_intermediates=normed, intermediates_only=True, output_fmt=layout
        )["image_intermediates"]
        return found[-1] if layout == "NLC" else found[-1].flatten(2).transpose(1, 2)
