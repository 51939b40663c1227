"""The costs of an encoder's forwards, counted over tensors that hold no bytes. Knows towers; loads no weights."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from encoders.contract.cost import Cost, Curve
from encoders.contract.encoder import Blueprint
from encoders.contract.errors import Int8Refused
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.runtime.attention import planned_for
from encoders.runtime.failures import running
from encoders.runtime.int8 import observe
from encoders.runtime.placed_towers import PlacedTowers
from encoders.runtime.tower import FINAL, TextTower, Tower
from encoders.runtime.trace import Trace


class TorchBlueprint(PlacedTowers):
    """A Blueprint over a Tower on torch's device meta.

    tower, text: as an adapter builds them under torch.device("meta"). Their weights, if they have any, are dropped.
    """

    def __init__(self, spec: EncoderSpec, tower: Tower, text: TextTower | None = None, *, dtype: str) -> None:
        observed = None
        if dtype == "int8":
            plain = PlacedTowers(spec, tower, text, device="meta", dtype="float32")
            image = torch.empty(1, *spec.image_size, 3, dtype=torch.uint8)
            with running(spec.id):
                observed = observe(tower, [partial(plain.run, image, FINAL)], images=1)
        super().__init__(spec, tower, text, device="meta", dtype=dtype, observed=observed)

    def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
        """As Blueprint.cost. Raises Int8Refused too."""
        if self.spec.dtype == "int8" and device != "cpu":
            raise Int8Refused(f"int8 is for CPUs, and not for {device}.", model=self.spec.id)
        rows, cols = self.spec.tokens_grid(size, outputs)

        def run(pixels: Tensor) -> list[Tensor]:
            features = self.run(pixels, outputs)
            return [tensor for tensor in (features.tokens, features.pooled) if tensor is not None]

        pixels = torch.empty(1, dtype=torch.uint8).expand(1, *size, 3)
        return self._cost(run, pixels, device=device, itemsize=self._dtype.itemsize, tokens=rows * cols)

    def text_cost(self, *, device: str) -> Cost:
        """As Blueprint.text_cost."""
        length = self.spec.context_length or 0
        ids = torch.empty(1, dtype=torch.int64).expand(1, length)
        return self._cost(lambda ids: [self.run_text(ids)], ids, device=device, itemsize=ids.itemsize, tokens=length)

    def _cost(
        self, run: Callable[[Tensor], list[Tensor]], item: Tensor, *, device: str, itemsize: int, tokens: int
    ) -> Cost:
        """By a run on one, two and four items that hold no bytes.

        item: [1, ...] on the host, for its shape. itemsize: bytes of each of its values as the tower reads them.
        """
        traces = []
        for batch in (1, 2, 4):
            given = item.expand(batch, *item.shape[1:])
            if device == "cpu":
                given = given.to("meta")  # there already; what is left on the host is copied as part of the forward
            with running(self.spec.id), planned_for(device), Trace(runs_on=device) as trace:
                output_bytes = sum(tensor.nbytes for tensor in run(given)) // batch
            traces.append(trace)
        return Cost(
            requested=Curve.through(*(trace.live for trace in traces)),
            during_products=Curve.through(*(trace.during_products for trace in traces)),
            input_bytes=item.numel() * itemsize,
            output_bytes=output_bytes,
            flops=traces[0].flops,
            tokens=tokens,
        )


_OPENVINO_TAKES = 2
"""Times what PyTorch's forward takes. OpenVINO does not say. In a first forward of 8, 16 and 32 images resident memory
grew by 0.4 to 1.8 times as much (docs/memory.md)."""


class OpenVinoBlueprint:
    """The Blueprint of an encoder with a graph of OpenVINO's: its copy of the weights, and more room to work in."""

    def __init__(self, drawn: TorchBlueprint) -> None:
        copied = sum(weight.nbytes for weight in drawn.tower.parameters())
        self.spec = replace(drawn.spec, runtime="openvino", weights_bytes=drawn.spec.weights_bytes + copied)
        self._torch = drawn

    def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
        """As Blueprint.cost."""
        cost = self._torch.cost(size, outputs, device=device)
        if not is_in_graph(self.spec, size, outputs):
            return cost
        return replace(
            cost,
            requested=cost.requested.times(_OPENVINO_TAKES),
            during_products=cost.during_products.times(_OPENVINO_TAKES),
        )

    def text_cost(self, *, device: str) -> Cost:
        """As Blueprint.text_cost."""
        return self._torch.text_cost(device=device)


def is_in_graph(spec: EncoderSpec, size: ImageSize, outputs: Outputs) -> bool:
    """Whether OpenVINO runs these outputs for images of this size: final tokens and pooled vectors of native size."""
    return size == spec.image_size and outputs.layer is None and outputs.tokens in (None, TokenKind.HIDDEN)


def in_openvino(drawn: Blueprint) -> Blueprint:
    """The blueprint of the same encoder where the runtime is openvino."""
    return OpenVinoBlueprint(drawn) if isinstance(drawn, TorchBlueprint) else drawn
