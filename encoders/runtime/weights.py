"""Loading weights: strictly, reproducibly, and with a fingerprint."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from encoders.contract.errors import VisiontowerError, WeightsError, WeightsNotHere, in_brief
from encoders.runtime.downloads import why_not_downloaded


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Twelve hex digits of the SHA-256 over all weights, by name, as loaded: equal weights, equal fingerprint."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def number(value: Tensor) -> float:
    """A scalar weight's value; NaN in a blueprint, which has none. Raises ValueError for a weight that is no number."""
    if value.is_meta:
        return math.nan
    found = float(value.detach())
    if not math.isfinite(found):
        raise ValueError(
            f"the scale or bias of its scores is {found}: its training has diverged, or its file is damaged"
        )
    return found


@contextmanager
def seeded() -> Iterator[None]:
    """Models built inside draw the same random weights each time; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def fitting(encoder_id: str, source: str) -> Iterator[None]:
    """Translates what libraries raise while they fetch and read weights into WeightsError, which names the keys."""
    try:
        yield
    except VisiontowerError:
        raise
    except Exception as error:  # every library and file format raises its own
        if reason := why_not_downloaded(error, encoder_id):
            raise WeightsNotHere(f"{encoder_id} is not whole on this machine: {reason}", model=encoder_id) from error
        said = in_brief(error)
        if isinstance(
            error, LookupError | ArithmeticError | AttributeError | TypeError
        ):  # Python's words, not a sentence
            said = f"its settings or parts do not fit together ({said})"
        raise WeightsError(f"{source} does not load into {encoder_id}: {said}", model=encoder_id) from error


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], *, encoder_id: str, source: str) -> None:
    """Puts `weights` into `module`. Raises WeightsError that names the keys missing, left over or of another shape."""
    own = module.state_dict()
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    misshapen = [
        f"{key} is {list(weights[key].shape)}, must be {list(own[key].shape)}"
        for key in sorted(own.keys() & weights.keys())
        if own[key].shape != weights[key].shape
    ]
    problems = [
        f"{what}: {', '.join(keys[:8])}" + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("shapes", misshapen))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{source} does not fit {encoder_id}. {'; '.join(problems)}.",
            model=encoder_id,
            missing=missing,
            unexpected=unexpected,
        )
    module.load_state_dict(weights)
