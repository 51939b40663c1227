"""What operations on meta give, remembered: torch works it out in Python, anew for each of equal layers."""

from collections.abc import Set
from typing import Any, NamedTuple

import torch
from torch import Tensor

_KEPT = 4_000
"""Callers can think of any number of sizes. A model has some hundred for each."""


class Outline(NamedTuple):
    """All that a tensor on meta is, if no other has its storage."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        """A new one."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


class _HasValues(Exception):
    """A tensor is not on meta: a result's shape may depend on its values."""


_kept: dict[tuple[Any, ...], list[Outline]] = {}


def on_meta(func: Any, args: tuple[Any, ...], options: dict[str, Any], given: Set[int]) -> Any:
    """As func(*args, **options), of torch's operations. given: the storages of the arguments, by address."""
    try:
        key = func, torch.get_default_dtype(), _key(args), _key(tuple(options.items()))
        kept = _kept.get(key)
    except (_HasValues, TypeError):  # TypeError: what cannot be hashed
        return func(*args, **options)
    if kept is not None:
        made = [outline.tensor() for outline in kept]
        return made[0] if len(made) == 1 else tuple(made)
    out = func(*args, **options)
    outlines = _outlines(out, given)
    if outlines:
        if len(_kept) >= _KEPT:
            _kept.clear()
        _kept[key] = outlines
    return out


def _key(value: Any) -> Any:
    """All of an argument that shapes depend on."""
    if isinstance(value, Tensor):
        if not value.is_meta:
            raise _HasValues
        return value.dtype, value.shape, value.stride()
    if isinstance(value, list | tuple):
        return tuple(map(_key, value))
    return type(value), value  # 1, 1.0 and True are equal


def _outlines(out: Any, given: Set[int]) -> list[Outline]:
    """Of one result, or of a tuple of more; none if one of them is no tensor with a storage of its own."""
    results = out if isinstance(out, tuple) and len(out) > 1 else (out,)
    outlines, seen = [], set(given)
    for result in results:
        if not isinstance(result, Tensor) or not result.is_meta:
            return []
        storage, outline = result.untyped_storage(), Outline(result.shape, result.stride(), result.dtype)
        if storage._cdata in seen or storage.nbytes() != outline.tensor().untyped_storage().nbytes():
            return []
        seen.add(storage._cdata)
        outlines.append(outline)
    return outlines
