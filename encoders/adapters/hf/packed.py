"""Vision towers that read images as one row of patches: Qwen-VL's and their kin. Knows no ids and no files.

What the towers would compute from the sizes of the images is computed here, on the CPU, so that no value of the
device is read. All images of a batch have one size.
"""

from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers import vision_utils

from encoders.contract.values import Grid

_SEGMENTS = "visiontower_flash_segments"
"""The name of `_attend` in transformers. One with `flash` in it is told where segments end; others run one by one."""


def attend_at_once(vision: Any) -> None:
    """From now on the tower's segments of one length, images or windows, attend in one operation."""
    transformers.AttentionInterface.register(_SEGMENTS, _attend)
    vision.config._attn_implementation_internal = _SEGMENTS


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: Tensor,
    **options: Any,
) -> tuple[Tensor, None]:
    """Queries, keys and values [1, heads, S, C] -> [1, S, heads, C]. cu_seq_lens_q: where segments begin and end."""
    lengths = cu_seq_lens_q.diff().tolist()
    if len(set(lengths)) == 1:
        shape = (query.shape[1], len(lengths), lengths[0], query.shape[-1])
        batches = (x.reshape(shape).transpose(0, 1) for x in (query, key, value))
        mixed = _within(*batches, scale=options["scaling"])
        return mixed.transpose(1, 2).flatten(0, 1).unsqueeze(0), None
    segments = zip(*(torch.split(x, lengths, dim=2) for x in (query, key, value)), strict=True)
    mixed = torch.cat([_within(*segment, scale=options["scaling"]) for segment in segments], dim=2)
    return mixed.transpose(1, 2), None


def _within(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def packed(model: Any, pixels: Tensor, native: bool) -> dict[str, Any]:
    """Arguments of the tower: patches in blocks of merge x merge, one block behind the other, as Qwen2VLImageProcessor.

    An image is a film of as many equal frames as the tower's patches are deep.
    """
    vision = model.visual
    config = vision.config
    patch, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    count, channels, height, width = pixels.shape
    rows, cols = height // patch, width // patch
    x = pixels.reshape(count, channels, rows // merge, merge, patch, cols // merge, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)  # [B, rows / m, cols / m, m, m, 3, 1, patch, patch]
    x = x.expand(*x.shape[:6], frames, patch, patch)
    sizes = torch.tensor([[1, rows, cols]] * count, device="cpu")
    return {
        "hidden_states": x.reshape(count * rows * cols, channels * frames * patch * patch),
        "grid_thw": sizes,
        "position_ids": vision_utils.get_vision_position_ids(sizes, merge).to(pixels.device),
        **_windows(vision, sizes, pixels.device),
        **_positions(vision, sizes, pixels.device),
    }


def _windows(vision: Any, sizes: Tensor, device: torch.device) -> dict[str, Any]:
    """Qwen2.5-VL's: which tokens attend to each other."""
    if not hasattr(vision, "fullatt_block_indexes"):
        return {}
    index, bounds = _window_index(vision, sizes)
    return {"window_index": index.to(device), "cu_window_seqlens": bounds}


def _window_index(vision: Any, sizes: Tensor) -> tuple[Tensor, Tensor]:
    config = vision.config
    index, bounds = vision_utils.get_vision_window_index(
        sizes,
        spatial_merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        patch_size=config.patch_size,
    )
    return index, bounds


def _positions(vision: Any, sizes: Tensor, device: torch.device) -> dict[str, Any]:
    """Qwen3-VL's: how learned positions are interpolated."""
    if not hasattr(vision, "num_grid_per_side"):
        return {}
    indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
        sizes,
        num_grid_per_side=vision.num_grid_per_side,
        mode=vision.interpolation_mode,
        align_corners=vision.interpolation_align_corners,
        spatial_merge_size=vision.config.spatial_merge_size,
    )
    return {"interp_indices": indices.to(device), "interp_weights": weights.to(device)}


def packed_features(model: Any, arguments: dict[str, Any]) -> Any:
    """As vlm.image_features, under the names that get_image_features has for the tower's arguments."""
    options = dict(arguments)
    return model.get_image_features(
        pixel_values=options.pop("hidden_states"), image_grid_thw=options.pop("grid_thw"), return_dict=True, **options
    )


def unpacked(vision: Any, tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens [B, N, C] of the tower in row-major order: its windows and blocks undone."""
    merge = vision.config.spatial_merge_size
    count, _, width = tokens.shape
    blocks = tokens.reshape(count, -1, merge * merge, width)
    if hasattr(vision, "fullatt_block_indexes"):
        index, _ = _window_index(vision, torch.tensor([[1, *grid]], device="cpu"))
        blocks = blocks[:, torch.argsort(index).to(tokens.device)]
    blocks = blocks.reshape(count, grid.rows // merge, grid.cols // merge, merge, merge, width)
    return blocks.transpose(2, 3).reshape(count, grid.rows * grid.cols, width)
