"""Damage to image files, the same in every run; and what becomes of them.

python -m tests.encoders.images.fuzz FIRST COUNT    # mutations by number; prints what the process took
"""

import faulthandler
import random
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping

from encoders.contract.errors import ImageError
from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize
from encoders.images.decode import decode
from encoders.images.price import price
from tests.encoders.images.files import chunk, chunks, seeds

MAX_PIXELS = 1_000_000
_EXTREMES = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\xff\xff", b"\0\1\0\0")
_ANY, _SIZE = Preprocessing((0, 0, 0), (1, 1, 1)), ImageSize(32, 32)
_HANGS_S = 30
"""A decode that lasts longer ends the process, with a trace."""


def damaged(number: int, files: Mapping[str, bytes]) -> tuple[str, bytes]:
    """The mutation of this number: the seed's name, and its bytes flipped, cut, spliced or overwritten."""
    chance = random.Random(number)
    names = sorted(files)
    name = names[number % len(names)]
    data = bytearray(files[name])
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(data)) if chance.random() < 0.6 else chance.randrange(min(len(data), 160))
        match chance.randrange(8):
            case 0 | 1 | 2:
                data[at] = chance.randrange(256)
            case 3:
                data[at] ^= 1 << chance.randrange(8)
            case 4:
                data[at : at + 4] = chance.choice(_EXTREMES)
            case 5:
                del data[at : at + chance.choice((1, 4, 12, len(data)))]
            case 6:
                data[at:at] = data[chance.randrange(len(data)) :][: chance.choice((1, 12, 200))]
            case _:
                other = files[chance.choice(names)]
                begin = chance.randrange(len(other))
                data[at:at] = other[begin : begin + chance.choice((4, 40, 400))]
        data = data or bytearray(b"\0")
    if "PNG" in name and chance.random() < 0.7:  # or nothing gets past the checksums
        return name, bytes(data[:8]) + b"".join(
            chunk(each[4:8], each[8:-4]) for each in chunks(bytes(data)) if len(each) >= 12
        )
    return name, bytes(data)


def outcomes(numbers: Iterator[int] | range) -> Counter[str]:
    """How many of the mutations became an image, and which errors of ours the others are. Anything else is raised."""
    files = seeds()
    found: Counter[str] = Counter()
    for number in numbers:
        name, data = damaged(number, files)
        faulthandler.dump_traceback_later(_HANGS_S, exit=True)
        try:
            cost = price(data, _ANY, _SIZE, max_pixels=MAX_PIXELS)
            assert cost.nbytes >= cost.decode_bytes > 0
            assert decode(data, max_pixels=MAX_PIXELS, at_least=64 if number % 2 else None).mode == "RGB", (
                number,
                name,
            )
            found["image"] += 1
        except ImageError as error:
            found[type(error).__name__] += 1
        finally:
            faulthandler.cancel_dump_traceback_later()
    return found


def main() -> None:
    """Prints the outcomes, and by how many MiB the process grew at its largest."""
    first, count = map(int, sys.argv[1:])
    outcomes(range(first, first + 200))  # what the decoders load once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    found = outcomes(range(first, first + count))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(grown, sum(found.values()), f"{time.perf_counter() - started:.0f}s", dict(found))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="PIL")
    main()
