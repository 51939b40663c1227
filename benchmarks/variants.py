"""Ways to run an encoder's forward, by name: the service's own, and what might be faster. Knows nothing of time."""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from encoders.contract.values import Outputs
from encoders.runtime.cuda_graphs import CudaRecorder
from encoders.runtime.folding import fold_batch_norms
from encoders.runtime.torch_encoder import TorchEncoder

POOLED = Outputs(pooled=True)
"""What every forward here gives."""

Forward: TypeAlias = Callable[[], Tensor]
"""One forward of a batch that lies on the device already -> [B, E] there. To be called in inference mode."""


def _same(encoder: TorchEncoder) -> TorchEncoder:
    return encoder


def eager(encoder: TorchEncoder, pixels: Tensor) -> Forward:
    """As it is served. pixels: uint8 [B, H, W, 3], on the encoder's device."""

    def forward() -> Tensor:
        return _pooled(encoder.run(pixels, POOLED).pooled)

    return forward


def _pooled(pooled: Tensor | None) -> Tensor:
    assert pooled is not None, "pooled was asked for"
    return pooled


class Variant(NamedTuple):
    """A way to run a forward. change: gives the encoder another tower, if it needs one. start: for one batch."""

    change: Callable[[TorchEncoder], TorchEncoder] = _same
    start: Callable[[TorchEncoder, Tensor], Forward] = eager


def _with_own_tower(encoder: TorchEncoder) -> TorchEncoder:
    """The same encoder around a copy of its tower, to be changed."""
    own = copy.copy(encoder)
    own.tower = copy.deepcopy(encoder.tower)
    return own


def _channels_last(encoder: TorchEncoder) -> TorchEncoder:
    """The input is turned in a copy of its own, which is part of the forward."""
    own = _with_own_tower(encoder)
    own.tower.to(memory_format=torch.channels_last)
    own.tower.register_forward_pre_hook(
        lambda _, given: (given[0].contiguous(memory_format=torch.channels_last), *given[1:])
    )
    return own


def _folded(encoder: TorchEncoder) -> TorchEncoder:
    """Raises ValueError if there is no batch norm to fold: in half precision the service has done so already."""
    own = _with_own_tower(encoder)
    if not fold_batch_norms(own.tower):
        raise ValueError("no batch norm stands behind a convolution")
    return own


def _compiled(encoder: TorchEncoder, pixels: Tensor, *, mode: str) -> Forward:
    """Compiles at the first call, for this shape alone.

    Whole or not at all: torch would otherwise break off at what it cannot trace and run that part eagerly, unsaid. So
    the packing of the output is left out of it, which asks for the size of a storage.
    """
    torch.compiler.reset()  # else the models before count towards torch's limit, after which it runs eagerly, unsaid

    def forward(given: Tensor) -> Tensor:
        return _pooled(encoder.tower(encoder.normalise(given), POOLED).pooled)

    compiled: Callable[[Tensor], Tensor] = torch.compile(forward, fullgraph=True, dynamic=False, mode=mode)
    return partial(compiled, pixels)


def _recorded(encoder: TorchEncoder, pixels: Tensor) -> Forward:
    """As the setting cuda_graph_bytes does it, at any batch; each replay writes over the answer of the one before."""
    if pixels.device.type != "cuda":
        raise ValueError("CUDA graphs need a CUDA device")
    forward, recorder = eager(encoder, pixels), CudaRecorder(pixels.device)
    pooled = torch.empty_like(recorder.measured(forward)[0])

    def run() -> None:
        pooled.copy_(forward())

    replay = recorder.record(run)

    def replayed() -> Tensor:
        replay()
        return pooled

    return replayed


VARIANTS = {
    "eager": Variant(),
    "channels_last": Variant(change=_channels_last),
    "folded": Variant(change=_folded),
    "compile": Variant(start=partial(_compiled, mode="default")),
    "max-autotune": Variant(start=partial(_compiled, mode="max-autotune-no-cudagraphs")),
    "cudagraphs": Variant(start=_recorded),
}
COMPILED = ("compile", "max-autotune")
DEFAULT = tuple(name for name in VARIANTS if name != "max-autotune")
