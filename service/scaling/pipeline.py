"""The pace of a bulk run: its stages work side by side, so the slowest of them, the wall, sets it. Pure arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One thing that every image needs.

    pace: images a second; of the share of one card, or of all machines together if the stage is shared.
    """

    name: str
    pace: float
    is_shared: bool = False

    def at(self, cards: int) -> float:
        """Images a second with so many cards."""
        return self.pace if self.is_shared else cards * self.pace


@dataclass(frozen=True)
class Pipeline:
    """All stages that an image goes through."""

    stages: Sequence[Stage]

    def wall(self, cards: int) -> Stage:
        """The slowest stage; of equal ones the first."""
        return min(self.stages, key=lambda stage: stage.at(cards))

    def pace(self, cards: int) -> float:
        """Images a second of the whole run."""
        return self.wall(cards).at(cards)

    @property
    def limit(self) -> float:
        """Images a second that no number of cards exceeds."""
        return min((stage.pace for stage in self.stages if stage.is_shared), default=math.inf)

    def cards_for(self, pace: float) -> int:
        """The fewest cards that reach this pace, which must be at most `limit`."""
        slowest = min(stage.pace for stage in self.stages if not stage.is_shared)
        return max(1, math.ceil(pace / slowest * (1 - _ROUNDING)))


_ROUNDING = 1e-12
"""8 cards give 8 times the pace of one, and asking for that pace must not give 9."""


@dataclass(frozen=True)
class Need:
    """What one image takes. Bytes are of the network, seconds of one core.

    engine_s: of the engine's Python too, of which a process runs one thread at a time.
    """

    read_bytes: float
    decode_s: float
    engine_s: float
    write_s: float
    write_bytes: float

    @property
    def core_s(self) -> float:
        """All that cores do."""
        return self.decode_s + self.engine_s + self.write_s


@dataclass(frozen=True)
class Supply:
    """What goes with one card. bytes_s: of the network, each way. engines: processes. forwards_s: images a second."""

    cores: float
    engines: int
    bytes_s: float
    forwards_s: float


def fed(need: Need, forwards_s: float) -> Supply:
    """What must go with a card, so that no other stage is slower than so many forwards a second."""
    return Supply(
        cores=forwards_s * need.core_s,
        engines=math.ceil(forwards_s * need.engine_s),
        bytes_s=forwards_s * max(need.read_bytes, need.write_bytes),
        forwards_s=forwards_s,
    )


def pipeline(need: Need, supply: Supply, *, storage_bytes_s: float | None) -> Pipeline:
    """storage_bytes_s: what the storage gives and takes of all machines together; None: as much as they want."""
    stages = [
        Stage("read", supply.bytes_s / need.read_bytes),
        Stage("cores", supply.cores / need.core_s),
        Stage("engine", supply.engines / need.engine_s),
        Stage("forward", supply.forwards_s),
        Stage("write", supply.bytes_s / need.write_bytes),
    ]
    if storage_bytes_s is not None:
        stages.append(Stage("storage", storage_bytes_s / (need.read_bytes + need.write_bytes), is_shared=True))
    return Pipeline(stages)


@dataclass(frozen=True)
class Cluster:
    """So many cards, and what goes with each, at work on so many images."""

    pipeline: Pipeline
    images: int
    cards: int

    @property
    def pace(self) -> float:
        """Images a second."""
        return self.pipeline.pace(self.cards)

    @property
    def wall(self) -> str:
        """The stage that sets the pace."""
        return self.pipeline.wall(self.cards).name

    @property
    def hours(self) -> float:
        """Until the last image is done."""
        return self.images / self.pace / 3600

    @property
    def card_hours(self) -> float:
        """What is paid for."""
        return self.cards * self.hours
