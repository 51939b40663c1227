"""Cures for what some of transformers' modules do wrong.

A forward must depend on its pixels alone, take the same memory each time, share a model with other threads, and give
numbers in every dtype.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def forget_sizes(model: nn.Module) -> None:
    """Swin: a block whose grid is no larger than its window sets its own window and shift, and keeps them.

    Each forward of a block is now of a copy, which shares its weights.
    """
    for stage in model.encoder.layers:  # type: ignore[union-attr]  # transformers' modules are not typed
        for block in stage.blocks:
            block.__class__ = _forgetful(type(block))


def _forgetful(kind: Any) -> Any:
    class Forgetful(kind):  # type: ignore[misc]  # transformers is Any here
        def forward(self, *args: Any, **options: Any) -> Any:
            return kind.forward(copy.copy(self), *args, **options)

    return Forgetful


def index_positions_afresh(model: nn.Module) -> None:
    """BEiT: the index of relative positions is made on the host and cached for ten sizes, for all models at once.

    Now that of the native size lies with the weights, once a model, and others are made for each forward.
    """
    shared: dict[tuple[int, int], Tensor] = {}
    every: list[Any] = list(model.modules())
    for module in every:
        if hasattr(type(module), "generate_relative_position_index"):
            module.__class__ = _fresh(type(module))
            window = tuple(module.window_size)
            if window not in shared:
                with torch.device(module.relative_position_bias_table.device):
                    shared[window] = module.made(window)
            module.register_buffer("native_index", shared[window], persistent=False)


def _fresh(kind: Any) -> Any:
    class Fresh(kind):  # type: ignore[misc]  # transformers is Any here
        def made(self, window: tuple[int, int]) -> Tensor:
            """The index, on whatever device is torch's default."""
            index: Tensor = kind.generate_relative_position_index.__wrapped__(window)
            return index

        def generate_relative_position_index(self, window: tuple[int, int]) -> Tensor:
            """The index, on the device of the weights."""
            if tuple(window) == tuple(self.window_size):
                native: Tensor = self.native_index
                return native
            with torch.device(self.relative_position_bias_table.device):
                return self.made(window)

    return Fresh


class _NormalisesInFloat32(TorchFunctionMode):
    """F.normalize of float16 divides in float32: its least divisor, 1e-12, is 0 in float16, and 0 / 0 is no number."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is F.normalize and args[0].dtype == torch.float16:
            return func(args[0].float(), *args[1:], **options).half()
        return func(*args, **options)


def normalise_in_float32(model: nn.Module) -> None:
    """Swin V2: keys of what is padded to whole windows are zeros, and are normalised."""
    for module in model.modules():
        if hasattr(module, "continuous_position_bias_mlp"):
            module.__class__ = _normalising(type(module))


def _normalising(kind: Any) -> Any:
    class Normalising(kind):  # type: ignore[misc]  # transformers is Any here
        def forward(self, *args: Any, **options: Any) -> Any:
            with _NormalisesInFloat32():
                return kind.forward(self, *args, **options)

    return Normalising
