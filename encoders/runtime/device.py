"""`auto` becomes a device and a dtype. Knows what torch can see and what hardware does well."""

import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from encoders.contract.encoder import Placement
from encoders.memory.machine import available_cores

_CORES = min(torch.get_num_threads(), available_cores())
"""As OMP_NUM_THREADS says, at most as many as there are; asked before anybody takes a part of them."""


def resolve(
    device: str = "auto",
    dtype: str = "auto",
    runtime: str = "torch",
    lanes: int | Literal["auto"] = 1,
    calibration: Path | None = None,
    graph_bytes: int = 0,
) -> Placement:
    """Where to run: `auto` takes CUDA where there is one, else the CPU, and the dtype that device computes natively.

    On CUDA: bfloat16 from compute capability 8.0 on, float16 before. On a CPU: bfloat16 with AVX-512 BF16 or AMX,
    float32 elsewhere (emulated bfloat16 is several times slower).
    Lanes: two on a CPU with two cores or more, else one.

    Calibration and graph_bytes: as Placement's.

    Raises ValueError for a device that is not there, a dtype that is none of float32, float16, bfloat16, int8, or that
    the device or runtime has not, a runtime that is not installed or not for this device, lanes or CUDA graphs on a
    device that has none, or a calibration for another dtype than int8 or without a folder.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"'{device}' is not a device: use auto, cpu, cuda or cuda:N.") from error
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"'{device}' is not supported: use auto, cpu, cuda or cuda:N.")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"'{device}' was asked for, but torch sees {torch.cuda.device_count()} CUDA devices.")
    if dtype == "auto":
        dtype = _native_dtype(found)
    if dtype not in ("float32", "float16", "bfloat16", "int8"):
        raise ValueError(f"'{dtype}' is not a dtype: use auto, float32, float16, bfloat16 or int8.")
    if dtype == "int8" and (found.type != "cpu" or runtime != "torch"):
        raise ValueError(f"int8 is for CPUs and the runtime torch, not for {device} and {runtime}.")
    if dtype == "int8" and not has_int8():
        raise ValueError("int8 needs a CPU with AVX-512 VNNI, AVX VNNI or AMX, and this one has none: use auto.")
    if runtime == "openvino" and found.type != "cpu":
        raise ValueError(
            f"the runtime openvino is for CPUs, and the device is '{device}': use cpu, or the runtime torch."
        )
    if runtime == "openvino" and find_spec("openvino") is None:
        raise ValueError("the runtime openvino is not installed: pip install 'visiontower[openvino]'.")
    if calibration is not None and dtype != "int8":
        raise ValueError(f"a calibration is for int8, and the dtype is {dtype}.")
    if calibration is not None and not calibration.is_dir():
        raise ValueError(f"the calibration '{calibration}' is not a folder of pictures.")
    best = min(2, _CORES) if found.type == "cpu" else 1
    number = best if lanes == "auto" else lanes
    if number > 1 and found.type != "cpu":
        raise ValueError(f"{number} lanes are for CPUs, and the device is '{device}': it runs one forward at a time.")
    if graph_bytes and found.type != "cuda":
        raise ValueError(
            f"CUDA graphs are for CUDA devices, and the device is '{device}': leave cuda_graph_bytes at 0."
        )
    return Placement(
        device=device, dtype=dtype, runtime=runtime, lanes=number, calibration=calibration, graph_bytes=graph_bytes
    )


def compute_dtype(dtype: str) -> torch.dtype:
    """Torch's; of int8 that of everything that is no product in 8 bits."""
    found: torch.dtype = getattr(torch, _native_dtype(torch.device("cpu")) if dtype == "int8" else dtype)
    return found


def has_int8() -> bool:
    """Whether this CPU multiplies 8 bits faster than 16, and torch has the products."""
    capabilities = torch.cpu.get_capabilities()
    fast = any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
    return fast and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def hardware(device: str) -> str:
    """What computes there: the card's name, or what the processor is capable of. Others may round otherwise."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {sorted(torch.cpu.get_capabilities().items())}"


def _native_dtype(device: torch.device) -> str:
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


def take_cores(part: int) -> None:
    """From now on the calling thread computes on this part of the cores, 1 being all of them."""
    torch.get_num_threads()  # a thread that has never asked would later take what was set last anywhere
    torch.set_num_threads(max(1, _CORES // part))
