"""`visiontower search`: a text or an image against what `visiontower embed` wrote."""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli import event_loop
from service.cli.arguments import ArgumentError, add_command, add_placement, read_image
from service.cli.output import beginning, show, show_json

if TYPE_CHECKING:
    from encoders.contract.values import Floats
    from service.bulk.results import Origin, Result
    from service.bulk.search import Nearest

_MOST = 1000
"""Matches that a person or a program may ask for."""
_SHOWN_AFTER_S = 1.0

_HELP = """\
Find the images nearest to a text or to an image in what `visiontower embed`
wrote: a .parquet, .npy or .safetensors file, a .lance dataset, or a folder of
part-*.parquet.

  visiontower search photos.parquet "a red circle"
  visiontower search photos.parquet cat.jpg -k 20
  visiontower search photos.npy "a red circle" --json

The encoder that RESULT names embeds the query, as it embedded the images. Every
vector is compared, by its cosine; none needs to have length 1. RESULT is read
in blocks: it may be larger than the memory.

Cosines with texts are lower than cosines with images: compare them within one
search only. A table of another program needs --model, and --column if its
vectors are not in `pooled`."""


@dataclass(frozen=True)
class _Query:
    """What is searched for, as it was given; an image's bytes."""

    word: str
    image: bytes | None = None


@dataclass(frozen=True)
class _Embedded:
    """The query's vector [width]. model: its encoder. is_cut: a text was longer than the model reads."""

    vector: "Floats"
    model: str
    is_cut: bool
    load_s: float
    query_s: float


@dataclass(frozen=True)
class _Answer:
    """names: of the rows found."""

    result: "Result"
    query: _Query
    embedded: _Embedded
    found: "Nearest"
    names: list[str]
    scan_s: float


def add(commands: Any) -> None:
    """The command and its flags."""
    search = add_command(commands, "search", "find images by a text or an image", _HELP, run=run)
    search.add_argument("result", metavar="RESULT", type=Path, help="what embed wrote")
    search.add_argument("query", metavar="QUERY", help="an image file if there is one of this name, else a text")
    kind = search.add_mutually_exclusive_group()
    kind.add_argument("--text", action="store_true", help="QUERY is a text, whatever files there are")
    kind.add_argument("--image", action="store_true", help="QUERY is an image file")
    search.add_argument("-k", metavar="N", type=_matches, default=5, help=f"matches, 1 to {_MOST} [5]")
    search.add_argument("--no-thumbnails", action="store_true", help="no pictures in a terminal with colours")
    search.add_argument("--json", action="store_true", help="for machines")
    search.add_argument("--model", metavar="ID", help="encoder id, if RESULT does not say it")
    search.add_argument("--column", metavar="NAME", default="pooled", help="of a table, where vectors are [pooled]")
    add_placement(search, runtime=None)


def run(arguments: argparse.Namespace) -> int:
    """Print the nearest images. 130 if interrupted."""
    from service.bulk import results

    result = results.opened(arguments.result, column=arguments.column)
    origin = _origin(result, arguments.model)
    query = _query(arguments)
    embedded = event_loop.run(_embed(query, origin, arguments))
    if len(embedded.vector) != result.width:
        raise ArgumentError(
            f"{embedded.model} gives this query {len(embedded.vector)} numbers, and the vectors of {result.path} have "
            f"{result.width}: they are not of this encoder, or not its pooled vectors."
        )
    started = time.perf_counter()
    found = _scan(result, embedded.vector, arguments.k)
    names = result.names(found.rows.tolist())
    scan_s = time.perf_counter() - started
    answer = _Answer(result, query, embedded, found, names, scan_s)
    if arguments.json:
        show_json(_json(answer))
    else:
        _show_table(answer, has_pictures=not arguments.no_thumbnails)
    return 0


def _matches(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= _MOST:
        raise argparse.ArgumentTypeError(f"'{beginning(text)}' is not a number from 1 to {_MOST}")
    return number


def _query(arguments: argparse.Namespace) -> _Query:
    """Raises ArgumentError if the image is not there; a misspelt file name must not be searched as a text."""
    from service.bulk.sources import SUFFIXES

    word: str = arguments.query
    path = Path(word)
    if arguments.image or (os.path.isfile(word) and not arguments.text):  # Path.is_file raises for a long text
        return _Query(word, read_image(path))
    if not arguments.text and " " not in word and path.suffix.lower() in SUFFIXES:
        raise ArgumentError(f"{beginning(word)} is not there. If it is meant as a text, add --text.")
    return _Query(word)


def _origin(result: "Result", model: str | None) -> "Origin":
    from service.bulk.results import Origin

    if result.origin is None and model is None:
        raise ArgumentError(f"{result.path} does not say which encoder its vectors are of: name it with --model.")
    if result.origin is None or model is None:
        return result.origin or Origin(str(model), revision="", resolution=None, runtime="torch", exact_pixels=False)
    if result.origin.model != model:
        raise ArgumentError(f"{result.path} is of {result.origin.model}, not of {model}: leave --model out.")
    return result.origin


async def _embed(query: _Query, origin: "Origin", arguments: argparse.Namespace) -> _Embedded:
    """Raises ArgumentError if the encoder has other weights by now; errors of the engine, and the image's."""
    from encoders.contract.errors import VisiontowerError
    from service.engine.engine import Engine
    from service.engine.values import EmbedRequest
    from service.settings import Settings

    runtime: Any = arguments.runtime or origin.runtime  # Settings checks it
    settings = Settings(
        model=(origin.model,),
        device=arguments.device,
        dtype=arguments.compute_dtype,
        calibration=arguments.calibration,
        runtime=runtime,
        exact_pixels=origin.exact_pixels,
    )
    started = time.perf_counter()
    async with Engine(settings) as engine:
        loaded = time.perf_counter()
        revision = engine.models.specs[origin.model].revision
        if origin.revision and revision != origin.revision:
            raise ArgumentError(
                f"{arguments.result} was written with revision {origin.revision} of {origin.model}, and here it has "
                f"revision {revision}: vectors of different weights do not compare. Embed the images again."
            )
        result = await engine.embed(
            EmbedRequest(
                [] if query.image is None else [query.image],
                [query.word] if query.image is None else [],
                output="pooled",
                resolution=origin.resolution,
            )
        )
        query_s = time.perf_counter() - loaded
    for item in result.items:
        if isinstance(item, VisiontowerError):
            raise item
        assert item.pooled is not None
        return _Embedded(item.pooled, result.model, False, loaded - started, query_s)
    return _Embedded(result.texts[0], result.model, bool(result.truncated), loaded - started, query_s)


def _scan(result: "Result", vector: "Floats", k: int) -> "Nearest":
    from tqdm import tqdm

    from service.bulk.search import nearest

    with tqdm(
        total=result.rows,
        unit=" vectors",
        unit_scale=True,
        file=sys.stderr,
        dynamic_ncols=True,
        leave=False,
        delay=_SHOWN_AFTER_S,
        disable=None,  # unless it is a terminal
    ) as bar:
        return nearest(result, vector, k, progress=bar.update)


def _json(answer: _Answer) -> dict[str, object]:
    found, embedded = answer.found, answer.embedded
    matches = [
        {"rank": rank, "score": float(score), "path": name, "row": int(row)}
        for rank, (score, name, row) in enumerate(zip(found.cosines, answer.names, found.rows, strict=True), start=1)
    ]
    return {
        "result": str(answer.result.path),
        "model": embedded.model,
        "query": {"image" if answer.query.image is not None else "text": answer.query.word},
        "truncated": embedded.is_cut,
        "rows": answer.result.rows,
        "vectors": found.vectors,
        "seconds": {"load": embedded.load_s, "query": embedded.query_s, "scan": answer.scan_s},
        "matches": matches,
    }


def _show_table(answer: _Answer, *, has_pictures: bool) -> None:
    from rich.console import Console

    from service.cli.tables import Match, matches_table
    from service.cli.thumbnails import can_show, thumbnail

    result, query, embedded, found = answer.result, answer.query, answer.embedded, answer.found
    has_pictures = has_pictures and can_show(Console())
    matches = [
        Match(float(score), name, thumbnail(Path(name)) if has_pictures else None)
        for score, name in zip(found.cosines, answer.names, strict=True)
    ]
    shown = beginning(query.word) if query.image is not None else f'"{beginning(query.word)}"'
    without = result.rows - found.vectors
    show(
        f"{result.path}  {embedded.model}  {shown}",
        matches_table(matches, has_pictures=has_pictures),
        f"{found.vectors:,} vectors compared in {answer.scan_s:.2f} s"
        f"{f'; {without:,} rows have none' if without else ''}. "
        f"Loading the encoder took {embedded.load_s:.1f} s, the query {embedded.query_s:.2f} s.",
    )
    if embedded.is_cut:
        show("The query was cut at the model's context length: its end does not count.")
