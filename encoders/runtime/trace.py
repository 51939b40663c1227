"""Bytes and FLOPs of a forward, counted operation by operation. Knows torch's dispatcher; knows no encoder.

The same count runs over tensors on meta, which hold no memory (a prediction), and over real ones (a measurement). What
it cannot see is what a kernel takes for itself within one operation.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from encoders.runtime.attention import attend
from encoders.runtime.outlines import on_meta

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_BATCH_NORM = torch.ops.aten._native_batch_norm_legit_no_training.default


def _packed_product(x: Tensor, *_: object, out_val: Tensor) -> int:
    """2 x multiply-adds of PackedLinear's operation, and of Int8Linear's."""
    return 2 * x.numel() * out_val.shape[-1]


def _packed_convolution(_: Tensor, weight: Tensor, *__: object, out_val: Tensor) -> int:
    """2 x multiply-adds of PackedConv's operation."""
    return 2 * out_val.numel() * weight.shape[1:].numel()


_FORMULAS: dict[Any, Callable[..., int]] = {
    # as any other kernel's; torch 2.11 has none for it
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        torch.ops.aten._scaled_dot_product_flash_attention
    ],
    **flop_registry,
}
if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch does not type it
    _FORMULAS[torch.ops.mkldnn._linear_pointwise] = _packed_product
    _FORMULAS[torch.ops.onednn.qlinear_pointwise] = _packed_product
    _FORMULAS[torch.ops.mkldnn._convolution_pointwise] = _packed_convolution
_WHOLE: set[Any] = set()
"""Operations that were seen to have no parts."""
_PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm}


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type its hooks
    """Counts, while entered, the bytes of every storage made on this thread, from its first tensor to its last.

    Weights and whatever else was there before are not counted, nor are views of them.

    runs_on: the device (cpu or cuda) whose attention kernels are counted for tensors on meta, where torch has none to
        choose; None for real tensors.
    """

    def __init__(self, *, runs_on: str | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor this
        self.live: list[int] = []
        """Bytes alive after each storage was made, in order."""
        self.during_products: list[int] = []
        """Bytes alive while each matrix product runs, in order: what a BLAS library's workspace comes on top of."""
        self.flops = 0
        """2 x multiply-adds of products, convolutions and attention, by torch.utils.flop_counter's formulas."""
        self._runs_on = runs_on
        self._now = 0
        self._bytes: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}

    @property
    def peak(self) -> int:
        """The most bytes alive at once."""
        return max(self.live, default=0)

    @property
    def now(self) -> int:
        """Bytes alive now."""
        return self._now

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation; a composite one in its parts, so that what it makes in between is seen."""
        options = kwargs or {}
        if self._runs_on is not None and func is _ATTENTION:
            with self:
                return attend(self._runs_on, *args, **options)
        formula = _FORMULAS.get(func.overloadpacket)
        if formula is None and func not in _WHOLE and not _interpolates(func):
            with self:
                out = func.decompose(*args, **options)
            if out is not NotImplemented:
                return out
            _WHOLE.add(func)
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((*args, *options.values()))}
        out = func(*args, **options) if self._runs_on is None else on_meta(func, args, options, given)
        if func is _BATCH_NORM and self._runs_on is not None and not _keeps_statistics(self._runs_on, args[0]):
            out = (out[0], *(statistic.new_empty(0) for statistic in out[1:]))
        if formula is not None:
            self.flops += formula(*args, **options, out_val=out)
        for tensor in _tensors((out,)):
            self._see(tensor.untyped_storage(), given)
        if func.overloadpacket in _PRODUCTS:
            self.during_products.append(self._now)
        return out

    def _see(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        place = storage._cdata
        if place in given or place in self._bytes:
            return
        size = storage.nbytes()
        self._bytes[place] = size, weakref.ref(storage, lambda _: self._forget(place))
        self._now += size
        self.live.append(self._now)

    def _forget(self, place: int) -> None:
        size, _ = self._bytes.pop(place)
        self._now -= size


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    """All that have a storage. What oneDNN has laid out its own way has none: weights only."""
    for value in values:
        if isinstance(value, Tensor):
            if not value.is_mkldnn:
                yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _interpolates(func: Any) -> bool:
    """Whether it is one of torch's interpolations. Each is one kernel; in its parts it is made of others, for meta."""
    return "upsample_" in func.overloadpacket.__name__


def _keeps_statistics(device: str, activations: Tensor) -> bool:
    """Whether batch norm at inference makes room for the batch's mean and deviation, as it does on meta.

    Seen: CPUs never do, CUDA does for half precision (its kernel for mixed types).
    """
    return device == "cuda" and activations.dtype != torch.float32
