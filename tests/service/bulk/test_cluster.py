"""A bulk run on a cluster: the result of this machine, to the byte, whatever becomes of an engine or of the run."""

import asyncio
import io
import pickle
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest

from service.bulk.embedding import EngineEmbedder
from service.bulk.errors import BulkError
from service.bulk.items import Item, Row
from service.bulk.rows import Columns
from service.bulk.run import Finished, Job, Progress, run
from service.bulk.sources import Options, inputs_of
from service.cluster.join import joined
from service.cluster.share import Share
from service.engine import EmbedRequest, Engine
from service.settings import Settings
from tests.service.bulk.sources.gallery import folder_of, parquet_of, tar_of
from tests.support.buckets import Store, store_of
from tests.support.serving import noise

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{each}") for each in ("DeprecationWarning", "ResourceWarning", "UserWarning")
]
"""Ray's."""
SETTINGS = Settings(model=("demo:vit",), dtype="float32", max_batch=4, device="cpu", memory_budget=256 * 1024 * 1024)
PICTURES = {f"{number:02}.png": noise(number, size=(60, 40)) for number in range(30)}
NAMED = pa.schema(
    {
        "marks": pa.map_(pa.field("mark", pa.string(), nullable=False), pa.int8()),
        "pair": pa.list_(pa.field("half", pa.int8()), 2),
    }
)
"""Types whose parts have names."""
BROKEN = {**PICTURES, "07.png": b"no image", "21.png": b""}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Store]:
    files = {f"bucket/{name}": each for name, each in BROKEN.items()}
    with pytest.MonkeyPatch.context() as patch, store_of(files) as store:
        for name, value in {
            "AWS_ENDPOINT_URL": store.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture(scope="module")
def cluster(bucket: Store) -> Iterator[None]:
    """A cluster of this machine alone."""
    before = signal.getsignal(signal.SIGTERM)
    with joined(
        "local", num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, _node_ip_address="127.0.0.1"
    ):
        yield
    signal.signal(signal.SIGTERM, before)


def job_of(out: Path, *names: str | Path, options: Options | None = None, **how: Any) -> Job:
    request = EmbedRequest((), output="both", dtype="float16")
    return Job(out, inputs_of([str(name) for name in names], options), request, batch_size=4, **how)


def here(job: Job, **how: Any) -> Finished:
    """By this process' engine, on as many cores."""

    async def main() -> Finished:
        async with Engine(Share(cpus=1, gpus=0).settings(SETTINGS)) as engine:
            return await run(job, EngineEmbedder(engine), **how)

    return asyncio.run(main())


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.slow
def test_every_kind_of_source_gives_the_same_shards_and_an_engine_that_is_killed_costs_nothing(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder, a tar, a bucket and a table, one after the other. One of two engines is killed at the first rows.

    Paths are relative, and the cluster was begun in another folder than the run.
    """
    from service.bulk.cluster import ClusterEmbedder  # Ray takes seconds to import

    folder_of(tmp_path / "folder", {f"{copy}-{name}": each for copy in range(5) for name, each in BROKEN.items()})
    (tmp_path / "x.tar").write_bytes(tar_of(PICTURES))
    (tmp_path / "x.parquet").write_bytes(
        parquet_of(pa.table({"image": list(PICTURES.values()), "name": list(PICTURES)}))
    )
    names = ("folder", "x.tar", "s3://bucket", "x.parquet")
    monkeypatch.chdir(tmp_path)
    embedder = ClusterEmbedder(SETTINGS, Share(cpus=1, gpus=0), engines=2)
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.done and not killed:
            engine = next(each for each in _workers() if "MapBatches" in " ".join(each.cmdline()))
            engine.kill()
            killed.append(engine.pid)

    how: dict[str, Any] = {"options": Options(id="name"), "shard_rows": 64}
    ended = asyncio.run(run(job_of(tmp_path / "there", *names, **how), embedder, progress=kill))
    assert killed
    assert (ended.rows, ended.failed) == (240, 12)
    assert here(job_of(tmp_path / "here", *names, **how)).failed == 12
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


def _workers() -> Iterator[psutil.Process]:
    return (each for each in psutil.Process().children(recursive=True) if each.name().startswith("ray::"))


@pytest.mark.slow
def test_another_batch_size_changes_the_last_digits_alone(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", PICTURES)
    vectors = []
    for size in (4, 3):
        out = tmp_path / f"{size}.npy"
        here(Job(out, inputs_of([str(folder)]), EmbedRequest((), output="pooled"), batch_size=size))
        vectors.append(np.load(out))
    apart = np.linalg.norm(vectors[0] - vectors[1], axis=1) / np.linalg.norm(vectors[0], axis=1)
    assert apart.max() < 1e-6


def test_types_that_lose_the_names_of_their_parts_on_the_way_have_them_again() -> None:
    """A result has them in its metadata, and is that of a run without a cluster to the byte."""
    from service.bulk.cluster import unpacked

    columns = Columns({"pooled": (2,)}, "float32", NAMED)
    there: Columns = pickle.loads(pickle.dumps(columns))
    assert str(there.schema) != str(columns.schema)
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, there.schema) as writer:
        writer.write_batch(there.batch([Item("a", columns={"marks": [("x", 1)], "pair": [1, 2]})], ["It failed."]))
    (batch,) = unpacked(stream.getvalue(), columns.schema)
    assert str(batch.schema) == str(columns.schema)
    assert batch["marks"].to_pylist() == [[("x", 1)]]


def dealt_out(rows: Iterator[Row], *, batch_size: int) -> list[tuple[Sequence[Row], str | None]]:
    from service.bulk.cluster import groups

    return list(groups(rows, batch_size=batch_size))


def test_work_is_dealt_out_in_whole_batches() -> None:
    rows = [Item(str(number), bytes(1_000_000)) for number in range(100)]
    dealt = dealt_out(iter(rows), batch_size=8)
    assert [row for group, _ in dealt for row in group] == rows
    assert [len(group) for group, _ in dealt] == [40, 40, 20]  # 32 MiB, to a whole batch
    assert [len(group) for group, _ in dealt_out(iter([Item("x")] * 100), batch_size=8)] == [64, 36]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (BulkError("The tar breaks off."), "The tar breaks off."),
        (OSError(5, "Input/output error"), "The inputs broke off: .* the same command continues."),
    ],
)
def test_inputs_that_end_before_their_time_are_dealt_out_with_the_reason(broken: Exception, said: str) -> None:
    """In whole batches, so that the run that continues has the batches, and fills the shards, of one that ends."""

    def rows(count: int) -> Iterator[Row]:
        yield from (Item(str(number)) for number in range(count))
        raise broken

    for count, dealt in ((3, 0), (4, 4), (11, 8)):
        ((group, error),) = dealt_out(rows(count), batch_size=4)
        assert [row.id for row in group if isinstance(row, Item)] == [str(number) for number in range(dealt)]
        assert error is not None
        assert re.fullmatch(said, error)


def test_inputs_travel_but_standard_input_stays(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, PICTURES)
    copy = pickle.loads(pickle.dumps(inputs_of([str(folder)])))
    assert [row.id for row in copy.rows(28)] == [f"{folder}/28.png", f"{folder}/29.png"]
    with (folder / "28.png").open("rb") as file:
        texts = inputs_of([], texts=["-"], standard_input=file)
    with pytest.raises(BulkError, match="A pipe is on this machine alone"):
        pickle.dumps(texts)
