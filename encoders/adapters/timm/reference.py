"""A timm backbone by timm's own forward and transform."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from encoders.contract.reference import ReferenceRow
from encoders.contract.values import Floats


class TimmReference:
    """A Reference. trunk: without classifier."""

    library = f"timm {timm.__version__}"

    def __init__(self, trunk: Any) -> None:
        self._trunk = trunk.float().eval()
        self._transform = create_transform(**resolve_data_config({}, model=trunk), is_training=False)

    @torch.inference_mode()
    def encode(self, image: Image.Image) -> ReferenceRow:
        """As Reference.encode."""
        pixels: Tensor = self._transform(image)
        final = self._trunk.forward_features(pixels.unsqueeze(0))
        pooled = self._trunk.forward_head(final)
        return ReferenceRow(pixels.numpy(), final_tokens(self._trunk, final)[0].numpy(), pooled[0].numpy())

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Timm has no text halves."""
        raise NotImplementedError


def final_tokens(trunk: Any, final: Tensor) -> Tensor:
    """What forward_features gave, as tokens [B, N, C]; a feature map's are row-major."""
    if final.ndim == 3:
        return final
    channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
    return final.flatten(1, 2) if channels_last else final.flatten(2).transpose(1, 2)
