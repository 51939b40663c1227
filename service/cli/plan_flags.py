"""The flags of `visiontower plan` that hold a number or a size, and what is assumed where they are not given."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from encoders.contract.values import ImageSize
from service.cli.arguments import flag
from service.sizes import parse_bytes, parse_image_size

if TYPE_CHECKING:
    from service.scaling.plan import Facts

MOST_CARDS = 1_000_000
_LEAST, _MOST = 1e-9, 1e9


@dataclass(frozen=True)
class Number:
    """A flag with a number or a size. said: what the value means, with {} for it. default: None if there is none."""

    flag: str
    metavar: str
    parse: Callable[[str], Any]
    said: str
    help: str
    default: Any = None

    def add(self, group: Any) -> None:
        """To a parser."""
        default = "" if self.default is None else f" [{_shown(self.default)}]"
        group.add_argument(self.flag, metavar=self.metavar, help=self.help + default)

    def given(self, arguments: argparse.Namespace) -> Any:
        """None if it was not given. Raises ArgumentError."""
        text = getattr(arguments, self.flag.removeprefix("--").replace("-", "_"))
        if text is None:
            return None
        with flag(self.flag):
            return self.parse(text)

    def chosen(self, arguments: argparse.Namespace, facts: "Facts") -> Any:
        """What was given, else the default; noted as the one or the other. Raises ArgumentError."""
        given = self.given(arguments)
        value = self.default if given is None else given
        if given is not None:
            facts.given.append(self.said.format(_shown(value)))
        elif value is not None:
            facts.assumed.append(f"{self.said.format(_shown(value))} ({self.flag})")
        return value


def _shown(value: object) -> str:
    if isinstance(value, ImageSize):
        return f"{value.width}x{value.height}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def whole(text: str) -> int:
    """A number of cards or of what goes with them. Raises ValueError."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST_CARDS):
        raise ValueError(f"'{text}' is not a whole number from 1 to {MOST_CARDS:,}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not _LEAST <= number <= _MOST:
        raise ValueError(f"'{text}' is not a number from 1e-9 to 1e9")
    return number


def _portion(text: str) -> float:
    number = _positive(text)
    if number > 1:
        raise ValueError(f"{text} is more than the whole: expected 0 to 1, for example 0.4")
    return number


def file_bytes(text: str) -> int:
    """The size of a file. Raises ValueError."""
    count = parse_bytes(text)
    if not count:
        raise ValueError("a file has 1 byte or more")
    return count


def _picture_size(text: str) -> ImageSize:
    try:
        size = parse_image_size(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is no size: expected WxH in pixels, for example 640x480") from error
    if not min(size):
        raise ValueError("a picture has 1 pixel a side or more")
    return ImageSize(min(size), max(size))


CARDS_A_MACHINE = Number("--gpus-per-machine", "N", whole, "cards in a machine: {}", "cards in a machine", 8)
CORES = Number(
    "--cores-per-gpu", "N", _positive, "virtual cores for each card: {}", "a machine's virtual cores for each card", 12
)
ENGINES = Number("--engines-per-gpu", "N", whole, "engines on each card: {}", "processes that share a card", 1)
NETWORK = Number(
    "--gbit-per-gpu",
    "N",
    _positive,
    "Gbit/s of the network for each card, each way: {}",
    "a machine's network for each card, each way",
    10,
)
STORAGE = Number(
    "--storage-gbit",
    "N",
    _positive,
    "Gbit/s that the storage gives and takes in all: {}",
    "what the storage gives and takes in all [no limit]",
)
PRICE = Number("--price", "P", _positive, "price of a card for an hour: {}", "of a card for an hour, in any currency")
UTILISATION = Number(
    "--utilisation",
    "X",
    _portion,
    "part of the card's peak that forwards reach: {}",
    "part of its peak that forwards reach",
    0.4,
)
PACE = Number(
    "--pace",
    "N",
    _positive,
    "images a second that one card computes: {}",
    "images a second, measured; no part of the peak is assumed then",
)
PICTURE_SIZE = Number(
    "--image-size", "WxH", _picture_size, "pictures of {} pixels", "of the files, in pixels", ImageSize(480, 640)
)
HOURS = Number("--hours", "H", _positive, "hours: {}", "as many cards as it takes to be done by then")
