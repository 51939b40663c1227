"""The command line's tables, for people and as JSON. Knows values; loads and computes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from encoders import EncoderSpec, Grid, ImageSize
from encoders.adapters.catalog import DEMO, Recommended, Scheme
from encoders.memory.plan import Row
from encoders.memory.prediction import ALLOCATOR, MIB, Overhead
from service.cli.fidelity import Agreement, least, most
from service.cli.output import printable
from service.sizes import show_bytes
from service.spec_json import plan_json

_COMMON_SIDES = (224, 256, 336, 384, 448, 512, 672)
"""Sides that people ask for, beside halves and multiples of the native one."""

_BAR = 20
_PHOTO = 32
"""Columns of the terminal for the name of a photograph."""

_PLANNED = ("resolution", "tokens", "GFLOP", "batch", "weights", "in+out", "activ-\nations", "over-\nhead", "total")


@dataclass(frozen=True)
class Score:
    """One text's score for the image."""

    text: str
    cosine: float
    logit: float
    probability: float


@dataclass(frozen=True)
class Match:
    """An image that was found. picture: None if it cannot be shown."""

    score: float
    path: str
    picture: Text | None


@dataclass(frozen=True)
class AtResolution:
    """What a forward at `size` gives. tokens: patch tokens, without prefix; numbers in them: tokens * hidden size."""

    size: ImageSize
    grid: Grid
    tokens: int


@dataclass(frozen=True)
class Card:
    """A card's memory, and what others hold of it, in bytes."""

    total: int
    beside: int

    @property
    def room(self) -> int:
        """What is left."""
        return self.total - self.beside


@dataclass(frozen=True)
class Forecast:
    """What an encoder takes in one dtype.

    rows: by size, and for each by batch, smallest first. largest: for each batch the largest size that fits the card;
    empty without a card.
    """

    spec: EncoderSpec
    overhead: Overhead
    rows: Sequence[Row]
    largest: Mapping[int, ImageSize | None]


def at_resolutions(spec: EncoderSpec) -> list[AtResolution]:
    """Patch grids at the native size and at common square ones the encoder can run, smallest first."""
    sides = {ImageSize(side, side) for side in _COMMON_SIDES}
    scaled = {_halves(spec.image_size, count) for count in (1, 3, 4)}
    possible = {size for size in sides | scaled if spec.resolutions.problem(size) is None}
    grids = [(size, spec.grid(size)) for size in sorted(possible | {spec.image_size})]
    return [AtResolution(size, grid, grid.rows * grid.cols) for size, grid in grids]


def sizes_to_plan(spec: EncoderSpec) -> list[ImageSize]:
    """The native size and, as nearly as the encoder can, one and a half times and twice that."""
    larger = (spec.resolutions.nearest(_halves(spec.image_size, count))[0] for count in (3, 4))
    return list(dict.fromkeys([spec.image_size, *larger]))


def _halves(size: ImageSize, count: int) -> ImageSize:
    return ImageSize(size.height * count // 2, size.width * count // 2)


def scores_table(scores: Sequence[Score], *, title: str) -> Table:
    """Best first, with a bar."""
    table = Table(title=printable(title), title_justify="left")
    table.add_column("text", overflow="fold", min_width=8)
    table.add_column("cosine", justify="right", no_wrap=True, min_width=7)
    table.add_column("probability", justify="right", no_wrap=True, min_width=11)
    table.add_column("", max_width=_BAR)
    for score in sorted(scores, key=lambda score: -score.probability):
        bar = ProgressBar(1.0, score.probability)  # in a narrow terminal it is shorter, in ASCII of hyphens
        table.add_row(printable(score.text), f"{score.cosine:+.4f}", f"{score.probability:.4f}", bar)
    return table


def matches_table(matches: Sequence[Match], *, has_pictures: bool) -> Table:
    """Best first; a picture that cannot be shown is a dash."""
    table = Table(show_lines=has_pictures)
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("path", overflow="fold")
    if has_pictures:
        table.add_column("", no_wrap=True)
    for rank, match in enumerate(matches, start=1):
        picture = [match.picture or "-"] if has_pictures else []
        table.add_row(f"{rank}", f"{match.score:+.4f}", Text(printable(match.path)), *picture)
    return table


def fidelity_table(agreements: Sequence[Agreement], *, bound: float) -> Table:
    """A row a picture, the worst of all last; a picture that misses the bound is marked."""
    worst = Agreement(
        "worst",
        most(each.pixels for each in agreements),
        least(each.pooled for each in agreements),
        least(each.tokens for each in agreements),
        most(each.scores for each in agreements),
        None if agreements[0].same_text is None else all(each.same_text for each in agreements),
    )
    missed = sum(not each.holds(bound) for each in agreements)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("picture", no_wrap=True)
    for name in ("pixels", "pooled", "tokens", "scores"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in agreements:
        _add_agreement(table, each, bound)
    table.add_section()
    _add_agreement(table, worst, bound)
    table.caption = (
        f"{missed:,} of {len(agreements):,} below {bound:g} (<)" if missed else f"All within the bound of {bound:g}."
    )
    table.caption_justify = "left"
    return table


def _add_agreement(table: Table, each: Agreement, bound: float) -> None:
    scores = "-" if each.scores is None else f"{each.scores:.4f} {'=' if each.same_text else '!='}"
    photo = printable(each.photo)
    if cell_len(photo) > _PHOTO:  # shortened here, so that the mark behind it stays
        photo = f"{set_cell_size(photo, _PHOTO - 1).rstrip()}…"
    table.add_row(
        f"{photo}{'' if each.holds(bound) else ' <'}",
        "-" if each.pixels is None else f"{each.pixels:.1f}",
        *("-" if value is None else f"{value:.6f}" for value in (each.pooled, each.tokens)),
        scores,
    )


def catalog_table(schemes: Sequence[Scheme]) -> Table:
    """Schemes with how to name an id in each."""
    table = Table(title="Encoder ids", title_justify="left", show_lines=True)
    table.add_column("id", no_wrap=True)
    table.add_column("what, and examples", overflow="fold")
    for scheme in schemes:
        examples = [f"{name}  {DEMO[name]}" if name in DEMO else name for name in scheme.examples]
        table.add_row(scheme.form, "\n".join([scheme.about, *examples]))
    return table


def recommended_text(encoders: Sequence[Recommended]) -> str:
    """For each encoder its download, what it is good for, and the command that serves it, to copy."""
    said = [
        f"{show_bytes(each.download_bytes)}: {each.purpose}\n  visiontower serve --model {each.id}" for each in encoders
    ]
    return "\n\n".join(["For photographs, small to large. The first start downloads the weights.", *said])


def spec_table(card: dict[str, object]) -> Table:
    """One encoder's facts. Photographs go without saying: no `trained on` is no row."""
    table = Table(show_header=False, title=printable(str(card["id"])), title_justify="left")
    table.add_column("fact", no_wrap=True)
    table.add_column("value", overflow="fold")
    for name, value in card.items():
        if name != "id" and (name, value) != ("trained_on", None):
            table.add_row(name.replace("_", " "), _shown(value))
    return table


def resolutions_table(spec: EncoderSpec) -> Table:
    """Tokens by resolution, and the bytes an image's tokens take on the wire."""
    table = Table(title="Tokens by resolution", title_justify="left")
    for name in ("resolution", "grid", "tokens", "shape", "float32", "float16"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in at_resolutions(spec):
        numbers = row.tokens * spec.hidden_size
        table.add_row(
            _marked(row.size, spec),
            f"{row.grid.rows}x{row.grid.cols}",
            str(row.tokens),
            f"[{row.tokens}, {spec.hidden_size}]",
            _kib(numbers * 4),
            _kib(numbers * 2),
        )
    table.caption = "* native. Without the prefix tokens." if spec.prefix_tokens else "* native"
    table.caption_justify = "left"
    return table


def vram_table(forecast: Forecast, *, gpu: Card | None) -> Table:
    """Bytes in MiB by resolution and batch; what does not fit the card is marked."""
    spec = forecast.spec
    title = f"{printable(spec.id)}  {spec.dtype}  bytes in MiB"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for name in (*_PLANNED, "largest\nbatch") if gpu else _PLANNED:
        table.add_column(name, justify="right", no_wrap=True)
    for _, rows in groupby(forecast.rows, key=lambda row: row.size):
        first, *others = rows
        image, largest = _of_an_image(first, spec), [f"{first.max_batch:,}"] if gpu else []
        table.add_row(*image, *_of_a_batch(first, gpu), *largest)
        for row in others:
            table.add_row(*("" for _ in image), *_of_a_batch(row, gpu))
        table.add_section()
    return table


def _of_an_image(row: Row, spec: EncoderSpec) -> list[str]:
    predicted = row.prediction
    return [
        _marked(row.size, spec),
        f"{predicted.tokens // predicted.batch:,}",
        f"{predicted.flops / predicted.batch / 1e9:,.1f}",
    ]


def _of_a_batch(row: Row, gpu: Card | None) -> list[str]:
    predicted = row.prediction
    parts = (predicted.weights_bytes, predicted.io_bytes, predicted.activation_bytes, predicted.overhead_bytes)
    over = ">" if gpu and predicted.total_bytes > gpu.room else ""
    return [f"{predicted.batch:,}", *map(_mib, parts), over + _mib(predicted.total_bytes)]


def assumptions(overhead: Overhead, *, gpu: Card | None) -> str:
    """What the figures of a plan mean and take for granted."""
    marks = "* native; > more than there is." if gpu else "* native."
    said = [f"{marks} Tokens and GFLOP: of one image. Weights: of all that is loaded, the text half too."]
    if overhead.context:
        said.append(
            f"Overhead: {show_bytes(overhead.context)} allowed for the CUDA context; {show_bytes(overhead.workspace)} "
            "of workspace during matrix products; what torch's allocator cannot fill of its pages, with "
            f"{ALLOCATOR}. Workspaces of cuDNN are not known and not counted."
        )
    said.append("Attention is linear in the tokens wherever torch has such a kernel.")
    return " ".join(said)


def answer(forecast: Forecast, gpu: Card) -> Literal["yes", "partly", "no"]:
    """Whether the smallest batch asked about fits, at all sizes, at some, or at none."""
    fits = [row.prediction.total_bytes <= gpu.room for row in _smallest_batches(forecast)]
    return "yes" if all(fits) else "partly" if any(fits) else "no"


def verdict(forecast: Forecast, gpu: Card) -> str:
    """Whether it fits, in which batches, and up to which size."""
    spec, smallest = forecast.spec, _smallest_batches(forecast)
    held = [f"{row.max_batch:,} at {row.size}" for row in smallest if row.max_batch]
    short = [
        f"a batch of {row.prediction.batch:,} at {row.size} needs {show_bytes(missing)} more"
        for row in smallest
        if (missing := row.prediction.total_bytes - gpu.room) > 0
    ]
    room = f"{show_bytes(gpu.total)} less {show_bytes(gpu.beside)}" if gpu.beside else show_bytes(gpu.total)
    context = forecast.overhead.context
    fixed = f"weights{' and context' if context else ''} alone take {show_bytes(spec.weights_bytes + context)}"
    holds = f"hold image batches of up to {_enumerated(held)}" if held else "are too few"
    said = [
        f"{answer(forecast, gpu)}, in {spec.dtype}: {room} {holds}",
        fixed if spec.weights_bytes + context > gpu.room else _enumerated(short),
        *_largest(forecast),
    ]
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in said if sentence)


def vram_json(forecasts: Sequence[Forecast], *, gpu: Card | None) -> dict[str, object]:
    """Every row in the names of the contract; with a card, what fits it."""
    plan = [
        plan_json(row, forecast.spec, max_resolution=forecast.largest.get(row.prediction.batch))
        for forecast in forecasts
        for row in forecast.rows
    ]
    if gpu is None:
        return {"plan": plan}
    answers = [
        {"dtype": forecast.spec.dtype, "answer": answer(forecast, gpu), "because": verdict(forecast, gpu)}
        for forecast in forecasts
    ]
    return {"gpu_bytes": gpu.total, "beside_bytes": gpu.beside, "fits": answers, "plan": plan}


def _smallest_batches(forecast: Forecast) -> list[Row]:
    """Of each size the first row."""
    return [next(rows) for _, rows in groupby(forecast.rows, key=lambda row: row.size)]


def _largest(forecast: Forecast) -> list[str]:
    """The largest size of each batch, as sentences without their stops."""
    top = forecast.spec.resolutions.maximum
    found, none = [], []
    for size, pairs in groupby(forecast.largest.items(), key=lambda pair: pair[1]):
        batches = _enumerated([f"{batch:,}" for batch, _ in pairs])
        if size is None:
            none.append(f"no resolution fits at batch {batches}")
        else:
            ends = " (it takes no larger)" if size.height == top.height or size.width == top.width else ""
            found.append(f"{size}{ends} at batch {batches}")
    return ([f"the largest resolution is {_enumerated(found)}"] if found else []) + none


def _enumerated(items: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def _marked(size: ImageSize, spec: EncoderSpec) -> str:
    return f"{size}*" if size == spec.image_size else f"{size} "


def _mib(count: int) -> str:
    return f"{count / MIB:,.{0 if count >= 10 * MIB else 1}f}"


def _shown(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case [float(), *_]:
            return " ".join(f"{each:.4g}" for each in value)
        case list():
            return " x ".join(map(str, value))
        case dict():
            shown = ((name.replace("_", " "), each) for name, each in value.items() if each is not None)
            return ", ".join(f"{name} {_shown(each)}" for name, each in shown)
    return str(value)


def _kib(count: int) -> str:
    return f"{count / 1024:,.1f} KiB"


def keys_table(rows: Sequence[Mapping[str, object]]) -> Table:
    """Access keys: a row each; what is not limited is `any`."""
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("name", overflow="fold")
    beside = {
        "requests_per_second": "requests/s",
        "images_in_flight": "in flight",
        "images_per_day": "images/day",
        "images_today": "today",
        "models": "models",
    }
    shown = [name for name in beside if rows and name in rows[0]]
    for name in shown:
        table.add_column(beside[name], justify="left" if name == "models" else "right", overflow="fold")
    for row in rows:
        table.add_row(str(row["name"]), *(_limit(row[name]) for name in shown))
    return table


def _limit(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return "any" if value is None else f"{value:,}".removesuffix(".0")
