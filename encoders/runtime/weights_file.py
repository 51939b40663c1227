"""A file of weights that somebody saved, as tensors by name. No code in a file is run.

Files hold more than weights: the wrapper of a trainer, averaged weights beside the raw ones, its arguments and scores.
Knows file formats; knows no architecture.
"""

import argparse
import logging
import pickle
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from encoders.contract.errors import WeightsError, in_brief

_log = logging.getLogger(__name__)

_AVERAGED = ("state_dict_ema", "model_ema")
_WRAPPERS = (*_AVERAGED, "state_dict", "model_state_dict", "model")
"""Where trainers keep the weights in what they save, in the order of timm.models.load_state_dict."""

_ADAPTER = (
    "a LoRA or another PEFT adapter, which is not a whole model: merge it into its base model "
    "(peft: model.merge_and_unload(), then save) and give the result"
)
_ADAPTER_MARKS = (
    ".lora_A",
    ".lora_B",
    ".lora_embedding_",
    ".lora_magnitude_vector",
    ".base_layer.",
    ".hada_w1",
    ".ia3_",
)

_QUANTISED = {
    "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4",  # safetensors' names, then torch's
    "int8", "uint8", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
    "float4_e2m1fn_x2",
}  # fmt: skip
"""Types of numbers that are no weights without the scales beside them."""

_SIGNATURES = (
    (b"GGUF", "a GGUF file, whose weights are quantised for llama.cpp"),
    (b"\x89HDF", "an HDF5 file of Keras or TensorFlow"),
    (b"version https://git-lfs", "a pointer of Git LFS, without the file itself: run `git lfs pull`"),
    (b"<!DOCTYPE", "a web page, not weights: it was not downloaded as a file"),
    (b"<html", "a web page, not weights: it was not downloaded as a file"),
)
_SUFFIXES = {
    ".onnx": "an ONNX file",
    ".msgpack": "a file of Flax",
    ".tflite": "a file of TensorFlow Lite",
    ".pb": "a file of TensorFlow",
    ".engine": "an engine of TensorRT",
    ".mlmodel": "a file of Core ML",
}


def read_weights(path: Path, *, encoder_id: str, own: Collection[str] = (), unused: str = "") -> dict[str, Tensor]:
    """The weights in a safetensors file or one of torch.save, on the CPU.

    Wrappers and the prefixes of torch.compile and DistributedDataParallel are taken off. Of averaged (EMA) and raw
    weights the averaged are taken, as timm does, and the log says so. own: the names that the module has; a prefix
    `model.` before all names is taken off where they have none. unused: as `require_weights`.

    Raises WeightsError that says in a sentence what the file is and what to do.
    """
    require_weights(path, encoder_id=encoder_id, unused=unused)
    found = _read(path, encoder_id)
    while isinstance(found, Mapping) and (wrapper := _wrapper(found)):
        if wrapper in _AVERAGED and (beside := [key for key in _WRAPPERS if key in found and key != wrapper]):
            _log.warning(
                "%s holds %s beside %s: the averaged (EMA) weights are taken.", path, wrapper, " and ".join(beside)
            )
        found = found[wrapper]
    if isinstance(found, Mapping):
        weights = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    else:
        weights = {}
    if not weights:
        raise WeightsError(
            f"{path} holds no weights by name for {encoder_id}: save them with torch.save(model.state_dict(), ...).",
            model=encoder_id,
        )
    _refuse_quantised(
        {name: str(value.dtype).removeprefix("torch.") for name, value in weights.items()}, path, encoder_id, unused
    )
    if any(mark in name for name in weights for mark in _ADAPTER_MARKS):
        raise WeightsError(f"{path} is {_ADAPTER}.", model=encoder_id)
    return _plainly_named(weights, own)


def refuse_adapter(folder: Path, *, encoder_id: str) -> None:
    """Raises WeightsError if a PEFT adapter lies in the folder: base weights beside it are not what was trained."""
    if (folder / "adapter_config.json").is_file():
        raise WeightsError(f"{folder} has an adapter_config.json: it is {_ADAPTER}.", model=encoder_id)


def require_weights(path: Path, *, encoder_id: str, unused: str = "") -> None:
    """Raises WeightsError for a file that is not there, empty, of another kind by how it begins, or quantised.

    unused: a pattern of names whose tensors are not loaded; they may be quantised.
    """
    try:
        if path.is_dir():
            raise WeightsError(f"{path} is a folder; {encoder_id} needs a file of weights.", model=encoder_id)
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError as error:
        raise WeightsError(
            f"There is no file {path} for {encoder_id}; '@random' asks for random weights.", model=encoder_id
        ) from error
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read for {encoder_id}: {error.strerror or in_brief(error)}.", model=encoder_id
        ) from error
    if not start:
        raise WeightsError(f"{path} is empty: 0 bytes. {encoder_id} needs a file of weights.", model=encoder_id)
    kinds = [kind for signature, kind in _SIGNATURES if start.lstrip().startswith(signature)]
    kind = kinds[0] if kinds else _SUFFIXES.get(path.suffix.lower())
    if kind is not None:
        raise WeightsError(
            f"{path} is {kind}. {encoder_id} needs safetensors or a file of torch.save.", model=encoder_id
        )
    refuse_adapter(path.parent, encoder_id=encoder_id)
    if path.suffix == ".safetensors":
        _refuse_quantised(_dtypes_in(path), path, encoder_id, unused)


def _dtypes_in(path: Path) -> dict[str, str]:
    """Of the tensors in a safetensors file, by name; none if it cannot be read, which reading it will say."""
    try:
        with safe_open(path, framework="pt") as found:
            return {name: found.get_slice(name).get_dtype() for name in found.keys()}  # noqa: SIM118  # it is no dict
    except Exception:
        return {}


def _refuse_quantised(dtypes: Mapping[str, str], path: Path, encoder_id: str, unused: str) -> None:
    """Torch would copy quantised numbers into a module as if they were weights."""
    read = [name for name in dtypes if not (unused and re.match(unused, name))]
    quantised = [name for name in read if dtypes[name] in _QUANTISED]
    if quantised:
        raise WeightsError(
            f"{path} is quantised ({quantised[0]} is of {dtypes[quantised[0]]}), which is not read: give the weights "
            f"that it was made of to {encoder_id}.",
            model=encoder_id,
        )


def _read(path: Path, encoder_id: str) -> Any:
    try:
        with path.open("rb") as file:
            is_safetensors = path.suffix == ".safetensors" or file.read(9)[8:] == b"{"
        if is_safetensors:
            return load_file(path, device="cpu")
        with torch.serialization.safe_globals(list(_harmless())):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        classes = _foreign_classes(path)
        if not classes:
            reason = "it is damaged, or it is not a file of torch.save"
        else:
            reason = f"it holds more than weights ({', '.join(classes[:4])}), and code in a file is not run"
        raise WeightsError(
            f"{path} does not load into {encoder_id}: {reason}. "
            "Save the weights alone: torch.save(model.state_dict(), ...).",
            model=encoder_id,
        ) from error
    except Exception as error:  # truncated and damaged files raise of every class
        what = "a TorchScript archive" if is_torchscript(path) else "damaged or cut off"
        raise WeightsError(
            f"{path} does not load into {encoder_id}: it is {what} ({in_brief(error)[:120]}).", model=encoder_id
        ) from error


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, the form of OpenAI's own downloads."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _harmless() -> Iterator[Any]:
    """What trainers save beside weights and what runs nothing: their arguments, and scores and arrays of NumPy."""
    yield argparse.Namespace
    yield np.ndarray
    yield np.dtype
    yield from (type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdFDUS")
    core = np._core.multiarray  # type: ignore[attr-defined]  # the place of both functions in files
    for name in ("scalar", "_reconstruct"):
        for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # NumPy 1 and 2
            yield (getattr(core, name), f"{module}.{name}")


def _foreign_classes(path: Path) -> list[str]:
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # older files than those of torch 1.6 are not looked through
        return []


def _wrapper(found: Mapping[Any, Any]) -> str | None:
    """The key under which the weights are; None if they are here."""
    return next((key for key in _WRAPPERS if isinstance(found.get(key), Mapping)), None)


def _plainly_named(weights: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers: torch.compile's anywhere, DistributedDataParallel's in front."""
    plain = {name.replace("_orig_mod.", "").removeprefix("module."): value for name, value in weights.items()}
    inner = {name.removeprefix("model."): value for name, value in plain.items()}
    lightning = all(name.startswith("model.") for name in plain) and not any(name in own for name in plain)
    return inner if lightning and any(name in own for name in inner) else plain
