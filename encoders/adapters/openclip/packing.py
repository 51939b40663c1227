"""open_clip's transformer blocks with their weights laid out for CPUs."""

from collections.abc import Iterable
from typing import Any

from open_clip.transformer import ResidualAttentionBlock

from encoders.runtime.attention import BatchFirst
from encoders.runtime.packed_linear import pack


def pack_blocks(blocks: Iterable[Any]) -> None:
    """Pack the linear layers and the attention of open_clip's own blocks; other blocks stay as they are."""
    for block in blocks:
        if type(block) is not ResidualAttentionBlock:
            continue
        pack(block.mlp)
        if isinstance(block.attn, BatchFirst) and block.attn.in_proj_weight is not None:
            block.attn.pack()
