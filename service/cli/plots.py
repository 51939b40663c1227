"""A plan as a picture. Imports matplotlib, an optional extra, only to draw."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from encoders import ImageSize
from service.cli.tables import Card, Forecast
from service.sizes import show_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")

_GIB = 2**30
_INK, _QUIET, _ALARM = "#22262e", "#7d848f", "#c8452f"


def check(path: Path) -> None:
    """Raises ValueError if no picture can be written there: an unknown suffix, or no matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    if find_spec("matplotlib") is None:
        raise ValueError("it takes matplotlib: pip install 'visiontower[plot]'")


def draw(path: Path, forecasts: Sequence[Forecast], *, gpu: Card | None) -> None:
    """Total bytes against resolution, a line a batch size, a panel a dtype; the card and what others hold of it.

    Raises ValueError if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 5 * len(forecasts), 4.8), layout="constrained")
    panels = figure.subplots(1, len(forecasts), sharey=True, squeeze=False)[0]
    for panel, forecast in zip(panels, forecasts, strict=True):
        _draw_batches(panel, forecast)
    _scale(panels[0], most=max(row.prediction.total_bytes for forecast in forecasts for row in forecast.rows), gpu=gpu)
    if gpu is not None:
        for panel in panels:
            _draw_card(panel, gpu, labelled=panel is panels[-1])
    figure.suptitle(f"{forecasts[0].spec.id}: memory in all, by resolution", x=0.02, ha="left", color=_INK)
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=5, columnspacing=1.2, frameon=False, fontsize=9)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def _draw_batches(panel: "Axes", forecast: Forecast) -> None:
    from matplotlib import colormaps

    sizes = sorted({row.size for row in forecast.rows}, key=_side)
    batches = sorted({row.prediction.batch for row in forecast.rows})
    totals = {(row.size, row.prediction.batch): row.prediction.total_bytes / _GIB for row in forecast.rows}
    sides = np.array([_side(size) for size in sizes])
    between = np.linspace(sides[0], sides[-1], 200)
    floor = (forecast.spec.weights_bytes + forecast.overhead.context) / _GIB
    panel.axhline(floor, color=_QUIET, linewidth=1, linestyle=":", label="before any image")
    for batch, shade in zip(batches, colormaps["viridis"](np.linspace(0.8, 0.1, len(batches))), strict=True):
        values = np.array([totals[size, batch] for size in sizes])
        # Bytes grow as pixels do: straight between two sizes over their pixels, so bent over their sides.
        panel.plot(between, np.interp(between**2, sides**2, values), color=shade, linewidth=2, label=f"batch {batch:,}")
        panel.plot(sides, values, "o", color=shade, markersize=5)
    panel.set_xticks(sides, [str(size.height) if size.height == size.width else str(size) for size in sizes])
    panel.set_title(forecast.spec.dtype, loc="left", fontsize=10, color=_QUIET)
    panel.tick_params(colors=_INK)
    panel.grid(color="#e6e8ec", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _scale(panel: "Axes", *, most: int, gpu: Card | None) -> None:
    """From 0, so that heights compare; in doublings where a much larger card would press all lines flat."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator, NullLocator

    top = 1.06 * max(most, gpu.total if gpu else 0) / _GIB
    if gpu is not None and gpu.total > 4 * most:
        panel.set_yscale("log", base=2)
        panel.yaxis.set_minor_locator(NullLocator())
    else:
        panel.set_ylim(0, top)
        panel.yaxis.set_major_locator(MultipleLocator(2.0 ** round(np.log2(top / 6))))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show_bytes(round(value * _GIB))))


def _draw_card(panel: "Axes", gpu: Card, *, labelled: bool) -> None:
    lines = [(gpu.total, "the card", _INK, "bottom")]
    if gpu.beside:
        panel.axhspan(gpu.room / _GIB, gpu.total / _GIB, color=_ALARM, alpha=0.12, linewidth=0)
        lines.append((gpu.room, f"beside {show_bytes(gpu.beside)}", _ALARM, "top"))
    for level, name, color, side in lines:
        panel.axhline(level / _GIB, color=color, linewidth=1.5)
        if labelled:
            label = f" {name}:\n {show_bytes(level)}"
            panel.text(1, level / _GIB, label, transform=panel.get_yaxis_transform(), color=color, va=side, fontsize=9)


def _side(size: ImageSize) -> float:
    """Of the square of as many pixels."""
    return float(np.sqrt(size.height * size.width))
