"""A plan: how many cards of which kind, how long they take, and where each figure comes from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from encoders.contract.spec import EncoderSpec
from encoders.contract.values import ImageSize
from encoders.memory.plan import Row
from service.scaling.cards import Card
from service.scaling.pipeline import Cluster, Need, Supply

_NOT_COUNTED = (
    "starting machines, loading weights",
    "failures, and what is done twice",
    "the requests of the storage, TLS",
    "launching kernels, copies between host and card",
)


@dataclass
class Facts:
    """Where each figure of a plan comes from, in words."""

    worked_out: list[str] = field(default_factory=list)
    data_sheet: list[str] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    not_counted: list[str] = field(default_factory=lambda: list(_NOT_COUNTED))


@dataclass(frozen=True)
class Plan:
    """One question and its answer.

    output, dtype: as of `embed`. price: of a card for an hour. forward: of a batch on the card.
    """

    spec: EncoderSpec
    size: ImageSize
    output: str
    dtype: str
    images: int
    card: Card
    cards_a_machine: int
    price: float | None
    need: Need
    supply: Supply
    storage_bytes_s: float | None
    forward: Row
    clusters: Sequence[Cluster]
    facts: Facts

    @property
    def flops(self) -> float:
        """Of one image."""
        return self.forward.prediction.flops / self.forward.prediction.batch

    def machines(self, cluster: Cluster) -> int:
        """The last may have empty places."""
        return -(-cluster.cards // self.cards_a_machine)
