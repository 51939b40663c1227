"""Learnt position tables for another grid than the one they were learnt on."""

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.contract.values import Grid
from encoders.runtime.tower import to_patches


def resample_positions(table: Tensor, native: Grid, grid: Grid) -> Tensor:
    """A position table [1 + rows * cols, C], its class entry first, for another grid; the table itself for its own.

    Bicubic and antialiased as open_clip.model.resize_pos_embed; in float32, which half precision on CPUs lacks.
    """
    if grid == native:
        return table
    spatial = table[1:].float().reshape(1, *native, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(spatial, size=tuple(grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:1], to_patches(resampled)[0].to(table.dtype)])
