"""The parts of an encoder, as an adapter puts them together. Knows how an Encoder or a Blueprint is made of them."""

from dataclasses import dataclass

from encoders.contract.encoder import Encoder, Placement
from encoders.contract.spec import EncoderSpec
from encoders.runtime.blueprint import TorchBlueprint
from encoders.runtime.cuda_graphs import graphs_on
from encoders.runtime.graphed_encoder import GraphedEncoder
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.tower import TextTower, Tower


@dataclass(frozen=True)
class TorchParts:
    """An adapter's result for a model in torch: a tower, a text tower if there is one, and their spec.

    Towers move as they are, they are not copied: parts make one encoder or one blueprint.
    """

    spec: EncoderSpec
    tower: Tower
    text: TextTower | None = None

    def encoder(self, placement: Placement) -> Encoder:
        """The encoder on its device. The towers must have weights."""
        if placement.graph_bytes:
            graphs = graphs_on(placement.device, placement.graph_bytes)
            return GraphedEncoder(self.spec, self.tower, self.text, placement=placement, graphs=graphs)
        encoder = TorchEncoder(self.spec, self.tower, self.text, placement=placement)
        if placement.runtime == "torch":
            return encoder
        from encoders.runtime.openvino import accelerated  # an extra: not everywhere

        return accelerated(encoder, lanes=placement.lanes)

    def blueprint(self, *, dtype: str) -> TorchBlueprint:
        """The blueprint of the encoder that computes in `dtype`. The towers need no weights."""
        return TorchBlueprint(self.spec, self.tower, self.text, dtype=dtype)
