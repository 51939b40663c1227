"""Encoder ids and who loads them. Knows names; imports an adapter only when one of its ids is loaded."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TypeAlias

from encoders.contract.encoder import BLUEPRINT, Blueprint, Encoder, Placement
from encoders.contract.errors import EncoderIdError

ENTRY_POINTS = "visiontower.encoders"
"""Entry-point group of third-party schemes: name = the scheme, object = a Loader."""

_BUILT_IN = {
    "demo": "encoders.adapters.demo:load",
    "openclip": "encoders.adapters.openclip:load",
    "hf": "encoders.adapters.hf:load",
    "timm": "encoders.adapters.timm:load",
    "fake": "encoders.adapters.fake:load",
}


@dataclass(frozen=True)
class EncoderId:
    """SCHEME:NAME[@WEIGHTS], taken apart."""

    scheme: str
    name: str
    weights: str | None = None

    @classmethod
    def parse(cls, text: str) -> "EncoderId":
        """Raises EncoderIdError if the text has no scheme or no name."""
        scheme, colon, rest = text.partition(":")
        name, at, weights = rest.partition("@")
        if not (colon and scheme and name) or (at and not weights):
            raise EncoderIdError(
                f"'{text}' is not an encoder id: expected SCHEME:NAME or SCHEME:NAME@WEIGHTS, "
                "for example demo:vit or openclip:ViT-B-32@openai",
                model=text,
            )
        return cls(scheme, name, weights or None)

    @property
    def is_random(self) -> bool:
        """Whether random weights are asked for: `@random`, for capacity tests; never a fallback."""
        return self.weights == "random"

    def __str__(self) -> str:
        return f"{self.scheme}:{self.name}" + (f"@{self.weights}" if self.weights else "")


Loader: TypeAlias = Callable[[EncoderId, Placement], Encoder]
"""Loads one id onto a device, or only its shape (Placement.is_blueprint). Raises EncoderIdError or WeightsError."""


def schemes() -> dict[str, EntryPoint]:
    """Scheme -> where its loader is, built-in and installed. Raises EncoderIdError if two plug-ins claim one scheme."""
    found = {name: EntryPoint(name, value, ENTRY_POINTS) for name, value in _BUILT_IN.items()}
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name in found and found[entry.name].value != entry.value:
            raise EncoderIdError(
                f"The scheme '{entry.name}' is claimed by {found[entry.name].value} and by {entry.value}: remove one."
            )
        found[entry.name] = entry
    return found


def load(encoder_id: str, placement: Placement | None = None) -> Encoder:
    """The encoder of this id, its weights on the device and ready to run.

    placement: default the CPU in float32. Raises EncoderIdError or WeightsError.
    """
    parsed = EncoderId.parse(encoder_id)
    known = schemes()
    if parsed.scheme not in known:
        raise EncoderIdError(
            f"Unknown scheme '{parsed.scheme}' in '{encoder_id}'. Known: {', '.join(sorted(known))}.",
            model=encoder_id,
            known=sorted(known),
        )
    entry = known[parsed.scheme]
    loader: Loader = getattr(import_module(entry.module), entry.attr)
    placement = placement or Placement()
    with _building_on(placement):
        encoder = loader(parsed, placement)
    if placement.runtime == "torch" or placement.is_blueprint:
        return encoder
    from encoders.runtime.openvino import accelerated  # an extra: not everywhere

    return accelerated(encoder, lanes=placement.lanes)


def blueprint(encoder_id: str, *, dtype: str = "float32") -> Blueprint:
    """The encoder's shape without its weights: its spec, and what its forwards cost. Takes well under a second.

    dtype: what it would compute in. Raises EncoderIdError or WeightsError (a configuration that cannot be had).
    """
    return load(encoder_id, Placement(BLUEPRINT, dtype))  # type: ignore[return-value]


@contextmanager
def _building_on(placement: Placement) -> Iterator[None]:
    """Whatever a loader builds inside takes no memory, if only a blueprint is asked for."""
    torch = sys.modules.get("torch")  # an adapter that has not imported it builds nothing of it
    if torch is None or not placement.is_blueprint:
        yield
    else:
        with torch.device(placement.device):
            yield
