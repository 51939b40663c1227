"""What an image takes of a core, as measured by `python -m benchmarks.stages`, which prints these constants anew."""

from dataclasses import astuple, dataclass

from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize
from encoders.images.preprocess import enough
from encoders.images.price import part_of

CONDITIONS = "a virtual core of an AMD EPYC, JPEG photographs"


@dataclass(frozen=True)
class Decoding:
    """Seconds of a core from a JPEG file to pixels, in parts: of a file, and of a pixel of each of three sizes.

    source: of the file. decoded: of what is left of it where it is decoded at a part of its size. input: the encoder's.
    """

    file: float
    source: float
    decoded: float
    input: float

    def core_s(self, source: ImageSize, preprocessing: Preprocessing, size: ImageSize) -> float:
        """Of a picture of the size `source`, for an encoder that is run at `size`."""
        parts: tuple[float, ...] = astuple(self)
        return sum(part * count for part, count in zip(parts, terms(source, preprocessing, size), strict=True))


def terms(source: ImageSize, preprocessing: Preprocessing, size: ImageSize) -> tuple[float, ...]:
    """What the parts of Decoding are of: one file, its pixels, those decoded, those of the encoder's input."""
    part = part_of(source.width, source.height, enough(preprocessing, size))
    pixels = source.height * source.width
    return 1, pixels, pixels / part**2, size.height * size.width


DECODING = Decoding(file=1.76e-4, source=1.87e-9, decoded=3.67e-9, input=1.23e-9)
BYTES_A_PIXEL = 0.19
"""Of a JPEG file."""
ENGINE_S = 4.3e-4
"""Seconds for an image of the engine and the bulk run, beside decoding and the forward. Python runs most of it."""
WRITE_S = 2.3e-8
"""Seconds for a byte of a row: numbers checked, narrowed, written to a part, read again and written to a shard."""
