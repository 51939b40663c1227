"""`visiontower embed`: many images and texts to a file, or a folder, of embeddings."""

import argparse
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli import event_loop
from service.cli.arguments import (
    ArgumentError,
    add_command,
    add_model,
    add_pixels,
    add_placement,
    positive,
    refuse_without_ray,
    resolution_of,
    settings_of,
)
from service.cli.cluster import ENGINE_FLAGS, add_cluster_flags, cluster_of
from service.cli.output import beginning, on_a_line, printable, say
from service.cli.sources import add_source_flags, inputs_from
from service.sizes import show_bytes

if TYPE_CHECKING:
    from service.bulk.forecast import Forecast
    from service.bulk.run import Finished, Job, Progress
    from service.settings import Settings

_LONGEST_SUFFIX = ".errors.jsonl.new"
"""What a run puts after OUT's name."""
_QUIET_S = 10.0
"""Between two lines of progress where nobody watches."""

_HELP = """\
Embed images and texts: files, folders, tables, tars, on this machine, in
buckets, behind web servers. The suffix of OUT chooses the format:

  OUT/          part-00000.parquet, ...: shards of about 256 MiB
  .parquet      one file: id, error, grid_rows, grid_cols, tokens, pooled
  .safetensors  tensors tokens, pooled; metadata ids, a JSON list
  .npy          one array; OUT.json says which item each row is
  .lance        a Lance dataset with the columns of .parquet; takes
                pip install 'visiontower[lance]'

  visiontower embed photos/ -o photos.parquet
  visiontower embed photos/ -o vectors/ --dtype float16 --normalize --dry-run
  visiontower embed a.png b.png -o tokens.npy --output tokens --dtype float16
  visiontower embed photos/ -o llava/ --output tokens --layer -2 \\
      --model openclip:ViT-L-14-336@openai --resolution 336
  visiontower embed 'train-{0000..0012}.tar' --columns txt,json -o index/ \\
      --layout clip-retrieval
  visiontower embed goods.parquet --id-column sku --columns price -o vectors/
  visiontower embed s3://bucket/photos/ --texts captions.txt -o both.parquet

Rows are in the order of the sources: as given, folders sorted. In .parquet
and .lance each item has a row; one that could not be embedded has an error
there and no vectors. The other formats leave it out and list it in
OUT.errors.jsonl.

Interrupted or killed, the same command continues and gives what an
uninterrupted run gives. Items that failed before are not tried again, unless
--retry-errors is given."""


def add(commands: Any) -> None:
    """The command and its flags."""
    embed = add_command(commands, "embed", "files, folders, tables, tars to embeddings", _HELP, run=run)
    add_source_flags(embed)
    embed.add_argument("-o", "--out", metavar="OUT", required=True, help="file to write, or a folder of shards")
    add_model(embed)
    embed.add_argument("--output", choices=("pooled", "tokens", "both"), default="pooled", help="[pooled]")
    embed.add_argument("--layer", metavar="K", type=int, help="tokens of block or stage K; -1 is the last")
    add_pixels(embed)
    embed.add_argument("--prefix", action="store_true", help="keep class and register tokens")
    embed.add_argument("--project", action="store_true", help="tokens through the model's own projection")
    embed.add_argument("--normalize", action="store_true", help="L2-normalise each vector")
    embed.add_argument("--dtype", choices=("float32", "float16"), help="of the numbers written [float32]")
    embed.add_argument(
        "--layout",
        choices=("auto", "clip-retrieval"),
        default="auto",
        help="clip-retrieval: img_emb/ or text_emb/, and metadata/: for autofaiss; float16 of length 1 [auto]",
    )
    embed.add_argument("--shard-rows", metavar="N", type=positive, help="rows of a shard, to a whole batch [256 MiB]")
    embed.add_argument("--batch-size", metavar="N", type=positive, default=32, help="items in one forward [32]")
    embed.add_argument("--workers", metavar="N", type=positive, help="decoding threads [all cores but one]")
    embed.add_argument("--dry-run", action="store_true", help="say rows, bytes, memory and time; write nothing")
    embed.add_argument("--restart", action="store_true", help="drop what an earlier run left, write OUT anew")
    embed.add_argument("--retry-errors", action="store_true", help="at the end, embed the items that failed once more")
    embed.add_argument("--metrics-port", metavar="N", type=int, help="GET /metrics on 127.0.0.1:N while it runs")
    add_placement(embed)
    add_cluster_flags(embed)


def run(arguments: argparse.Namespace) -> int:
    """Embed it. 1 if some items could not be embedded, 130 if interrupted."""
    if arguments.ray is None:
        refuse_without_ray(arguments, ENGINE_FLAGS)
    job = job_of(arguments)
    settings = engine_settings(arguments, job)
    started = time.monotonic()
    try:
        if arguments.ray is not None:
            finished = _embed_on_cluster(job, settings, arguments)
        elif arguments.dry_run:
            _show_forecast(job, event_loop.run(_forecast(job, settings)))
            return 0
        else:
            finished = event_loop.run(_embed(job, settings, metrics_port=arguments.metrics_port))
    except KeyboardInterrupt:
        work = job.sink().work
        kept = f"What is done is kept in {work}: the same command continues from there."
        say(f"Interrupted. {kept if work.exists() else 'Nothing had been done.'}")
        return 130
    _report(job, finished, seconds=time.monotonic() - started)
    return 1 if finished.failed else 0


def job_of(arguments: argparse.Namespace) -> "Job":
    """What the flags ask for. Raises ArgumentError, or BulkError if the sources are not there."""
    from service.bulk.run import Job
    from service.engine.values import EmbedRequest

    is_clip = arguments.layout == "clip-retrieval"
    if is_clip and arguments.dtype == "float32":
        raise ArgumentError("--layout clip-retrieval is of float16.")
    request = EmbedRequest(
        (),
        model=arguments.model,
        output=arguments.output,
        layer=arguments.layer,
        project=arguments.project,
        resolution=resolution_of(arguments),
        prefix=arguments.prefix,
        normalize=arguments.normalize or is_clip,
        dtype="float16" if is_clip else arguments.dtype or "float32",
    )
    job = Job(
        _out(arguments.out),
        inputs_from(arguments),
        request,
        batch_size=arguments.batch_size,
        layout=arguments.layout,
        is_folder=arguments.out.endswith("/"),
        shard_rows=arguments.shard_rows,
        restart=arguments.restart,
        retry_errors=arguments.retry_errors,
    )
    job.sink()
    return job


def _out(word: str) -> Path:
    """Where a link leads, so that the link stays. Raises ArgumentError if no file can have this name."""
    if word in ("", "-"):
        raise ArgumentError("-o names a file, or a folder that ends in /: a result is not written to standard output.")
    try:
        word.encode()
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(word.rstrip("/") + _LONGEST_SUFFIX)
    except UnicodeEncodeError as error:
        raise ArgumentError(f"-o {word!a}: a name in UTF-8 is needed.") from error
    except OSError as error:
        raise ArgumentError(f"-o {beginning(word)}: {error.strerror}.") from error
    return Path(os.path.realpath(word) if os.path.islink(word) else word)


def engine_settings(arguments: argparse.Namespace, job: "Job") -> "Settings":
    """Of an engine that has nothing else to do."""
    most = max(512, 16 * job.batch_size)  # of a batch, and of the batches ahead
    return settings_of(
        arguments,
        max_batch=job.batch_size,
        max_forward_s=math.inf,  # the batch is the operator's choice here, and nobody waits for a single answer
        max_images=most,
        queue_images=most,
        max_texts=most,
        queue_texts=most,
        max_prompt_chars=most * 4096,
        preprocess_threads=arguments.workers or "auto",
    )


async def _forecast(job: "Job", settings: "Settings") -> "Forecast":
    from service.bulk.forecast import forecast
    from service.engine.engine import Engine

    async with Engine(settings) as engine:
        return await forecast(job, engine)


async def _embed(job: "Job", settings: "Settings", *, metrics_port: int | None) -> "Finished":
    from contextlib import ExitStack

    from service.bulk.embedding import EngineEmbedder
    from service.bulk.run import run
    from service.cli.metrics_port import metrics_served
    from service.engine.engine import Engine

    async with Engine(settings) as engine:
        with ExitStack() as stack:
            if metrics_port is not None:
                port = stack.enter_context(metrics_served(engine, metrics_port))
                say(f"Metrics: http://127.0.0.1:{port}/metrics")
            bar = stack.enter_context(_Bar(job.inputs.total))
            return await run(job, EngineEmbedder(engine), progress=bar.show, warn=say)


def _embed_on_cluster(job: "Job", settings: "Settings", arguments: argparse.Namespace) -> "Finished":
    for flag, is_given in (("--dry-run", arguments.dry_run), ("--metrics-port", arguments.metrics_port is not None)):
        if is_given:
            raise ArgumentError(f"{flag} is of this machine's engine: give it without --ray.")
    from service.bulk.run import run

    with cluster_of(arguments, settings) as embedder, _Bar(job.inputs.total) as bar:
        return event_loop.run(run(job, embedder, progress=bar.show, warn=say))


class _Bar:
    """Progress on standard error, from the first report on. What was done before is not this run's speed."""

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._bar: Any = None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: "Progress") -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._total,
                initial=progress.done,
                unit="item",
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else _QUIET_S,
            )
        if progress.failed:
            self._bar.set_postfix(failed=f"{progress.failed:,}", refresh=False)
        self._bar.update(progress.done - self._bar.n)


def _show_forecast(job: "Job", found: "Forecast") -> None:
    room = found.room
    rows = "not known before" if found.rows is None else f"{found.rows:,}"
    of_all = "" if room.result is None else f"{show_bytes(room.result)}, "
    size = f"{of_all}{show_bytes(room.row)} a row"
    pace = f"{found.items_s:,.1f} a second, of {found.measured:,}"
    print(f"rows    {rows}")
    print(f"disk    {size}, without compression; {show_bytes(room.free)} are free")
    print(f"memory  {show_bytes(found.memory)} of the device, by the plan, for batches of {job.batch_size}")
    if found.rows is None or not found.items_s:
        print(f"time    {pace}")
    else:
        print(f"time    {_duration(found.rows / found.items_s)} at {pace}")
    if room.warning:
        say(room.warning)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _report(job: "Job", finished: "Finished", *, seconds: float) -> None:
    for item, error in finished.failures:
        say(f"{on_a_line(item)}: {error}")
    if finished.failed:
        more = finished.failed - len(finished.failures)
        where = finished.ledger or f"the column error of {job.out}; --retry-errors tries them again"
        say(
            f"{f'... and {more:,} more. ' if more > 0 and finished.failures else ''}{finished.failed:,} failed: {where}"
        )
    if not finished.good:
        said = "has no vectors" if job.out.exists() else "was not written"
        say(f"{'Nothing could be embedded' if finished.rows else 'There was nothing to embed'}: {job.out} {said}.")
        return
    if finished.resumed == finished.rows:
        print(f"{printable(str(job.out))} is complete: {finished.rows:,} rows.")
        return
    arrays = ", ".join(f"{name} {[finished.good, *shape]}" for name, shape in finished.shapes.items())
    resumed = f", continued after {finished.resumed:,}" if finished.resumed else ""
    print(f"{printable(str(job.out))}: {arrays} in {seconds:.1f} s{resumed}")
