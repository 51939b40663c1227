"""Encoder ids and the adapters that build them. Knows names; imports an adapter only for one of its ids."""

import inspect
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

from encoders.adapters.hints import hint_for_name
from encoders.contract.encoder import Blueprint, Encoder, Placement
from encoders.contract.errors import EncoderIdError, VisiontowerError, WeightsNotHere, in_brief
from encoders.contract.reference import Reference

ENTRY_POINTS = "visiontower.encoders"
"""Entry-point group of third-party schemes: name = the scheme, object = an Adapter."""

_log = logging.getLogger(__name__)

_BUILT_IN = {
    "demo": "encoders.adapters.demo:build",
    "openclip": "encoders.adapters.openclip:build",
    "hf": "encoders.adapters.hf:build",
    "timm": "encoders.adapters.timm:build",
    "fake": "encoders.adapters.fake:build",
}


_OPTIONS = re.compile(r"\?([a-z_]+=[^?&=]+(?:&[a-z_]+=[^?&=]+)*)$")


@dataclass(frozen=True)
class EncoderId:
    """SCHEME:NAME[@WEIGHTS][?OPTION=VALUE[&...]], taken apart."""

    scheme: str
    name: str
    weights: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "EncoderId":
        """Raises EncoderIdError if the text has no scheme or no name."""
        found = _OPTIONS.search(text)
        whole, asked = (text[: found.start()], found[1].split("&")) if found else (text, [])
        scheme, colon, rest = whole.partition(":")
        name, at, weights = rest.partition("@")
        if not (colon and scheme and name) or (at and not weights):
            raise EncoderIdError(
                f"'{text}' is not an encoder id: expected SCHEME:NAME or SCHEME:NAME@WEIGHTS, "
                f"for example demo:vit or openclip:ViT-B-32@openai.{hint_for_name(text)}",
                model=text,
            )
        return cls(scheme, name, weights or None, dict(option.split("=", 1) for option in asked))

    @property
    def is_random(self) -> bool:
        """Whether random weights are asked for: `@random`, for capacity tests; never a fallback."""
        return self.weights == "random"

    def __str__(self) -> str:
        options = "&".join(f"{name}={value}" for name, value in self.options.items())
        weights = f"@{self.weights}" if self.weights else ""
        return f"{self.scheme}:{self.name}{weights}" + (f"?{options}" if options else "")


class Parts(Protocol):
    """An encoder that an adapter has put together and that is on no device yet. TorchParts is one for models in torch.

    Either method is called, once.
    """

    def encoder(self, placement: Placement) -> Encoder:
        """The encoder, ready to run where `placement` says."""

    def blueprint(self, *, dtype: str) -> Blueprint:
        """The blueprint of the encoder that computes in `dtype`."""


class Adapter(Protocol):
    """The entry point of a scheme: an id in, the parts of an encoder out.

    Its module may hold `reference(encoder_id, **options) -> Reference` too: `visiontower verify` then compares with it.
    And `weights_files(encoder_id) -> Sequence[Path]`: `visiontower pull` then says where the weights are.
    """

    def __call__(self, encoder_id: EncoderId, *, with_weights: bool, **options: str) -> Parts:
        """Raises EncoderIdError or WeightsError.

        An option that may stand in the ids of the scheme (?preprocess=openai) is a keyword argument more: a str, with
        a default.

        with_weights: else no weights are to be read or downloaded. Tensors made here then hold no bytes: the call runs
            under torch.device("meta").
        """


def schemes() -> dict[str, EntryPoint]:
    """Scheme -> its adapter's place, built-in and installed. Raises EncoderIdError if two plug-ins claim one scheme."""
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
    parsed, placement = EncoderId.parse(encoder_id), placement or Placement()
    with _naming(encoder_id), _telling_size(encoder_id):
        encoder = _adapter(parsed)(parsed, with_weights=True, **parsed.options).encoder(placement)
        runtime = encoder.spec.runtime
    if runtime != placement.runtime:
        _log.warning("%s does not run on %s: it runs on %s.", encoder_id, placement.runtime, runtime)
    return encoder


def blueprint(encoder_id: str, *, dtype: str = "float32") -> Blueprint:
    """The encoder's shape without its weights: its spec, and what its forwards cost. Takes well under a second.

    dtype: what it would compute in. Raises EncoderIdError or WeightsError (a configuration that cannot be had).
    """
    parsed = EncoderId.parse(encoder_id)
    with _naming(encoder_id):
        adapter = _adapter(parsed)  # imported before: what a module makes at its import holds bytes
        with _holding_no_bytes():
            found = adapter(parsed, with_weights=False, **parsed.options).blueprint(dtype=dtype)
        _ = found.spec  # what is no blueprint fails here, where the id is named
        return found


def reference(encoder_id: str) -> Reference:
    """The same checkpoint as its own library runs it: `reference(encoder_id, **options)` of the adapter's module.

    Raises EncoderIdError, also for a scheme that has no reference, or WeightsError.
    """
    parsed = EncoderId.parse(encoder_id)
    with _naming(encoder_id):
        module = import_module(_entry(parsed).module)
        if not hasattr(module, "reference"):
            raise EncoderIdError(f"'{encoder_id}': the scheme '{parsed.scheme}' has no reference.", model=encoder_id)
        found: Reference = module.reference(parsed, **parsed.options)
        return found


def weights_files(encoder_id: str) -> Sequence[Path]:
    """Where the weights of an encoder that has been loaded are: `weights_files(encoder_id)` of the adapter's module.

    Empty for random weights, and for a scheme that does not say. Raises EncoderIdError or WeightsError.
    """
    parsed = EncoderId.parse(encoder_id)
    if parsed.is_random:
        return ()
    with _naming(encoder_id):
        module = import_module(_entry(parsed).module)
        found: Sequence[Path] = module.weights_files(parsed) if hasattr(module, "weights_files") else ()
        return found


def _adapter(encoder_id: EncoderId) -> Adapter:
    """The adapter of the id's scheme, imported, and known to take the id's options."""
    entry = _entry(encoder_id)
    adapter: Adapter = getattr(import_module(entry.module), entry.attr)
    if encoder_id.options:
        taken = inspect.signature(adapter).parameters.keys() - {"encoder_id", "with_weights"}
        for name in encoder_id.options.keys() - taken:
            offers = f"it takes {', '.join(sorted(taken))}" if taken else "it takes none"
            raise EncoderIdError(
                f"'{encoder_id}': {encoder_id.scheme} has no option '{name}'; {offers}.", model=str(encoder_id)
            )
    return adapter


def _entry(encoder_id: EncoderId) -> EntryPoint:
    """The place of the adapter of the id's scheme."""
    known = schemes()
    if encoder_id.scheme not in known:
        raise EncoderIdError(
            f"Unknown scheme '{encoder_id.scheme}' in '{encoder_id}'. Known: {', '.join(sorted(known))}."
            f"{hint_for_name(str(encoder_id))}",
            model=str(encoder_id),
            known=sorted(known),
        )
    return known[encoder_id.scheme]


@contextmanager
def _naming(encoder_id: str) -> Iterator[None]:
    """Whatever an adapter raises, a plug-in's too, ends in a sentence that names the id."""
    try:
        yield
    except (VisiontowerError, MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit() too, and the panic of a library in Rust
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise
        raise EncoderIdError(
            f"{encoder_id} cannot be built: {type(error).__name__}: {in_brief(error)}", model=encoder_id
        ) from error


@contextmanager
def _telling_size(encoder_id: str) -> Iterator[None]:
    """Whoever has to fetch weights is told how large they are, if the shape of the encoder is known without them."""
    try:
        yield
    except WeightsNotHere as error:
        try:
            size = blueprint(encoder_id).spec.weights_bytes
        except VisiontowerError:
            raise error from None
        raise WeightsNotHere(f"{error} In float32 the weights have {size / 1e6:,.0f} MB.", **error.facts) from error


@contextmanager
def _holding_no_bytes() -> Iterator[None]:
    """Tensors of torch that are made inside hold no bytes."""
    torch = sys.modules.get("torch")  # an adapter that has not imported it makes none
    if torch is None:
        yield
    else:
        with torch.device("meta"):
            yield
