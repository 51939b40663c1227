"""A TorchEncoder whose forwards of few images become CUDA graphs, once they come often. Texts stay eager."""

import weakref
from functools import partial

from torch import Tensor

from encoders.contract.encoder import Placement
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import ImageSize, Outputs
from encoders.runtime.cuda_graphs import Graphs, Key
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.tower import Features, TextTower, Tower


class GraphedEncoder(TorchEncoder):
    """graphs: those of its card, which all encoders share."""

    def __init__(
        self, spec: EncoderSpec, tower: Tower, text: TextTower | None = None, *, placement: Placement, graphs: Graphs
    ) -> None:
        self._graphs = graphs
        super().__init__(spec, tower, text, placement=placement)

    def run(self, pixels: Tensor, outputs: Outputs) -> Features:
        """As PlacedTowers.run. Features of a graph are written over by its next forward, in its stream's turn."""
        key = Key(weakref.ref(self), ImageSize(*pixels.shape[1:3]), outputs, len(pixels))
        graph = self._graphs.find(key)
        if graph is not None:
            return self._graphs.run(graph, self.upload(pixels))
        if self._graphs.is_due(key):
            return self._graphs.record(key, partial(super().run, outputs=outputs), self.upload(pixels))
        return super().run(pixels, outputs)
