"""Texts of unequal lengths in one batch: what is computed token by token is spared their padding.

`only_read` says for a forward which tokens are read, and Blocks in it take these alone: `gathered` before what is
computed token by token, `spread` before attention, where every text has its own tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encoders.contract.values import TokenIds

_COLUMNS = 2
"""Texts are this many tokens long, or a multiple: a device then sees fewer shapes."""
_WORTH = 0.9
"""Tokens of a batch that fill less of its columns are gathered; of more it takes as long as it spares."""


@dataclass(frozen=True)
class _Read:
    """The tokens that are read: int64 [T], of all `batch` times `columns` in their order."""

    tokens: Tensor
    batch: int
    columns: int


_read: ContextVar[_Read | None] = ContextVar("_read", default=None)
"""Of the forward that runs in this context. None: all tokens."""


def columns(lengths: NDArray[np.int64], *, at_most: int) -> int:
    """Of a batch of texts of such lengths."""
    return min(-(-int(lengths.max(initial=1)) // _COLUMNS) * _COLUMNS, at_most)


def lengths_to_padding(ids: TokenIds, padding: int, *, ends: bool) -> NDArray[np.int64]:
    """int64 [N]: tokens of each text ahead of its padding. ends: whether the id of padding is the end of a text too."""
    given = ids != padding
    lengths: NDArray[np.int64] = np.where(given.any(axis=1), ids.shape[1] - given[:, ::-1].argmax(axis=1), 0) + ends
    return lengths.clip(1, ids.shape[1])


@contextmanager
def only_read(lengths: NDArray[np.int64], count: int, *, context: int, device: torch.device) -> Iterator[None]:
    """In here Blocks compute, of texts with `count` columns, the first tokens that the lengths say, and 0 for others.

    On a CPU alone: elsewhere it was not measured. context: columns of the texts that memory is planned for.
    """
    is_read = np.arange(count) < lengths[:, None]
    read, given = int(is_read.sum()), is_read.size
    # A Block's attention holds at most its input, queries, keys and values for all columns, and its input, keys and
    # values gathered. The plan is of full texts, with room for input, queries, keys, values and what attention gives.
    fits = 4 * given + 3 * read <= 5 * len(lengths) * context
    spares = device.type == "cpu" and fits and read < _WORTH * given
    token = _read.set(_Read(torch.from_numpy(np.flatnonzero(is_read)), *is_read.shape) if spares else None)
    try:
        yield
    finally:
        _read.reset(token)


def gathered(x: Tensor) -> Tensor:
    """[N, columns, C] -> [1, T, C], the tokens that are read; x itself if all of them are."""
    read = _read.get()
    return x if read is None else x.flatten(0, 1).index_select(0, read.tokens)[None]


def spread(rows: Tensor) -> Tensor:
    """[1, T, C] -> [N, columns, C], with 0 for padding; the rows themselves if none was left out."""
    read = _read.get()
    if read is None:
        return rows
    out = rows.new_zeros(read.batch * read.columns, rows.shape[-1])
    return out.index_copy_(0, read.tokens, rows[0]).view(read.batch, read.columns, -1)
