"""What the command line shows, as rich tables and as JSON. Knows values; loads and computes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from encoders import EncoderSpec, Grid, ImageSize
from encoders.catalog import DEMO, Scheme

_COMMON_SIDES = (224, 256, 336, 384, 448, 512, 672)
"""Sides that people ask for, beside halves and multiples of the native one."""

_BAR = 20


@dataclass(frozen=True)
class Score:
    """One text's score for the image."""

    text: str
    cosine: float
    logit: float
    probability: float


@dataclass(frozen=True)
class AtResolution:
    """What a forward at `size` gives. tokens: patch tokens, without prefix; numbers in them: tokens * hidden size."""

    size: ImageSize
    grid: Grid
    tokens: int


def at_resolutions(spec: EncoderSpec) -> list[AtResolution]:
    """Patch grids at the native size and at common square ones the encoder can run, smallest first."""
    native = spec.image_size
    sides = {ImageSize(side, side) for side in _COMMON_SIDES}
    scaled = {ImageSize(native.height * k // 2, native.width * k // 2) for k in (1, 3, 4)}
    possible = {size for size in sides | scaled if spec.resolutions.problem(size) is None}
    grids = [(size, spec.grid(size)) for size in sorted(possible | {native})]
    return [AtResolution(size, grid, grid.rows * grid.cols) for size, grid in grids]


def scores_table(scores: Sequence[Score], *, title: str) -> Table:
    """Best first, with a bar."""
    table = Table(title=title, title_justify="left")
    table.add_column("text", overflow="fold")
    table.add_column("cosine", justify="right")
    table.add_column("probability", justify="right")
    table.add_column("", no_wrap=True, min_width=_BAR)
    for score in sorted(scores, key=lambda score: -score.probability):
        bar = "█" * round(score.probability * _BAR)
        table.add_row(score.text, f"{score.cosine:+.4f}", f"{score.probability:.4f}", bar)
    return table


def catalog_table(schemes: Sequence[Scheme]) -> Table:
    """Schemes with how to name an id in each."""
    table = Table(title="Encoder ids", title_justify="left", show_lines=True)
    table.add_column("id", no_wrap=True)
    table.add_column("what, and examples", overflow="fold")
    for scheme in schemes:
        examples = [f"{name}  {DEMO[name]}" if name in DEMO else name for name in scheme.examples]
        table.add_row(scheme.form, "\n".join([scheme.about, *examples]))
    return table


def spec_table(card: dict[str, object]) -> Table:
    """One encoder's facts."""
    table = Table(show_header=False, title=str(card["id"]), title_justify="left")
    table.add_column("fact", no_wrap=True)
    table.add_column("value", overflow="fold")
    for name, value in card.items():
        if name != "id":
            table.add_row(name.replace("_", " "), _shown(value))
    return table


def resolutions_table(spec: EncoderSpec) -> Table:
    """Tokens by resolution, and the bytes an image's tokens take on the wire."""
    table = Table(title="Tokens by resolution", title_justify="left")
    for name in ("resolution", "grid", "tokens", "shape", "float32", "float16"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in at_resolutions(spec):
        numbers = row.tokens * spec.hidden_size
        native = "*" if row.size == spec.image_size else " "
        table.add_row(
            f"{row.size}{native}",
            f"{row.grid.rows}x{row.grid.cols}",
            str(row.tokens),
            f"[{row.tokens}, {spec.hidden_size}]",
            _kib(numbers * 4),
            _kib(numbers * 2),
        )
    table.caption = "* native. Without the prefix tokens." if spec.prefix_tokens else "* native"
    table.caption_justify = "left"
    return table


def _shown(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case list():
            return " x ".join(map(str, value))
        case dict():
            return ", ".join(f"{name} {_shown(each)}" for name, each in value.items() if each is not None)
    return str(value)


def _kib(count: int) -> str:
    return f"{count / 1024:,.1f} KiB"
