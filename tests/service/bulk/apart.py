"""A bulk run in a process of its own, that can be killed: at a step on the disk, or whenever."""

import asyncio
import math
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from encoders.adapters.fake import FakeEncoder
from service.bulk.embedding import EngineEmbedder
from service.bulk.errors import BulkError
from service.bulk.run import Job, run
from service.bulk.sources import Options, inputs_of
from service.engine import EmbedRequest, Engine
from service.settings import Settings
from tests.support.serving import backend_of

STEPS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
FULL = 3
"""The exit status of a run that a BulkError ended."""

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "pandas", "pyarrow.compute"])  # which pyarrow else imports in every run


def start(images: Path, out: Path, **how: Any) -> Any:
    """The process. how: as `embed`."""
    process = CONTEXT.Process(target=embed, args=(images, out), kwargs=how)
    process.start()
    return process


def status(images: Path, out: Path, **how: Any) -> int:
    """Of a run that ends by itself or kills itself."""
    process = start(images, out, **how)
    process.join(60)
    code: int = process.exitcode
    process.close()
    return code


def embed(
    images: Path,
    out: Path,
    *,
    die_at: int | None = None,
    most_bytes: int | None = None,
    said: Path | None = None,
    retry_errors: bool = False,
    columns: Sequence[str] = (),
    **request: Any,
) -> None:
    """In this process. die_at: the step on the disk, below the folder of `out`, before which it is killed.

    most_bytes: that a file may have. said: where an error is written. columns: of a table, to carry. Python tells an
    audit hook of each step before it is done.
    """
    steps = count()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STEPS and str(arguments[0]).startswith(str(out)) and next(steps) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    if die_at is not None:
        sys.addaudithook(hook)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    clock = count(step=10)  # a part ends every third or fourth batch

    async def main() -> None:
        job = Job(
            out,
            inputs_of([str(images)], Options(carried=columns)),
            EmbedRequest((), **{"output": "both", **request}),
            batch_size=2,
            shard_rows=None if out.suffix else 16,
            retry_errors=retry_errors,
        )
        settings = Settings(model=("fake:vit",), max_batch=2, max_forward_s=math.inf, preprocess_threads=1)
        async with Engine(settings, backend=backend_of(FakeEncoder())) as engine:
            await run(job, EngineEmbedder(engine), clock=lambda: float(next(clock)))

    try:
        asyncio.run(main())
    except BulkError as error:
        if said is not None:
            said.write_text(str(error))
        sys.exit(FULL)
