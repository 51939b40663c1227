"""Small pictures for a terminal: two pixels a character, `▀` in the upper one's colour over the lower one's.

Every terminal with 24-bit colours shows them, inside tables too and over SSH, and rich takes the nearest colours where
there are fewer. Sixel and the protocols of kitty and iTerm are sharper, but each needs a terminal of its kind.
"""

from pathlib import Path

from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from encoders import decode
from encoders.contract.errors import ImageError

_SIDE = 16
"""Pixels, so characters across; half as many lines."""


def can_show(console: Console) -> bool:
    """Whether it is a terminal with colours, and with these characters."""
    has_colours = console.color_system is not None and not console.no_color
    return console.is_terminal and has_colours and not console.options.ascii_only


def thumbnail(path: Path) -> Text | None:
    """The whole picture. None if it is gone or cannot be read."""
    try:
        picture = decode(path.read_bytes(), at_least=_SIDE)
    except (OSError, ValueError, ImageError):
        return None
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    width, height = picture.size
    colours = [Color.from_rgb(*pixel) for pixel in _pixels(picture)]
    lines = []
    for top in range(0, height, 2):
        line = Text()
        for column in range(width):
            below = colours[(top + 1) * width + column] if top + 1 < height else None
            line.append("▀", Style(color=colours[top * width + column], bgcolor=below))
        lines.append(line)
    return Text("\n").join(lines)


def _pixels(picture: Image.Image) -> list[tuple[int, int, int]]:
    data = picture.tobytes()
    return [(data[at], data[at + 1], data[at + 2]) for at in range(0, len(data), 3)]
