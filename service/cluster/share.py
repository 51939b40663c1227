"""The part of a machine that one engine gets from a cluster, and the engine's settings for it.

A cluster hands out cores and cards by number, and holds nobody to them: an engine that has one core of sixteen would
start sixteen threads, and one that has half a card would plan for all of it.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from encoders.memory.machine import available_cores
from service.cluster.errors import ClusterError
from service.engine.backend import card_bytes
from service.engine.part import part_of
from service.settings import Settings


@dataclass(frozen=True)
class Share:
    """cpus: cores. gpus: a card or a part of one, from 0 to 1. An engine runs on one device. Raises ClusterError."""

    cpus: float
    gpus: float

    def __post_init__(self) -> None:
        if not 0.01 <= self.cpus < math.inf:
            raise ClusterError(f"An engine needs a core or a part of one from 0.01 on, and it is given {self.cpus:g}.")
        if not 0 <= self.gpus <= 1:
            raise ClusterError(
                f"An engine runs on one card or a part of one, and it is given {self.gpus:g}: take a number from 0 to "
                "1, and more engines for more cards."
            )

    @classmethod
    def of(
        cls, cluster: Mapping[str, float], settings: Settings, *, cpus: float | None = None, gpus: float | None = None
    ) -> "Share":
        """For each engine of a cluster. cluster: its resources, by Ray's names CPU and GPU.

        Without gpus a whole card, if the cluster has any and the settings allow it. Without cpus the cores that come
        with that part of a card, which decode for it; without a card one core.

        Raises ClusterError if it does not go with the settings.
        """
        cards = cluster.get("GPU", 0.0)
        wanted = settings.device.partition(":")[0]
        if gpus is None:
            gpus = 1.0 if wanted == "cuda" or (wanted == "auto" and cards > 0) else 0.0
        if cpus is None:
            cpus = max(1.0, cluster.get("CPU", 1.0) * gpus / cards // 1) if gpus and cards else 1.0
        if (wanted == "cuda" and not gpus) or (wanted == "cpu" and gpus):
            raise ClusterError(
                f"The device is '{settings.device}', and an engine is given {gpus:g} cards: leave the device at auto."
            )
        return cls(cpus, gpus)

    @classmethod
    def check(cls, *, cpus: float | None, gpus: float | None) -> None:
        """Raises ClusterError for what no cluster can give, before one is asked; None is left to Share.of."""
        cls(1.0 if cpus is None else cpus, gpus or 0.0)

    def most(self, cluster: Mapping[str, float]) -> int:
        """How many engines the cluster has room for, if its machines have whole numbers of them."""
        by_cores = cluster.get("CPU", 0.0) / self.cpus
        return int(min(by_cores, cluster.get("GPU", 0.0) / self.gpus) if self.gpus else by_cores)

    def settings(self, settings: Settings) -> Settings:
        """The settings of the engine that has it: what is `auto` becomes its part. To be called in its process.

        The process computes on as many cores from now on, so nothing may have imported torch before. Raises ValueError
        if there is to be a card and none is seen.
        """
        cores = available_cores()
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(self.cpus))))  # Ray does so too, in its actors
        host = min(1.0, self.cpus / cores)
        if not self.gpus:
            part = part_of(settings, host=host, device=host, cores=int(self.cpus))
            return part.model_copy(update={"device": "cpu"})  # Ray lets a process see cards that it was not given
        part = part_of(settings, host=host, device=1.0, cores=int(self.cpus))
        if self.gpus == 1 or settings.vram_budget != "auto":
            return part.model_copy(update={"device": "cuda"})
        # Of the whole card: engines start one after the other, and each would find less free than the one before.
        budget = int(self.gpus * settings.vram_share * card_bytes())
        return part.model_copy(update={"device": "cuda", "vram_budget": budget})
