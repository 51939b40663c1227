"""The errors of images, requests and encoders. They carry facts; never status codes, never HTTP.

VisiontowerError
├── ImageError                 the caller's bytes
│   ├── EmptyImage             no bytes at all
│   ├── NotAnImage             no known image format
│   ├── UnsupportedImage       a known format, but a kind of it that is not read
│   ├── UndecodableImage       a known format, but broken or truncated
│   └── ImageTooLarge          more pixels than the limit, known from the header
├── RequestError               a sound image, but something the encoder cannot give
│   ├── UnsupportedResolution  not divisible, too small or too large
│   ├── LayerNotFound          no such block or stage
│   ├── OutputNotOffered       text, projection or dense features the encoder does not have
│   └── InvalidText            a text the encoder cannot read
├── EncoderIdError             not SCHEME:NAME[@WEIGHTS], or no such scheme, name or weights
├── Int8Refused                a model that int8 would not make faster, or would make too coarse
├── WeightsError               the file is not there, or does not fit the architecture
│   └── WeightsNotHere         a file that is not on this machine could not be downloaded
└── EncoderFailed              the forward itself
    ├── NonFiniteOutput        it gave NaN or infinity
    └── OutOfMemory            the device had no room for it
"""

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x1f\x7f-\x9f]+")
_USER = re.compile(r"(?<=://)[^/\s@]*@")
_LONGEST = 300


def in_brief(error: BaseException) -> str:
    """What the error of a foreign library says, to stand in a sentence of ours.

    One line of at most 300 characters without colour codes, control characters and the users of URLs; with its class if
    it says nothing.
    """
    try:
        said = without_users(" ".join(_CONTROL.sub(" ", str(error)).split()))
    except Exception:  # its own fault
        said = ""
    if not said or isinstance(error, KeyError):  # which says the key alone
        said = f"{type(error).__name__} {said}".strip()
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 3].rstrip()}..."


def without_users(text: str) -> str:
    """A text of which no URL names a user, with whom the password would be (of a proxy, of a mirror)."""
    return _USER.sub("", text)


class VisiontowerError(Exception):
    """Root of all errors this project raises on purpose; `facts` are its public, JSON-able details."""

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = facts


class ImageError(VisiontowerError):
    """The image bytes cannot be used."""


class EmptyImage(ImageError):
    """There are no bytes."""

    def __init__(self) -> None:
        super().__init__("The image is empty: 0 bytes.")


class NotAnImage(ImageError):
    """The bytes are in no image format that is read here; the detail names what they are and what to do."""

    def __init__(self, found: str, advice: str, formats: Sequence[str]) -> None:
        super().__init__(
            f"This is {found}, which is not read here. {advice}. Formats: {', '.join(formats)}.",
            found=found,
            formats=list(formats),
        )


class UnsupportedImage(ImageError):
    """The format is read, but not this kind of it; the detail names the kind and what to do."""

    def __init__(self, kind: str, advice: str) -> None:
        super().__init__(f"This is {kind}, which is not read here. {advice}.", kind=kind)


class UndecodableImage(ImageError):
    """The format is known but the data is broken."""

    def __init__(self, image_format: str, reason: str) -> None:
        super().__init__(f"The {image_format} image cannot be decoded: {reason}.", format=image_format)


class ImageTooLarge(ImageError):
    """The header announces more pixels than the limit; nothing was decoded."""

    def __init__(self, *, pixels: int, limit: int) -> None:
        super().__init__(
            f"The image has {pixels:,} pixels; the limit is {limit:,}. Send it smaller.", actual=pixels, limit=limit
        )


class RequestError(VisiontowerError):
    """The request asks an encoder for something it cannot give."""


class UnsupportedResolution(RequestError):
    """The encoder cannot run at this size; `nearest` are the closest sizes (height, width) it can run at."""

    def __init__(self, *, encoder: str, size: tuple[int, int], reason: str, nearest: Sequence[tuple[int, int]]) -> None:
        names = " or ".join(f"{height}x{width}" for height, width in nearest)
        super().__init__(
            f"{encoder} cannot run at {size[0]}x{size[1]}: {reason}. Nearest possible: {names}.",
            model=encoder,
            resolution=list(size),
            nearest=[list(n) for n in nearest],
        )


class LayerNotFound(RequestError):
    """The encoder has no such layer."""

    def __init__(self, *, encoder: str, layer: int, layers: int) -> None:
        super().__init__(
            f"{encoder} has {layers} layers: 0 to {layers - 1}, or -{layers} to -1 from the end; not {layer}.",
            model=encoder,
            layer=layer,
            layers=layers,
        )


class OutputNotOffered(RequestError):
    """The encoder does not have the part (text tower, projection, ...) that the output needs."""

    def __init__(self, *, encoder: str, output: str, reason: str) -> None:
        super().__init__(f"{encoder} does not offer {output}: {reason}.", model=encoder, output=output)


class InvalidText(RequestError):
    """A text the encoder's tokenizer cannot take."""


class EncoderIdError(VisiontowerError):
    """An id that names no encoder that can be loaded."""


class Int8Refused(VisiontowerError):
    """The encoder cannot be run in int8, or its values would be too far from those in float32."""


class WeightsError(VisiontowerError):
    """The weights cannot be had, or do not fit; always fatal, never a warning and random numbers."""


class WeightsNotHere(WeightsError):
    """A file of the encoder is not on this machine, and could not or may not be downloaded."""


class EncoderFailed(VisiontowerError):
    """The forward failed; the message names the encoder, the cause is chained."""


class NonFiniteOutput(EncoderFailed):
    """The forward gave NaN or infinity for this image."""

    def __init__(self, *, encoder: str) -> None:
        super().__init__(
            f"{encoder} gave NaN or infinity for this input. A wider dtype (float32) may help.", model=encoder
        )


class OutOfMemory(EncoderFailed):
    """The device had no room for the forward, of this one input or of the batch it was in."""

    def __init__(self, *, encoder: str) -> None:
        super().__init__(f"The device ran out of memory in a forward of {encoder}.", model=encoder)
