"""What `embed`, `similarity` and `models` do: an encoder is loaded, run once or often, and shown. No server."""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import encoders
from encoders import Encoder, decode
from encoders.catalog import catalog, listed
from encoders.errors import EncoderFailed
from service import bulk, exports, tables
from service.batching import ImageKey, TextKey
from service.forward import Outcome, forward
from service.options import EmbedOptions, SimilarityOptions, read
from service.parts import BulkError
from service.settings import Settings
from service.similarity import Prompts, score
from service.specs import card
from service.tables import Score

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


def _load(arguments: argparse.Namespace, encoder_id: str) -> Encoder:
    from encoders.device import resolve  # imports torch

    try:
        placement = resolve(arguments.device, arguments.compute_dtype)
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


def _print(*shown: Table) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    for each in shown:
        console.print(each)


def _print_json(value: object | Sequence[object]) -> None:
    print(json.dumps(value, indent=2))
