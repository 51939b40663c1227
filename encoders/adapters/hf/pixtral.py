"""Pixtral's vision tower on a batch of images of one size."""

from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from encoders.adapters.hf.vlm import like


class _BatchOfOneSize:
    """PixtralVisionModel, whose own forward lays all images in one row of patches.

    Its mask, so that no image sees another, grows with the square of the batch. In a batch there is nothing to mask.
    """

    @merge_with_config_defaults  # type: ignore[untyped-decorator]  # transformers is Any here
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(self: Any, pixel_values: Tensor, **options: Any) -> Any:
        """pixel_values: [B, 3, H, W]. Tokens are [B, rows * cols, C]."""
        patches = self.patch_conv(pixel_values)  # [B, C, rows, cols]
        tokens = self.ln_pre(patches.flatten(2).transpose(1, 2))
        rows, cols = (torch.arange(side, device=tokens.device) for side in patches.shape[2:])
        positions = torch.cartesian_prod(rows, cols)  # [rows * cols, 2]
        rotary = self.patch_positional_embedding(tokens, positions)
        return self.transformer(tokens, attention_mask=None, position_embeddings=rotary, **options)


def batch_images(vision: Any) -> None:
    """From now on the tower takes batches of images of one size."""
    vision.__class__ = like(type(vision), _BatchOfOneSize)
