"""What is remembered of an operation on meta is what torch says of it, each time."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.runtime import outlines
from encoders.runtime.outlines import on_meta

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    outlines._kept.clear()
    yield
    outlines._kept.clear()


class Counted:
    """An operation, and how often torch was asked about it."""

    def __init__(self, func: Any) -> None:
        self.func = func
        self.asked = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.asked += 1
        return self.func(*args, **options)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def run(func: Any, *args: Any, **options: Any) -> Any:
    return on_meta(func, args, options, {each.untyped_storage()._cdata for each in args if isinstance(each, Tensor)})


def outline(out: Any) -> Any:
    if isinstance(out, Tensor):
        return out.shape, out.stride(), out.dtype, out.device, out.untyped_storage().nbytes()
    return type(out), [outline(each) for each in out] if isinstance(out, list | tuple) else out


OWN: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "a product": (aten.mm.default, (meta(2, 3), meta(3, 4).t().contiguous().t()), {}),
    "strides that are not those of the shape": (aten.relu.default, (meta(4, 3, 2).permute(2, 0, 1),), {}),
    "a memory format": (aten.clone.default, (meta(1, 3, 4, 4),), {"memory_format": torch.channels_last}),
    "another dtype": (aten._to_copy.default, (meta(3),), {"dtype": torch.bfloat16}),
    "several results": (aten.native_layer_norm.default, (meta(2, 4), [4], meta(4), None, 1e-5), {}),
    "a list of tensors": (aten.cat.default, ([meta(2, 3), meta(1, 3)],), {}),
}
"""Operations that give new tensors."""


@pytest.mark.parametrize("name", OWN)
def test_torch_is_asked_once_about_new_tensors(name: str) -> None:
    func, args, options = OWN[name]
    counted = Counted(func)
    found = [run(counted, *args, **options) for _ in range(3)]
    assert [outline(each) for each in found] == [outline(func(*args, **options))] * 3
    assert counted.asked == 1
    firsts = [each if isinstance(each, Tensor) else each[0] for each in found]
    assert len({each.untyped_storage()._cdata for each in firsts}) == 3


OTHERS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "a view": (aten.transpose.int, (meta(2, 3), 0, 1)),
    "a view that torch calls none": (aten._unsafe_view.default, (meta(2, 3), [6])),
    "what is written over": (aten.add_.Tensor, (meta(2, 3), meta(3))),
    "views in a list": (aten.split.Tensor, (meta(4, 3), 2)),
    "new ones in a list": (aten.split_copy.Tensor, (meta(4, 3), 2)),
    "no tensor": (aten.sym_size.int, (meta(2, 3), 1)),
    "a tensor with values": (aten.index.Tensor, (torch.ones(3), [torch.tensor([True, False, True])])),
}


@pytest.mark.parametrize("name", OTHERS)
def test_of_all_else_nothing_is_kept(name: str) -> None:
    func, args = OTHERS[name]
    counted = Counted(func)
    found = [run(counted, *args) for _ in range(2)]
    assert [outline(each) for each in found] == [outline(func(*args))] * 2
    assert counted.asked == 2
    assert not outlines._kept


def test_views_of_what_was_given_stay_views() -> None:
    given = meta(2, 3)
    for _ in range(2):
        assert run(aten._unsafe_view.default, given, [6]).untyped_storage()._cdata == given.untyped_storage()._cdata


def test_all_that_a_result_depends_on_is_told_apart() -> None:
    whole = meta(2, dtype=torch.int64)
    found = [run(aten.add.Tensor, whole, other) for other in (1, 1.0, True)]
    assert [each.dtype for each in found] == [torch.int64, torch.float32, torch.int64]
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert run(aten.add.Tensor, whole, 1.0).dtype == torch.float64
    finally:
        torch.set_default_dtype(default)
    assert run(aten.relu.default, meta(2, 2)).stride() == (2, 1)
    assert run(aten.relu.default, meta(2, 2).t()).stride() == (1, 2)
    assert run(aten.sum.dim_IntList, meta(2, 3), [0], True).shape == (1, 3)
    assert run(aten.sum.dim_IntList, meta(2, 3), [0]).shape == (3,)


def test_they_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlines, "_KEPT", 4)
    for side in range(1, 12):
        run(aten.relu.default, meta(side))
        assert 0 < len(outlines._kept) <= 4
