"""`visiontower embed`: files or folders to a file of embeddings."""

import argparse
import asyncio
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli.arguments import (
    add_command,
    add_model,
    add_pixels,
    add_placement,
    positive,
    resolution_of,
    settings_of,
)
from service.cli.output import say

if TYPE_CHECKING:
    from service.bulk.run import Finished, Job
    from service.settings import Settings

_SHOWN_FAILURES = 20

_HELP = """\
Encode files, or all images below folders, into one file. Its suffix chooses:

  .parquet      columns path, grid_rows, grid_cols, tokens, pooled
  .safetensors  tensors tokens, pooled; metadata paths, a JSON list
  .npy          one array; OUT.json says which file each row is

  visiontower embed photos/ -o photos.parquet
  visiontower embed a.png b.png -o tokens.npy --output tokens --dtype float16
  visiontower embed photos/ -o llava.safetensors --output tokens --layer -2 \\
      --model openclip:ViT-L-14-336@openai --resolution 336

Rows are in the order of the files: as given, folders sorted. A file that
cannot be encoded has no row; it is listed at the end and in OUT.errors.jsonl.
Interrupted or killed, the same command continues from OUT.parts and gives what
an uninterrupted run gives; files that failed before are not tried again."""


def add(commands: Any) -> None:
    """The command and its flags."""
    embed = add_command(commands, "embed", "files or folders to a file of embeddings", _HELP, run=run)
    embed.set_defaults(gathers=("paths", Path))
    embed.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="image files, or folders of them")
    embed.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="file to write")
    add_model(embed)
    embed.add_argument("--output", choices=("pooled", "tokens", "both"), default="pooled", help="[pooled]")
    embed.add_argument("--layer", metavar="K", type=int, help="tokens of block or stage K; -1 is the last")
    add_pixels(embed)
    embed.add_argument("--prefix", action="store_true", help="keep class and register tokens")
    embed.add_argument("--project", action="store_true", help="tokens through the model's own projection")
    embed.add_argument("--normalize", action="store_true", help="L2-normalise each vector")
    embed.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the file [float32]")
    embed.add_argument("--batch-size", metavar="N", type=positive, default=32, help="images in one forward [32]")
    embed.add_argument("--workers", metavar="N", type=positive, help="decoding threads [all cores but one]")
    embed.add_argument("--restart", action="store_true", help="drop what an earlier run left, write OUT anew")
    add_placement(embed)


def run(arguments: argparse.Namespace) -> int:
    """Files to one file. 1 if some of them could not be encoded, 130 if interrupted."""
    from service.bulk import sinks
    from service.bulk.run import Job
    from service.bulk.sources.files import find_images
    from service.engine.values import EmbedRequest

    request = EmbedRequest(
        (),
        model=arguments.model,
        output=arguments.output,
        layer=arguments.layer,
        project=arguments.project,
        resolution=resolution_of(arguments),
        prefix=arguments.prefix,
        normalize=arguments.normalize,
        dtype=arguments.dtype,
    )
    files = find_images(arguments.paths)
    job = Job(arguments.out, files, request, batch_size=arguments.batch_size, restart=arguments.restart)
    sinks.check(job.out, names=job.arrays, files=[])
    settings = settings_of(
        arguments,
        max_batch=job.batch_size,
        max_forward_s=math.inf,  # the batch is the operator's choice here, and nobody waits for a single answer
        queue_images=max(256, 8 * job.batch_size),
        preprocess_threads=arguments.workers or "auto",
    )
    started = time.monotonic()
    try:
        finished = asyncio.run(_encode(job, settings))
    except KeyboardInterrupt:
        say(f"Interrupted. What is done is kept in {job.out}.parts: the same command continues from there.")
        return 130
    _report(job.out, finished, seconds=time.monotonic() - started)
    return 1 if finished.failures else 0


async def _encode(job: "Job", settings: "Settings") -> "Finished":
    from service.bulk.run import run
    from service.engine.engine import Engine

    async with Engine(settings) as engine:
        with _progress(len(job.files)) as bar:
            return await run(job, engine, progress=lambda done, failed: _show(bar, done, failed))


def _progress(files: int) -> Any:
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    return tqdm(total=files, unit="image", file=sys.stderr, dynamic_ncols=True, mininterval=0.1 if terminal else 10)


def _show(bar: Any, done: int, failed: int) -> None:
    if bar.n == 0 and bar.initial == 0 and done:  # the first report: what earlier runs had done is not this one's speed
        bar.initial = bar.n = bar.last_print_n = done
    if failed:
        bar.set_postfix(failed=failed, refresh=False)
    bar.update(done - bar.n)


def _report(out: Path, finished: "Finished", *, seconds: float) -> None:
    for failure in finished.failures[:_SHOWN_FAILURES]:
        say(f"{failure.path}: {failure.reason}")
    if finished.ledger:
        more = len(finished.failures) - _SHOWN_FAILURES
        say(f"{f'... and {more:,} more. ' if more > 0 else ''}{len(finished.failures):,} failed: {finished.ledger}")
    if not finished.images:
        say(f"No image could be encoded: {out} was not written.")
        return
    arrays = ", ".join(f"{name} {[finished.images, *shape]}" for name, shape in finished.shapes.items())
    resumed = f", continued after {finished.resumed:,} files" if finished.resumed else ""
    print(f"{out}: {arrays} in {seconds:.1f} s{resumed}")
