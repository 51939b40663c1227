"""The device and the encoders that an engine runs, as its settings say. Imports torch when it is first asked."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from pydantic_settings import SettingsError

from encoders.adapters import registry
from encoders.contract.encoder import Blueprint, Encoder, Placement
from encoders.memory.device import Memory
from encoders.memory.prediction import ALLOCATOR
from service.engine.models import Load
from service.memory.planner import MakeBlueprint
from service.scheduling.lanes import BRIEF_S, Lanes
from service.settings import Settings


@dataclass(frozen=True)
class Backend:
    """Makes the parts of an engine. `memory` is called first, and once. hardware: names the device's kind."""

    load: Load
    blueprint: MakeBlueprint
    memory: Callable[[], Memory]
    lanes: Callable[[], Lanes] = Lanes
    hardware: Callable[[], str] = str


def real_backend(settings: Settings) -> Backend:
    """Encoders from the registry. `auto` is resolved when it is first asked for: that is where torch is needed.

    `memory` raises SettingsError if this machine does not have what they ask for.
    """
    _choose_allocator()
    if settings.offline:
        from encoders.runtime.downloads import go_offline  # imports libraries

        go_offline()

    placement = cache(partial(placement_of, settings))

    def memory() -> Memory:
        from encoders.runtime.device_memory import memory_of

        return memory_of(placement().device, graph_bytes=placement().graph_bytes)

    def lanes() -> Lanes:
        from encoders.runtime.device import take_cores

        return Lanes(placement().lanes, take_cores=take_cores, brief_s=BRIEF_S)

    def load(model: str) -> Encoder:
        from encoders.runtime.device import take_cores

        take_cores(1)  # of the loading thread
        return registry.load(model, placement())

    def blueprint(model: str, dtype: str | None) -> Blueprint:
        drawn = registry.blueprint(model, dtype=dtype or placement().dtype)
        if placement().runtime == "torch":
            return drawn
        from encoders.runtime.blueprint import in_openvino

        return in_openvino(drawn)

    def hardware() -> str:
        from encoders.runtime.device import hardware

        return hardware(placement().device)

    return Backend(
        load=load,
        blueprint=blueprint,
        memory=memory,
        lanes=lanes,
        hardware=hardware,
    )


def placement_of(settings: Settings) -> Placement:
    """Where encoders run. Raises SettingsError if this machine does not have what the settings ask for."""
    from encoders.runtime.device import resolve  # imports torch

    try:
        return resolve(
            settings.device,
            settings.dtype,
            settings.runtime,
            settings.lanes,
            settings.calibration,
            settings.cuda_graph_bytes,
        )
    except ValueError as error:
        raise SettingsError(str(error)) from error


def card_bytes() -> int:
    """Bytes of the first card that this process sees. Imports torch; raises ValueError if there is none."""
    _choose_allocator()
    from encoders.runtime.device_memory import card_bytes

    return card_bytes()


def _choose_allocator() -> None:
    """Before torch is imported, which reads it then; plans count on it."""
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
        os.environ.setdefault("PYTORCH_ALLOC_CONF", ALLOCATOR)
