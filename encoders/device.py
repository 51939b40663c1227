"""`auto` -> a device and a dtype. Knows what torch can see and what the hardware computes well."""

import torch

from encoders.types import Placement


def resolve(device: str = "auto", dtype: str = "auto") -> Placement:
    """Where to run: `auto` takes CUDA where there is one, else the CPU, and the dtype that device computes natively.

    On CUDA: bfloat16 from compute capability 8.0 on, float16 before. On a CPU: bfloat16 with AVX-512 BF16 or AMX,
    float32 elsewhere (emulated bfloat16 is several times slower).

    Raises ValueError for a device that is not there or a dtype that is none of float32, float16, bfloat16.
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
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"'{dtype}' is not a dtype: use auto, float32, float16 or bfloat16.")
    return Placement(device=device, dtype=dtype)


def _native_dtype(device: torch.device) -> str:
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"
