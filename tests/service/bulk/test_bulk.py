"""Bulk runs: what is written, what is left out, and that an interrupted run ends as an uninterrupted one."""

import asyncio
import json
import math
import os
import shutil
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from encoders import decode
from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.errors import EncoderFailed, LayerNotFound
from encoders.contract.values import Encoded
from service.bulk.embedding import EngineEmbedder
from service.bulk.errors import BulkError
from service.bulk.resume import held
from service.bulk.run import Finished, Job, Progress, run
from service.bulk.sources import inputs_of
from service.bulk.sources.files import find_images
from service.engine import EmbedRequest, Engine
from service.settings import Settings
from tests.encoders.images.files import CASES
from tests.support.serving import backend_of

FILES = 23
BAD = {3: b"no image", 11: b"", 22: b"\xff\xd8\xff\xe0 cut"}


def test_a_result_takes_the_place_of_no_source_and_is_no_pipe(tmp_path: Path) -> None:
    """Its rows would be the last that is left of the images."""
    (tmp_path / "in").mkdir()
    table = tmp_path / "in" / "x.parquet"
    pq.write_table(pa.table({"image": [b"a picture"]}), table)
    for named in (table, tmp_path / "in"):
        with pytest.raises(BulkError, match="would take the place of"):
            encode(Job(table, inputs_of([str(named)]), EmbedRequest((), output="pooled"), restart=True))
    with pytest.raises(BulkError, match="would take the place of"):
        encode(Job(table.parent, inputs_of([str(table)]), EmbedRequest((), output="pooled"), restart=True))
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(BulkError, match="a result is a file or a folder"):
        encode(Job(tmp_path / "pipe.parquet", inputs_of([str(table)]), EmbedRequest((), output="pooled")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """23 files, three of them broken, the last one among these."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(FILES):
        path = folder / f"{index:02}.png"
        if index in BAD:
            path.write_bytes(BAD[index])
        else:
            values = np.random.default_rng(index).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(values).save(path)
    return folder


def job_of(folder: Path, out: str, *, batch_size: int = 4, restart: bool = False, **options: Any) -> Job:
    return Job(
        out=folder.parent / out,
        inputs=inputs_of([str(folder)]),
        request=EmbedRequest((), **{"output": "pooled", **options}),
        batch_size=batch_size,
        restart=restart,
    )


def encode(
    job: Job,
    encoder: FakeEncoder | None = None,
    *,
    before: Callable[[int], None] | None = None,
    progress: Callable[[Progress], None] = lambda progress: None,
    clock: Callable[[], float] = lambda: 0.0,
    warn: Callable[[str], None] = lambda text: None,
) -> Finished:
    """Run it. before: of each forward of items. `batches` of the encoder are these forwards too."""
    encoder = encoder or FakeEncoder()
    usual = encoder.before

    def first(batch: int) -> None:  # of the blank picture
        usual(batch)
        encoder.before = before or usual
        encoder.batches.clear()

    async def main() -> Finished:
        settings = Settings(  # one thread decodes, so that batches come to the device in order
            model=(encoder.spec.id,), max_batch=job.batch_size, max_forward_s=math.inf, preprocess_threads=1
        )
        async with Engine(settings, backend=backend_of(encoder)) as engine:
            encoder.before = first
            return await run(job, EngineEmbedder(engine), progress=progress, warn=warn, clock=clock)

    return asyncio.run(main())


def interrupted(job: Job, *, at: int) -> None:
    """Run it, and interrupt it as Ctrl-C does when it is in its n-th batch and all before are done."""
    forwards, batches, done = count(), count(), threading.Event()
    loop_and_task: list[Any] = []

    def progress(progress: Progress) -> None:
        if not loop_and_task:
            loop_and_task.extend((asyncio.get_running_loop(), asyncio.current_task()))
        if next(batches) == at:
            done.set()

    def before(batch: int) -> None:
        if next(forwards) == at:
            assert done.wait(30)
            loop, task = loop_and_task
            loop.call_soon_threadsafe(task.cancel)

    with pytest.raises(asyncio.CancelledError):
        encode(job, before=before, progress=progress)


def good(folder: Path) -> list[str]:
    return [str(folder / f"{index:02}.png") for index in range(FILES) if index not in BAD]


def expected(path: str, *, name: str, **options: Any) -> np.ndarray[Any, Any]:
    """The image alone through the encoder, without bulk."""
    encoder = FakeEncoder()
    spec = encoder.spec
    pixels = encoder.preprocess(decode(Path(path).read_bytes()), spec.size())
    row = encoder.encode(pixels[None], EmbedRequest((), **options).outputs(spec)).row(0)
    array = row.pooled if name == "pooled" else row.tokens
    assert array is not None
    return array if name == "pooled" or options.get("prefix") else array[row.prefix_tokens :]


def content(out: Path) -> dict[str, bytes]:
    """All files that belong to a run's result."""
    if out.is_dir():
        return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {path.name.removeprefix(out.stem): path.read_bytes() for path in out.parent.glob(f"{out.name}*")}


def test_safetensors_holds_the_rows_and_their_ids(folder: Path) -> None:
    job = job_of(folder, "out.safetensors", output="both")
    encode(job)
    arrays = load_file(job.out)
    with safe_open(job.out, framework="numpy") as file:
        about = file.metadata()
    assert json.loads(about["ids"]) == good(folder)
    assert (json.loads(about["grid"]), about["prefix_tokens"], about["model"]) == ([4, 4], "0", "fake:vit")
    for row, path in enumerate(good(folder)):
        for name in ("tokens", "pooled"):
            np.testing.assert_allclose(arrays[name][row], expected(path, name=name, output="both"), rtol=1e-5)


def test_npy_holds_one_array_and_its_neighbour_the_ids(folder: Path) -> None:
    job = job_of(folder, "out.npy", output="tokens", layer=-2, prefix=True)
    encode(job)
    tokens = np.load(job.out)
    about = json.loads(job.out.with_name("out.npy.json").read_text())
    assert about["ids"] == good(folder)
    assert (tokens.shape, about["prefix_tokens"], about["layer"]) == ((20, 17, 12), 1, -2)
    reference = expected(good(folder)[7], name="tokens", output="tokens", layer=-2, prefix=True)
    np.testing.assert_allclose(tokens[7], reference, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_parquet_holds_a_row_an_item_good_or_failed(folder: Path, dtype: str) -> None:
    job = job_of(folder, "out.parquet", output="both", dtype=dtype)
    encode(job)
    table = pq.read_table(job.out)
    assert table.column_names == ["id", "error", "grid_rows", "grid_cols", "tokens", "pooled"]
    assert table["id"].to_pylist() == [str(folder / f"{index:02}.png") for index in range(FILES)]
    bad = table.filter(table["error"].is_valid())
    assert [Path(each).name for each in bad["id"].to_pylist()] == [f"{index:02}.png" for index in BAD]
    assert all(bad[name].null_count == len(BAD) for name in ("tokens", "pooled", "grid_rows", "grid_cols"))
    table = table.filter(table["error"].is_null())
    assert set(table["grid_rows"].to_pylist()) == set(table["grid_cols"].to_pylist()) == {4}
    tokens = np.array(table["tokens"].to_pylist())
    reference = expected(good(folder)[0], name="tokens", output="both")
    np.testing.assert_allclose(tokens[0], reference, rtol=1e-5 if dtype == "float32" else 1e-2, atol=1e-3)
    assert table.schema.metadata[b"model"] == b"fake:vit"


def test_normalized_vectors_have_length_one(folder: Path) -> None:
    job = job_of(folder, "out.npy", output="tokens", normalize=True)
    encode(job)
    np.testing.assert_allclose(np.linalg.norm(np.load(job.out), axis=-1), 1, rtol=1e-5)


def test_the_grid_of_a_layer_is_the_layers_own(folder: Path) -> None:
    """A CNN's stage has a grid of its own: it comes from the forward, not from the spec."""
    cnn = fake_spec(prefix_tokens=0, layer_sizes=(12, 12, 12, 12))

    def coarser(encoded: Encoded) -> Encoded:
        if encoded.tokens is None:  # the first forward, which tries the encoder out
            return encoded
        return Encoded(grid=encoded.grid._replace(rows=2, cols=2), tokens=encoded.tokens[:, :4])

    job = job_of(folder, "out.parquet", output="tokens", layer=1)
    encode(job, FakeEncoder(cnn, after=coarser))
    assert set(pq.read_table(job.out)["grid_rows"].to_pylist()) == {2, None}


def test_bad_files_are_left_out_and_stand_in_the_ledger(folder: Path) -> None:
    job = job_of(folder, "out.npy")
    finished = encode(job)
    assert finished.ledger is not None
    ledger = [json.loads(line) for line in finished.ledger.read_text().splitlines()]
    assert [(entry["id"], entry["error"]) for entry in ledger] == list(finished.failures)
    assert [Path(entry["id"]).name for entry in ledger] == [f"{index:02}.png" for index in BAD]
    assert all(entry["error"] for entry in ledger)
    assert len(np.load(job.out)) == finished.good == 20


def test_a_folder_of_odd_files_goes_on_and_so_does_a_second_run(tmp_path: Path) -> None:
    """Files after bug reports of other projects: some make a decoder fail in ways that it does not document."""
    folder = tmp_path / "odd"
    shutil.copytree(CASES, folder)
    (folder / "page.png").write_bytes(b"<!DOCTYPE html>")
    for _ in range(2):
        finished = encode(job_of(folder, "odd.npy", restart=True))
        assert [Path(item).name for item, _ in finished.failures] == [
            "avif_av1_damaged.avif",
            "jpeg_12bit.jpg",
            "page.png",
            "tiff_f32_0_65535.tif",
            "tiff_u16_planar.tif",
        ]
        assert finished.good == len(list(folder.iterdir())) - 5


def test_a_file_that_cannot_be_read_is_a_failure_like_any_other(folder: Path) -> None:
    job = job_of(folder, "out.npy")
    (folder / "05.png").unlink()
    reasons = {Path(item).name: error for item, error in encode(job).failures}
    assert reasons["05.png"] == "No such file or directory"


def test_a_batch_is_of_consecutive_files_and_bad_ones_leave_it_smaller(folder: Path) -> None:
    """So a run that is continued makes the same batches, wherever it stopped."""
    encoder = FakeEncoder()
    encode(job_of(folder, "out.npy", batch_size=6), encoder)
    assert encoder.batches == [5, 5, 6, 4]


def test_an_image_that_breaks_its_batch_fails_alone(folder: Path) -> None:
    poison = FakeEncoder().preprocess(decode((folder / "05.png").read_bytes()), fake_spec().image_size)

    class Fragile(FakeEncoder):
        def encode(self, pixels: Any, outputs: Any) -> Encoded:
            if any(np.array_equal(each, poison) for each in pixels):
                raise EncoderFailed("cannot take it", model="fake:vit")
            return super().encode(pixels, outputs)

    job = job_of(folder, "out.npy")
    finished = encode(job, Fragile())
    assert [Path(item).name for item, _ in finished.failures] == ["03.png", "05.png", "11.png", "22.png"]
    assert finished.good == 19


def test_a_row_that_is_not_finite_fails_alone(folder: Path) -> None:
    def spoil(encoded: Encoded) -> Encoded:
        assert encoded.pooled is not None
        if len(encoded.pooled) > 10:
            encoded.pooled[1] = np.nan
        return encoded

    finished = encode(job_of(folder, "out.npy", batch_size=20), FakeEncoder(after=spoil))
    errors = {Path(item).name: error for item, error in finished.failures}
    assert "NaN" in errors["01.png"]
    assert len(errors) == len(finished.failures) == 1 + len(BAD)
    assert finished.good == 19


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("odd")])
def test_an_error_the_encoder_did_not_announce_fails_its_image_alone(folder: Path, error: Exception) -> None:
    forwards = count()

    def before(batch: int) -> None:
        if next(forwards) == 0 or batch == 1:
            raise error

    finished = encode(job_of(folder, "out.npy", batch_size=4), before=before)
    assert len(finished.failures) == 1 + len(BAD)
    assert finished.good == 19


def test_a_broken_encoder_stops_the_run_rather_than_blame_every_file(folder: Path) -> None:
    def fail(batch: int) -> None:
        raise EncoderFailed("broken", model="fake:vit")

    with pytest.raises(EncoderFailed):
        encode(job_of(folder, "out.npy"), before=fail)


@pytest.mark.parametrize("suffix", ["", ".parquet", ".npy", ".safetensors"])
@pytest.mark.parametrize("forward", range(6))
def test_an_interrupted_run_continues_to_the_same_bytes(folder: Path, suffix: str, forward: int) -> None:
    reference = job_of(folder, f"reference{suffix}")
    encode(reference)
    job = job_of(folder, f"out{suffix}")
    interrupted(job, at=forward)
    assert not job.out.is_file()
    assert not list(job.out.glob("part-*"))
    again = FakeEncoder()
    finished = encode(job, again)
    assert len(again.batches) == 6 - forward, "what was done is not done again"
    assert finished.resumed == 4 * forward
    assert content(job.out) == content(reference.out)


def test_a_run_interrupted_at_every_batch_ends_the_same(folder: Path) -> None:
    reference = job_of(folder, "reference.safetensors")
    encode(reference)
    job = job_of(folder, "out.safetensors")
    for _ in range(4):
        interrupted(job, at=1)
    encode(job)
    assert content(job.out) == content(reference.out)


def test_a_run_killed_while_it_wrote_a_part_continues(folder: Path) -> None:
    """What a power cut leaves: whole parts, and one under its temporary name."""
    job = job_of(folder, "out.npy")
    interrupted(job, at=2)
    (folder.parent / "out.npy.parts" / "000000000008-000000000012.arrow.new").write_bytes(b"half")
    assert encode(job).good == 20
    assert content(job.out).keys() == {".npy", ".npy.json", ".npy.errors.jsonl"}


def test_parts_are_written_as_time_passes(folder: Path) -> None:
    """Every reading of the clock is 20 s later, so a part ends every second batch; the result is the same."""
    reference, job = job_of(folder, "reference.npy"), job_of(folder, "out.npy")
    encode(reference)
    clock = count(step=20)
    encode(job, clock=lambda: float(next(clock)))
    assert np.load(job.out).tobytes() == np.load(reference.out).tobytes()


def test_progress_starts_with_what_was_done_and_ends_with_all(folder: Path) -> None:
    job = job_of(folder, "out.npy")
    interrupted(job, at=2)
    seen: list[tuple[int, int]] = []
    encode(job, progress=lambda progress: seen.append((progress.done, progress.failed)))
    assert (seen[0], seen[-1]) == ((8, 1), (FILES, 3))


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"batch_size": 5}, "batch_size was 4, is 5"), ({"normalize": True}, "normalize was False, is True")],
)
def test_other_parameters_do_not_continue_a_run(folder: Path, changes: dict[str, Any], named: str) -> None:
    interrupted(job_of(folder, "out.npy"), at=2)
    with pytest.raises(BulkError, match=named):
        encode(job_of(folder, "out.npy", **changes))
    assert encode(job_of(folder, "out.npy", restart=True, **changes)).resumed == 0


def test_another_encoder_does_not_continue_a_run(folder: Path) -> None:
    interrupted(job_of(folder, "out.npy"), at=2)
    with pytest.raises(BulkError, match="revision was fake, is other"):
        encode(job_of(folder, "out.npy"), FakeEncoder(fake_spec(revision="other")))


def test_other_files_do_not_continue_a_run(folder: Path) -> None:
    interrupted(job_of(folder, "out.npy"), at=2)
    (folder / "00.png").rename(folder / "99.png")
    with pytest.raises(BulkError, match=r"inputs sources 1 ids was \w+, is \w+"):
        encode(job_of(folder, "out.npy"))


def test_a_finished_output_is_not_overwritten_unasked(folder: Path) -> None:
    encode(job_of(folder, "out.npy"))
    with pytest.raises(BulkError, match="exists already"):
        encode(job_of(folder, "out.npy"))
    encode(job_of(folder, "out.npy", restart=True))


def test_two_processes_do_not_write_one_run(folder: Path) -> None:
    job = job_of(folder, "out.npy")
    with held(job.sink().work), pytest.raises(BulkError, match="Another process"):
        encode(job)


def test_a_missing_part_is_noticed(folder: Path) -> None:
    job = job_of(folder, "out.npy")
    for _ in range(2):
        interrupted(job, at=1)
    (folder.parent / "out.npy.parts" / "000000000000-000000000004.arrow").unlink()
    with pytest.raises(BulkError, match="does not follow"):
        encode(job)


def test_nothing_is_written_when_every_file_is_bad(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"text")
    job = job_of(folder, "out.npy")
    finished = encode(job)
    assert (finished.good, finished.failed, finished.ledger) == (0, 1, job.out.with_name("out.npy.errors.jsonl"))
    assert not job.out.exists()


def test_what_the_encoder_does_not_offer_is_said_before_anything_is_written(folder: Path) -> None:
    job = job_of(folder, "out.npy", output="tokens", layer=9)
    with pytest.raises(LayerNotFound):
        encode(job)
    assert content(job.out) == {}


@pytest.mark.parametrize(
    ("out", "options", "named"),
    [("out.txt", {}, "must end in"), ("out.npy", {"output": "both"}, "one array")],
)
def test_an_output_that_cannot_hold_the_arrays_is_refused(
    folder: Path, out: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(BulkError, match=named):
        encode(job_of(folder, out, **options))


def test_folders_are_walked_in_order_and_every_file_comes_once(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a/3.webp", "a/notes.txt", "c.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = find_images([tmp_path / "c.png", tmp_path, tmp_path / "a" / "notes.txt"])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "c.png",
        "a/3.webp",
        "b/1.png",
        "b/2.JPG",
        "a/notes.txt",
    ]


def test_a_path_that_is_not_there_is_an_error_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(BulkError, match="is not there"):
        find_images([tmp_path / "nowhere"])
    with pytest.raises(BulkError, match="no image"):
        find_images([tmp_path])


def test_a_path_that_is_no_utf_8_is_written_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    Image.new("RGB", (8, 8)).save(folder / name, "PNG")
    job = job_of(folder, "out.parquet")
    encode(job)
    assert pq.read_table(job.out)["id"].to_pylist() == [f"{folder}/caf\\xe9.png"]
