"""What `embed`, `similarity`, `models` and `vram` do: an encoder is loaded and run, or only drawn up. No server."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from tqdm import tqdm

import encoders
from encoders import Encoder, ImageSize, decode
from encoders.adapters import registry
from encoders.adapters.catalog import catalog, listed
from encoders.contract.errors import EncoderFailed
from encoders.memory.plan import Row, largest_size, plan
from encoders.memory.prediction import overhead_of
from service.bulk import run as bulk
from service.bulk import sinks as exports
from service.bulk.resume import BulkError
from service.cli import plots, tables
from service.cli.tables import Card, Forecast, Score
from service.engine.scoring import Prompts, score
from service.http.protocols.native.options import EmbedOptions, SimilarityOptions, VramOptions, read
from service.scheduling.batch import Outcome, forward
from service.scheduling.queue import ImageKey, TextKey
from service.settings import Settings
from service.sizes import parse_bytes
from service.spec_json import card

_SHOWN_FAILURES = 20

logging.getLogger(forward.__module__).addHandler(logging.NullHandler())  # what fails is shown here, as one line


class ArgumentError(BulkError):
    """Arguments that do not go together, or a device that is not there."""


def embed(arguments: argparse.Namespace) -> int:
    """Files to one file. 1 if some of them could not be encoded, 130 if interrupted."""
    options = read(
        EmbedOptions,
        query=[
            (name, getattr(arguments, name))
            for name in ("model", "output", "layer", "resolution", "prefix", "project", "normalize", "dtype")
        ],
        body=[],
    )
    files = bulk.find_images(arguments.paths)
    exports.check(arguments.out, names=bulk.array_names(options), files=[])
    job = bulk.Job(
        out=arguments.out,
        files=files,
        options=options,
        batch_size=arguments.batch_size,
        workers=arguments.workers or min(16, os.cpu_count() or 1),
        restart=arguments.restart,
    )
    encoder = _load(arguments, arguments.model)
    started = time.monotonic()
    try:
        with _progress(len(files)) as bar:
            finished = bulk.run(job, encoder, progress=lambda done, failed: _show(bar, done, failed))
    except KeyboardInterrupt:
        _say(f"Interrupted. What is done is kept in {arguments.out}.parts: the same command continues from there.")
        return 130
    _report(job.out, finished, seconds=time.monotonic() - started)
    return 1 if finished.failures else 0


def similarity(arguments: argparse.Namespace) -> int:
    """One image against texts."""
    limits = Settings.model_fields
    query = [("resolution", arguments.resolution), *(("template", text) for text in arguments.templates or ["{}"])]
    options = read(SimilarityOptions, query=query, body=[("text", text) for text in arguments.texts])
    prompts = Prompts.of(
        options.texts,
        options.templates,
        max_texts=limits["max_texts"].default,
        max_chars=limits["max_text_chars"].default,
    )
    image = decode(_bytes(arguments.image))
    encoder = _load(arguments, arguments.model)
    spec = encoder.spec
    scoring = spec.require_text()
    pixels = encoder.preprocess(image, spec.size(options.resolution))
    key = ImageKey(spec.id, spec.size(options.resolution), spec.outputs(pooled=True))
    (row,) = _sound(forward(encoder, key, [pixels]))
    texts = _sound(forward(encoder, TextKey(spec.id), list(encoder.tokenize(prompts.unique))))
    vectors = prompts.vectors(np.stack(texts))
    scores = score(row, vectors, scoring, model=spec.id)
    rows = [
        Score(text, float(cosine), float(logit), float(probability))
        for text, cosine, logit, probability in zip(
            options.texts, scores.cosine, scores.logits, scores.probabilities, strict=True
        )
    ]
    if arguments.json:
        about = {"model": spec.id, "image": str(arguments.image), **vars(scoring)}
        _print_json({**about, "scores": [vars(row) for row in rows]})
    else:
        _print(tables.scores_table(rows, title=f"{arguments.image}  {spec.id}  {scoring.activation}"))
    return 0


def models(arguments: argparse.Namespace) -> int:
    """What can be served, the ids of one scheme, or one encoder's spec."""
    if arguments.scheme:
        ids = listed(arguments.scheme)
        if arguments.json:
            _print_json(ids)
        else:
            print("\n".join(ids))
    elif arguments.id is None:
        schemes = catalog()
        if arguments.json:
            _print_json([vars(scheme) for scheme in schemes])
        else:
            _print(tables.catalog_table(schemes))
    else:
        spec = _load(arguments, arguments.id).spec
        if arguments.json:
            by_resolution = [
                {"resolution": row.size, "grid": row.grid, "tokens": row.tokens} for row in tables.at_resolutions(spec)
            ]
            _print_json({**card(spec), "tokens_by_resolution": by_resolution})
        else:
            _print(tables.spec_table(card(spec)), tables.resolutions_table(spec))
    return 0


def vram(arguments: argparse.Namespace) -> int:
    """What forwards of an encoder would take, and what of it fits a card. Nothing is loaded and nothing runs."""
    dtype = arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32")
    query = [(name, getattr(arguments, name)) for name in ("resolution", "batch", "output", "layer")]
    options = read(VramOptions, query=[("dtype", dtype), *query], body=[])
    gpu = _card(arguments)
    if arguments.plot:
        with _argument("--plot"):
            plots.check(arguments.plot)
    forecasts = _forecasts(arguments.id, options, device=arguments.device, gpu=gpu)
    if arguments.plot:
        with _argument("--plot"):
            plots.draw(arguments.plot, forecasts, gpu=gpu)
    if arguments.json:
        about = {"model": arguments.id, "device": arguments.device, **options.model_dump(include={"output", "layer"})}
        _print_json({**about, **tables.vram_json(forecasts, gpu=gpu)})
    else:
        _print(*(tables.vram_table(forecast, gpu=gpu) for forecast in forecasts))
        _print(tables.assumptions(forecasts[0].overhead, gpu=gpu))
        _print(*(f"\n{tables.verdict(forecast, gpu)}" for forecast in forecasts if gpu))
    return 0


def _card(arguments: argparse.Namespace) -> Card | None:
    """Of --gpu and --beside."""
    if arguments.gpu is None:
        if arguments.beside is not None:
            raise ArgumentError("--beside is about a card: say with --gpu how large it is.")
        return None
    with _argument("--gpu"):
        total = parse_bytes(arguments.gpu)
    with _argument("--beside"):
        beside = parse_bytes(arguments.beside or 0)
    if beside > total:
        raise ArgumentError(f"--beside {arguments.beside} is more than --gpu {arguments.gpu}.")
    return Card(total, beside)


def _forecasts(encoder_id: str, options: VramOptions, *, device: str, gpu: Card | None) -> list[Forecast]:
    """One a dtype; with a bar on a terminal if it takes longer than a second."""
    blueprints = [registry.blueprint(encoder_id, dtype=dtype) for dtype in dict.fromkeys(options.dtype)]
    spec = blueprints[0].spec
    sizes = list(dict.fromkeys(map(spec.size, options.resolution))) or tables.sizes_to_plan(spec)
    shapes = len(sizes) + (len(set(options.batch)) if gpu else 0)
    with tqdm(total=len(blueprints) * shapes, unit="shape", disable=None, delay=1, leave=False) as bar:
        return [_forecast(drawn, options, sizes, device=device, gpu=gpu, done=bar.update) for drawn in blueprints]


def _forecast(
    blueprint: Encoder,
    options: VramOptions,
    sizes: Sequence[ImageSize],
    *,
    device: str,
    gpu: Card | None,
    done: Callable[[], object],
) -> Forecast:
    """done: called after each size, and after the largest one has been found for each batch."""
    spec, overhead, outputs = blueprint.spec, overhead_of(device), options.outputs(blueprint.spec)
    batches = sorted(set(options.batch))
    room = gpu.room if gpu else None
    rows: list[Row] = []
    for size in sizes:
        rows += plan(blueprint, [size], batches, outputs, device=device, overhead=overhead, room=room)
        done()
    if room is None:
        return Forecast(spec, overhead, rows, {})
    free = room - overhead.context - spec.weights_bytes
    largest = {}
    for batch in batches:
        largest[batch] = largest_size(
            blueprint, outputs, batch=batch, device=device, overhead=overhead, free=free, like=sizes[0]
        )
        done()
    return Forecast(spec, overhead, rows, largest)


@contextmanager
def _argument(flag: str) -> Iterator[None]:
    """What is wrong with a flag's value is said of the flag."""
    try:
        yield
    except ValueError as error:
        raise ArgumentError(f"{flag}: {error}.") from error


def _load(arguments: argparse.Namespace, encoder_id: str) -> Encoder:
    from encoders.runtime.device import resolve  # imports torch

    try:
        placement = resolve(arguments.device, arguments.compute_dtype, arguments.runtime)
    except ValueError as error:
        raise ArgumentError(str(error)) from error
    return encoders.load(encoder_id, placement)


def _sound(outcomes: Sequence[Outcome]) -> list[Any]:
    """All rows, or the first error raised."""
    for outcome in outcomes:
        if isinstance(outcome, EncoderFailed):
            raise outcome
    return list(outcomes)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArgumentError(f"{path}: {error.strerror}.") from error


def _progress(files: int) -> Any:
    terminal = sys.stderr.isatty()
    return tqdm(total=files, unit="image", file=sys.stderr, dynamic_ncols=True, mininterval=0.1 if terminal else 10)


def _show(bar: Any, done: int, failed: int) -> None:
    if bar.n == 0 and bar.initial == 0 and done:  # the first report: what earlier runs had done is not this one's speed
        bar.initial = bar.n = bar.last_print_n = done
    if failed:
        bar.set_postfix(failed=failed, refresh=False)
    bar.update(done - bar.n)


def _report(out: Path, finished: bulk.Finished, *, seconds: float) -> None:
    for failure in finished.failures[:_SHOWN_FAILURES]:
        _say(f"{failure.path}: {failure.reason}")
    if finished.ledger:
        more = len(finished.failures) - _SHOWN_FAILURES
        _say(f"{f'... and {more:,} more. ' if more > 0 else ''}{len(finished.failures):,} failed: {finished.ledger}")
    if not finished.images:
        _say(f"No image could be encoded: {out} was not written.")
        return
    arrays = ", ".join(f"{name} {[finished.images, *shape]}" for name, shape in finished.shapes.items())
    resumed = f", continued after {finished.resumed:,} files" if finished.resumed else ""
    print(f"{out}: {arrays} in {seconds:.1f} s{resumed}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _print(*shown: RenderableType) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    for each in shown:
        console.print(each)


def _print_json(value: object | Sequence[object]) -> None:
    print(json.dumps(value, indent=2))
