"""Draws docs/heatmaps.png of docs/demo-encoders.md: a drawing, and where two demo encoders see three texts in it.

Knows matplotlib and the encoders' contract. A cell is one patch token; its colour is the cosine of that token and the
text. The number below a map is the cosine of the whole image and the text.
"""

import argparse
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from encoders import ImageSize, TokenKind, load
from encoders.images.decode import decode
from encoders.images.preprocess import preprocess

DOCS = Path(__file__).parents[2] / "docs"
ENCODERS = ("demo:vit", "demo:resnet")
TEXTS = ("a red circle", "a house", "a blue star")
SIZE = ImageSize(192, 192)

_INK, _QUIET, _FRAME, _LINES = "#1f2430", "#6b7280", "#b8bec9", "#e9ebef"
_COLOURS: Colormap = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#fff0cc", "#ffb55e", "#ef5a2a", "#a3152b"])
_DPI = 150
_HIGHEST = 0.6
"""Cosine of the darkest colour; 0 and all below it are white."""
_STEPS = 24
"""Of the scale beside the maps: a palette of 256 colours has no room for a smooth one."""
_OUTLINE = 40.0
"""Distance in RGB from the ground at which the outline of an object is drawn."""

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Seen:
    """One encoder's answer. cosine: [texts], of the whole image; heat: [texts, rows, cols], of its patch tokens."""

    encoder: str
    cosine: Array
    heat: Array


def see(encoder_id: str, image_bytes: bytes, texts: Sequence[str], size: ImageSize) -> Seen:
    """Cosines of an image and its patches with the texts."""
    encoder = load(encoder_id)
    pixels = preprocess(decode(image_bytes), encoder.spec.preprocessing, size)
    encoded = encoder.encode(pixels[np.newaxis], encoder.spec.outputs(tokens=TokenKind.DENSE, pooled=True))
    assert encoded.tokens is not None
    assert encoded.pooled is not None
    words = _unit(encoder.encode_text(encoder.tokenize(texts).ids))
    heat = (words @ _unit(encoded.tokens[0]).T).reshape(len(texts), encoded.grid.rows, encoded.grid.cols)
    return Seen(encoder_id, words @ _unit(encoded.pooled[0]), heat)


def draw(image_bytes: bytes, answers: Sequence[Seen], texts: Sequence[str]) -> Figure:
    """The drawing on the left, a row of heat maps for each encoder on the right, one colour scale for all."""
    image = np.asarray(decode(image_bytes))
    figure = Figure(figsize=(9.6, 4.56), dpi=_DPI, facecolor="white")
    width, height = figure.get_size_inches() * _DPI
    side = 2 * image.shape[0]  # whole pixels: nothing is blurred, and the file stays small
    shown = figure.add_axes((48 / width, 150 / height, side / width, side / height))
    shown.imshow(image, interpolation="nearest")
    _bare(shown)
    shown.set_title("an image", fontsize=12, color=_INK, pad=8)
    shown.set_xlabel("docs/example.png", fontsize=9, color=_QUIET, labelpad=6)
    grid = figure.subplots(
        len(answers),
        len(texts),
        squeeze=False,
        gridspec_kw={"left": 0.365, "right": 0.9, "top": 0.89, "bottom": 0.075, "wspace": 0.08, "hspace": 0.26},
    )
    for row, (axes, seen) in enumerate(zip(grid, answers, strict=True)):
        rows, cols = seen.heat.shape[1:]
        axes[0].set_ylabel(f"{seen.encoder}, {rows} x {cols} tokens", fontsize=9.5, color=_INK, labelpad=7)
        for column, ax in enumerate(axes):
            _heat_map(ax, image, seen.heat[column])
            ax.set_xlabel(f"whole image {seen.cosine[column]:.2f}", fontsize=10, color=_INK, labelpad=4)
            if row == 0:
                ax.set_title(f"“{texts[column]}”", fontsize=12, color=_INK, pad=8)
    _scale(figure.add_axes((0.93, 0.17, 0.0135, 0.62)))
    return figure


def _heat_map(ax: Axes, image: Array, heat: Array) -> None:
    """A cell for each patch, white where the cosine is not above 0, and the outlines of the drawing over them."""
    height, width = image.shape[:2]
    ax.imshow(heat, cmap=_COLOURS, vmin=0, vmax=_HIGHEST, extent=(0, width, height, 0), interpolation="nearest")
    for at in range(1, heat.shape[0]):
        ax.axhline(at * height / heat.shape[0], color=_LINES, linewidth=0.5)
    for at in range(1, heat.shape[1]):
        ax.axvline(at * width / heat.shape[1], color=_LINES, linewidth=0.5)
    ground = np.median(image.reshape(-1, 3), axis=0)
    ax.contour(np.linalg.norm(image - ground, axis=-1), levels=[_OUTLINE], colors=_INK, linewidths=0.9, alpha=0.75)
    _bare(ax)


def _scale(ax: Axes) -> None:
    ax.imshow(
        np.linspace(_HIGHEST, 0, _STEPS)[:, np.newaxis],
        cmap=_COLOURS,
        aspect="auto",
        extent=(0, 1, 0, _HIGHEST),
    )
    ax.yaxis.tick_right()
    ax.set_xticks([])
    ax.set_yticks([0, 0.2, 0.4, 0.6])
    ax.tick_params(length=0, labelsize=9, labelcolor=_QUIET)
    ax.set_title("cosine", fontsize=9, color=_QUIET, pad=7)
    _frame(ax)


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    _frame(ax)


def _frame(ax: Axes) -> None:
    for spine in ax.spines.values():
        spine.set_color(_FRAME)


def _unit(vectors: Array) -> Array:
    unit: Array = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit


def main(arguments: list[str] | None = None) -> None:
    """The command line: `python -m training.demo.picture --help`."""
    parser = argparse.ArgumentParser(
        prog="python -m training.demo.picture",
        description="Draw the picture of the README: docs/example.png and its heat maps by two demo encoders.",
    )
    parser.add_argument("--out", type=Path, default=DOCS / "heatmaps.png", help="PNG to write [docs/heatmaps.png]")
    chosen = parser.parse_args(arguments)
    matplotlib.rcParams["font.family"] = "DejaVu Sans"  # it comes with matplotlib: the same picture everywhere
    image_bytes = (DOCS / "example.png").read_bytes()
    answers = [see(encoder_id, image_bytes, TEXTS, SIZE) for encoder_id in ENCODERS]
    drawn = io.BytesIO()
    draw(image_bytes, answers, TEXTS).savefig(drawn)
    few_colours = Image.open(drawn).convert("RGB").quantize(256, kmeans=8, dither=Image.Dither.NONE)
    few_colours.save(chosen.out, optimize=True)  # a third of the bytes
    print(f"{chosen.out}: {chosen.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
