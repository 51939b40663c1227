"""The processor and the cards, as torch and the driver see them. What asks torch is to be run in another process."""

import ctypes
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pydantic_settings import SettingsError

from service.doctor.facts import Card, Choice, Nvidia, Torch
from service.doctor.machine import folder
from service.settings import Settings

BUS = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY = "0x10de", "0x03"
"""Of PCI: the vendor, and the beginning of the classes of display controllers, GPUs without a display among them."""
_LONGEST_VERSION = 80
"""NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE."""


def torch() -> Torch:
    """Imports torch, and starts CUDA if there is a card. Raises whatever torch does."""
    import torch

    cards, why_no_card = _cards()
    can = torch.cpu.get_capabilities()
    return Torch(
        version=torch.__version__,
        cuda=torch.version.cuda,
        architectures=tuple(torch.cuda.get_arch_list()),
        cards=cards,
        why_no_card=why_no_card,
        processor=str(can.get("cpu_name") or platform.processor() or "unknown processor").strip(),
        machine=platform.machine(),
        vectors=torch.backends.cpu.get_cpu_capability(),
        has_bfloat16=bool(can.get("avx512_bf16") or can.get("amx_bf16")),
        has_amx=bool(can.get("amx_tile")),
        threads=torch.get_num_threads(),
    )


def _cards() -> tuple[tuple[Card, ...], str | None]:
    """The cards that torch can use, and why not if it cannot."""
    import torch

    if torch.version.cuda is None:
        return (), "this torch was built without CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch does not type it
    except RuntimeError as error:
        return (), str(error).partition(". ")[0].splitlines()[0]
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        capability = torch.cuda.get_device_capability(index)
        found.append(Card(torch.cuda.get_device_name(index), capability, total, free))
    return tuple(found), None


def nvidia() -> Nvidia:
    """Cards and driver without torch: what a torch without CUDA does not see."""
    return Nvidia(cards=cards_on(BUS), driver=_driver(), cuda=_newest_cuda())


def cards_on(bus: Path) -> int:
    """NVIDIA's, whether or not anything can use them."""
    return sum(_says(each / "vendor", _NVIDIA) and _says(each / "class", _DISPLAY) for each in bus.glob("*"))


def _says(file: Path, beginning: str) -> bool:
    return file.is_file() and file.read_text().startswith(beginning)


def _driver() -> str | None:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        version = ctypes.create_string_buffer(_LONGEST_VERSION)
        if library.nvmlInit_v2() or library.nvmlSystemGetDriverVersion(version, _LONGEST_VERSION):
            return None
    except (OSError, AttributeError):  # no driver, or one that is not NVIDIA's
        return None
    return version.value.decode()


def _newest_cuda() -> tuple[int, int] | None:
    try:
        library = ctypes.CDLL("libcuda.so.1")
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def choice() -> Choice:
    """What a server would take. Imports torch; from now on this process downloads nothing.

    Raises SettingsError if this machine does not have what they ask for, and EncoderIdError for ids of no encoder.
    """
    from service.engine.backend import placement_of
    from service.engine.decoding import automatic_threads
    from service.engine.engine import Engine

    settings = Settings()
    _see_that_they_exist(settings.model)
    if settings.cache_dir is not None and not folder(Path(settings.cache_dir)).is_writable:
        raise SettingsError(f"cache_dir {settings.cache_dir} cannot be written to.")
    # Not started, so nothing is loaded; and without a cache, whose folder it would make.
    engine = Engine(settings.model_copy(update={"cache": 0}))
    placement = placement_of(settings)
    threads = settings.preprocess_threads
    return Choice(
        device=engine.memory.device,
        dtype=placement.dtype,
        runtime=placement.runtime,
        lanes=placement.lanes,
        budget=engine.budget.limit,
        requests=engine.account.limit,
        decoding_threads=automatic_threads() if threads == "auto" else threads,
    )


def _see_that_they_exist(models: Sequence[str]) -> None:
    """Whether their weights are here too, `visiontower pull --check` says."""
    from encoders import blueprint
    from encoders.contract.errors import WeightsNotHere
    from encoders.runtime.downloads import go_offline

    go_offline()
    for model in models:
        with suppress(WeightsNotHere):
            blueprint(model)
