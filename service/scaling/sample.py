"""What decoding pictures takes: bytes and processor time, of files at hand."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from encoders.contract.errors import ImageError
from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize
from encoders.images.decode import decode_for
from encoders.images.preprocess import preprocess

_WARM_UP = 3


@dataclass(frozen=True)
class Sample:
    """Of so many images, the means. core_s: seconds of one core from the file to the encoder's pixels."""

    images: int
    nbytes: float
    core_s: float


def measured(files: Sequence[bytes], preprocessing: Preprocessing, size: ImageSize) -> Sample:
    """As the service decodes and resizes them for an encoder that is run at `size`.

    Processor time is measured, so other programs disturb it little. Files that are no images are left out. Raises
    ImageError if none is one.
    """
    from encoders.images.resample import resize  # imports torch; on one core

    def prepare(file: bytes) -> None:
        preprocess(decode_for(preprocessing, file, size), preprocessing, size, resize=resize)

    good, failed = [], None
    for file in files:
        try:
            prepare(file)
        except ImageError as error:
            failed = error
        else:
            good.append(file)
    if not good:
        raise failed or ValueError("there is no file")
    for file in good[:_WARM_UP]:
        prepare(file)
    started = time.thread_time()
    for file in good:
        prepare(file)
    spent = time.thread_time() - started
    return Sample(len(good), sum(map(len, good)) / len(good), spent / len(good))
