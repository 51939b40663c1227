"""A folder of shards: what is in it, that it goes on, and what is refused; texts; and what is told before a run."""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.errors import OutputNotOffered
from service.bulk.errors import BulkError
from service.bulk.items import Item, Modality, Row
from service.bulk.resume import Manifest
from service.bulk.run import Job
from service.bulk.sources import Options, inputs_of
from service.engine import EmbedRequest
from tests.service.bulk.test_bulk import BAD, FILES, content, encode, folder, interrupted, job_of
from tests.support.serving import image_bytes, noise

__all__ = ["folder"]


NOTHING = pa.schema([])


@dataclass(frozen=True)
class Listed:
    """Items that are there already. total: as it is told. breaks: raised in place of the item of this number."""

    listed: list[Item]
    columns: pa.Schema = NOTHING
    total: int | None = None
    breaks: Mapping[int, Exception] | None = None
    files: Sequence[str] = ()

    @property
    def modalities(self) -> set[Modality]:
        return {"image" if item.text is None else "text" for item in self.listed}

    def parameters(self) -> Mapping[str, object]:
        return {"count": len(self.listed)}

    def rows(self, start: int) -> Iterator[Row]:
        for index, item in enumerate(self.listed[start:], start):
            if self.breaks and index in self.breaks:
                raise self.breaks[index]
            yield item


def listed_job(tmp_path: Path, items: Any, **how: Any) -> Job:
    inputs = items if isinstance(items, Listed) else Listed(items)
    request = EmbedRequest((), **{"output": "pooled", **how.pop("request", {})})
    return Job(tmp_path / "out", inputs, request, batch_size=4, **how)


def table_of(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])


def rows_of(out: Path) -> pa.Table:
    """Of any result that has a row for every item."""
    return lance.dataset(out).to_table() if out.suffix == ".lance" else pq.read_table(out)


def test_a_folder_holds_shards_of_equal_rows_and_the_run(folder: Path) -> None:
    job = replace(job_of(folder, "out", output="both"), shard_rows=6)
    assert encode(job).rows == FILES
    assert {path.name for path in job.out.iterdir()} == {
        "_run.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"
    }  # fmt: skip
    assert [pq.read_metadata(path).num_rows for path in sorted(job.out.glob("part*"))] == [8, 8, 7]
    single = replace(job_of(folder, "single.parquet", output="both"))
    encode(single)
    assert table_of(job.out).equals(pq.read_table(single.out))
    about = pq.read_schema(job.out / "part-00001.parquet").metadata
    assert (about[b"model"], json.loads(about[b"grid"])) == (b"fake:vit", [4, 4])
    assert json.loads((job.out / "_run.json").read_text())["rows"] == FILES


def test_shards_are_of_a_size_for_readers(folder: Path) -> None:
    job = job_of(folder, "out", batch_size=32)
    encode(job)
    assert json.loads((job.out / "_run.json").read_text())["shard_rows"] == 262_144


@pytest.mark.parametrize("forward", range(6))
def test_an_interrupted_folder_continues_to_the_same_bytes(folder: Path, forward: int) -> None:
    reference, job = (replace(job_of(folder, name), shard_rows=8) for name in ("reference", "out"))
    encode(reference)
    interrupted(job, at=forward)
    again = FakeEncoder()
    assert encode(job, again).resumed == 4 * forward
    assert len(again.batches) == 6 - forward, "what was done is not done again"
    assert content(job.out) == content(reference.out)


def test_a_whole_result_is_complete_and_costs_no_work(folder: Path) -> None:
    job = job_of(folder, "out")
    before = encode(job)
    encoder = FakeEncoder()
    after = encode(job, encoder)
    assert (after.resumed, after.failed, encoder.batches) == (FILES, before.failed, [])


def test_another_run_is_refused_by_name_and_nothing_is_touched(folder: Path) -> None:
    job = replace(job_of(folder, "out"), shard_rows=8)
    encode(job)
    before = content(job.out)
    fewer = inputs_of([str(path) for path in sorted(folder.iterdir())[1:]])
    for other, named in (
        (replace(job, shard_rows=4), "shard_rows was 8, is 4"),
        (replace(job, layout="clip-retrieval"), "layout was auto, is clip-retrieval"),
        (
            replace(job, inputs=fewer),
            "inputs sources 1 count was 23, is 22",
        ),
        (replace(job, request=replace(job.request, dtype="float16")), "dtype was float32, is float16"),
    ):
        with pytest.raises(BulkError, match=named):
            encode(other)
    assert content(job.out) == before
    assert encode(replace(job, shard_rows=None)).resumed == FILES, "what is not asked for is no difference"


def test_of_many_differences_the_first_are_named(tmp_path: Path) -> None:
    """Each by all names that lead to it."""

    def manifest(size: int) -> Manifest:
        return Manifest({"files": {f"{number}.tar": {"bytes": size} for number in range(9)}}, shard_rows=8)

    changes = manifest(1).changes(manifest(2))
    assert changes == [*(f"files {number}.tar bytes was 1, is 2" for number in range(5)), "and 4 more"]
    assert manifest(1).changes(manifest(1)) == []


def test_a_restart_leaves_nothing_of_the_run_before(folder: Path) -> None:
    job = replace(job_of(folder, "out"), shard_rows=4)
    encode(job)
    encode(replace(job, shard_rows=16, restart=True))
    assert len(list(job.out.glob("part-*"))) == 2
    assert len(table_of(job.out)) == FILES


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_of_somebody_else_is_left_alone(folder: Path, restart: bool) -> None:
    job = replace(job_of(folder, "out"), restart=restart)
    job.out.mkdir()
    (job.out / "part-00000.parquet").write_bytes(b"mine")
    with pytest.raises(BulkError, match=r"holds part-00000\.parquet, and no run"):
        encode(job)
    assert content(job.out) == {"part-00000.parquet": b"mine"}


@pytest.mark.parametrize("text", ["", "[]", "7", "null", '{"version": 2}', '{"version": 2, "param', "\0\xff"])
@pytest.mark.parametrize("name", ["out/", "out.npy"])
def test_a_run_whose_manifest_is_damaged_can_be_begun_anew(folder: Path, name: str, text: str) -> None:
    job = job_of(folder, name.rstrip("/"))
    job = replace(job, is_folder=name.endswith("/"))
    manifest = folder.parent / ("out/_run.json" if job.is_folder else "out.npy.parts/manifest.json")
    manifest.parent.mkdir()
    manifest.write_text(text)
    with pytest.raises(BulkError, match="is damaged: --restart begins anew"):
        encode(job)
    assert encode(replace(job, restart=True)).good == FILES - len(BAD)


@pytest.mark.parametrize("size", [0, 100, -100])
def test_a_damaged_shard_is_named(folder: Path, size: int) -> None:
    job = replace(job_of(folder, "out"), shard_rows=8)
    encode(job)
    shard = folder.parent / "out" / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(BulkError, match=r"part-00001.parquet is damaged.*--restart"):
        encode(job)


def test_a_shard_of_another_program_is_named(folder: Path) -> None:
    job = replace(job_of(folder, "out"), shard_rows=8)
    encode(job)
    pq.write_table(pa.table({"x": [1]}), folder.parent / "out" / "part-00001.parquet")
    with pytest.raises(BulkError, match=r"part-00001.parquet is of another program"):
        encode(job)


@pytest.mark.parametrize("name", ["out.npy", "out.safetensors"])
def test_columns_that_a_result_has_no_place_for_are_refused(tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"image": [b"x"], "title": ["a"]}), tmp_path / "in.parquet")
    inputs = inputs_of([str(tmp_path / "in.parquet")], options=Options(carried=["title"]))
    with pytest.raises(BulkError, match="has no place for the columns title"):
        Job(tmp_path / name, inputs, EmbedRequest((), output="pooled")).sink()


def test_a_shard_that_is_gone_is_noticed(folder: Path) -> None:
    job = replace(job_of(folder, "out"), shard_rows=8)
    encode(job)
    (job.out / "part-00001.parquet").unlink()
    with pytest.raises(BulkError, match="had 23 rows and has 8"):
        encode(job)


@pytest.mark.parametrize("name", ["out", "out.parquet", "out.lance"])
def test_errors_are_tried_again_where_they_are(folder: Path, name: str) -> None:
    """The other rows stay; one that fails once more has its error."""
    job = job_of(folder, name, output="both")
    if name == "out":
        job = replace(job, shard_rows=8)
    encode(job)
    image = folder / "11.png"
    shutil.copy(folder / "12.png", image)
    before = rows_of(job.out)
    encoder = FakeEncoder()
    finished = encode(replace(job, retry_errors=True), encoder)
    after = rows_of(job.out)
    assert (sum(encoder.batches), finished.failed) == (1, 2)
    assert [Path(item).name for item, _ in finished.failures] == ["03.png", "22.png"]
    assert after["error"].is_valid().to_pylist() == [index in (3, 22) for index in range(FILES)]
    np.testing.assert_allclose(after["pooled"][11].as_py(), after["pooled"][12].as_py(), rtol=1e-5)
    others = [index for index in range(FILES) if index != 11]
    assert after.take(others).equals(before.take(others))
    assert after["id"].to_pylist() == before["id"].to_pylist()


def test_errors_are_tried_again_of_parquet_alone(folder: Path) -> None:
    with pytest.raises(BulkError, match=r"\.parquet, a folder"):
        encode(replace(job_of(folder, "out.npy"), retry_errors=True))


def test_the_layout_of_clip_retrieval(folder: Path) -> None:
    """Vectors and ids of one shard in two files of its number; what failed beside."""
    job = replace(job_of(folder, "out", normalize=True, dtype="float16"), layout="clip-retrieval", shard_rows=8)
    finished = encode(job)
    vectors = [np.load(job.out / "img_emb" / f"img_emb_{number}.npy") for number in range(3)]
    ids = [pq.read_table(job.out / "metadata" / f"metadata_{number}.parquet") for number in range(3)]
    assert [each.shape for each in vectors] == [(7, 6), (7, 6), (6, 6)]
    assert all(each.dtype == np.float16 for each in vectors)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(vectors).astype(np.float32), axis=1), 1, rtol=1e-3)
    names = [Path(path).name for each in ids for path in each["image_path"].to_pylist()]
    assert names == [f"{index:02}.png" for index in range(FILES) if index not in BAD]
    lines = (job.out / "errors" / "errors_0.jsonl").read_text().splitlines()
    assert (len(lines), finished.failed) == (1, 3)
    assert encode(job).resumed == FILES
    (job.out / "raw").mkdir()
    (job.out / "raw" / "img_0.jpg").write_bytes(b"of another program")
    encode(replace(job, restart=True))
    assert (job.out / "raw" / "img_0.jpg").exists()


def test_texts_in_the_layout_of_clip_retrieval(tmp_path: Path) -> None:
    """They have a folder of their own, as clip-retrieval names it; a caption that is carried takes the id's place."""
    items = [Item(f"text {index}", text=f"text {index}") for index in range(5)]
    out = tmp_path / "plain"
    encode(replace(clip_job(tmp_path, items), out=out))
    assert {path.name for path in out.iterdir()} == {"_run.json", "metadata", "text_emb"}
    assert np.load(out / "text_emb" / "text_emb_0.npy").shape == (5, 6)
    captions = pq.read_table(out / "metadata" / "metadata_0.parquet")
    assert captions.to_pydict() == {"caption": [item.id for item in items]}
    assert encode(replace(clip_job(tmp_path, items), out=out)).resumed == 5
    columns = pa.schema([("size", pa.int8()), ("caption", pa.string())])
    carried = [Item(str(index), text="x", columns={"caption": f"<{index}>", "size": index}) for index in range(5)]
    encode(clip_job(tmp_path, Listed(carried, columns=columns)))
    metadata = pq.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet")
    assert metadata.to_pydict() == {"size": [*range(5)], "caption": [f"<{index}>" for index in range(5)]}


def test_images_and_texts_are_not_mixed_in_the_layout_of_clip_retrieval(tmp_path: Path) -> None:
    with pytest.raises(BulkError, match="embed images and texts apart"):
        encode(clip_job(tmp_path, [Item("a", noise(0)), Item("b", text="b")]))


def clip_job(tmp_path: Path, items: Any) -> Job:
    how = {"normalize": True, "dtype": "float16"}
    return listed_job(tmp_path, items, request=how, layout="clip-retrieval")


def test_a_lance_dataset_has_the_rows_of_parquet(folder: Path) -> None:
    """With the arrays of each item, those of --columns and the run's parameters."""
    columns = pa.schema([("place", pa.int16())])
    items = [Item(str(path), path, columns={"place": place}) for place, path in enumerate(sorted(folder.iterdir()))]
    items.append(Item("a text", text="a text"))
    job = listed_job(folder.parent, Listed(items, columns=columns), request={"output": "both", "dtype": "float16"})
    single = replace(job, out=folder.parent / "out.parquet")
    job = replace(job, out=folder.parent / "out.lance", is_folder=True)  # as out.lance/ is given
    finished = encode(job)
    assert (finished.rows, finished.failed, finished.ledger) == (FILES + 1, len(BAD), None)
    encode(single)
    found, expected = rows_of(job.out), rows_of(single.out)
    assert found.equals(expected)
    assert found.schema.metadata[b"grid"] == expected.schema.metadata[b"grid"]
    assert not list(folder.parent.glob("out.lance.*")), "nothing unfinished is left"
    with pytest.raises(BulkError, match=r"out\.lance exists already: --restart"):
        encode(job)
    encode(replace(job, restart=True, request=replace(job.request, dtype="float32")))
    assert lance.dataset(job.out).schema.field("pooled").type.value_type == pa.float32()


@pytest.mark.parametrize("restart", [False, True])
def test_a_lance_dataset_of_somebody_else_is_left_alone(folder: Path, restart: bool) -> None:
    job = replace(job_of(folder, "out.lance"), restart=restart)
    mine = pa.table({"mine": [1]})
    lance.write_dataset(mine, job.out)
    with pytest.raises(BulkError, match="of another program: choose another name"):
        encode(job)
    assert rows_of(job.out).equals(mine)


def test_without_its_library_lance_is_refused_before_the_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lance", None)
    with pytest.raises(BulkError, match=re.escape("pip install 'visiontower[lance]'")):
        job_of(folder, "out.lance").sink()


def test_a_layout_that_cannot_hold_the_arrays_is_refused(folder: Path) -> None:
    with pytest.raises(BulkError, match="holds pooled vectors"):
        encode(replace(job_of(folder, "out", output="both"), layout="clip-retrieval"))
    with pytest.raises(BulkError, match="--shard-rows is for a folder"):
        encode(replace(job_of(folder, "out.npy"), shard_rows=8))


def test_columns_are_carried_with_their_types(tmp_path: Path) -> None:
    columns = pa.schema([("caption", pa.string()), ("width", pa.int16())])
    items = [Item(str(index), noise(index), columns={"caption": f"<{index}>", "width": index}) for index in range(5)]
    items.append(Item("bad", b"", columns={"caption": "kept"}))
    encode(listed_job(tmp_path, Listed(items, columns=columns)))
    table = table_of(tmp_path / "out")
    assert table.schema.field("width").type == pa.int16()
    assert table["caption"].to_pylist() == [*(f"<{index}>" for index in range(5)), "kept"]
    assert table["width"].to_pylist() == [*range(5), None]


def test_a_carried_column_may_not_have_a_name_of_ours(tmp_path: Path) -> None:
    columns = pa.schema([("pooled", pa.string())])
    with pytest.raises(BulkError, match="two columns pooled"):
        encode(listed_job(tmp_path, Listed([Item("a", noise(0))], columns=columns)))


def test_images_and_texts_are_written_in_their_order(tmp_path: Path) -> None:
    """A text has a vector and no tokens, and its numbers are those of the text alone."""
    items = [
        Item(str(index), noise(index)) if index % 3 else Item(str(index), text=f"a text {index % 2}")
        for index in range(11)
    ]
    encode(listed_job(tmp_path, items, request={"output": "both"}))
    table = table_of(tmp_path / "out")
    assert table["id"].to_pylist() == [item.id for item in items]
    assert table["error"].null_count == len(items)
    assert table["tokens"].is_null().to_pylist() == [item.text is not None for item in items]
    assert table["pooled"].null_count == 0
    rows = table["pooled"].to_pylist()
    assert rows[0] == rows[6] != rows[3]


def test_a_text_that_cannot_be_embedded_fails_alone(tmp_path: Path) -> None:
    items = [Item("0", text="short"), Item("1", text="long" * 2000), Item("2", noise(0)), Item("3", text="short")]
    finished = encode(listed_job(tmp_path, items))
    assert [item for item, _ in finished.failures] == ["1"]
    rows = table_of(tmp_path / "out")["pooled"].to_pylist()
    assert rows[0] == rows[3] != rows[2]


def test_texts_are_refused_where_there_is_no_vector_of_them(tmp_path: Path) -> None:
    items = [Item("0", text="a text")]
    with pytest.raises(OutputNotOffered):
        encode(listed_job(tmp_path, items), FakeEncoder(fake_spec(embed_dim=None, scoring=None)))
    with pytest.raises(BulkError, match="no tokens"):
        encode(listed_job(tmp_path / "tokens", items, request={"output": "tokens"}))


@pytest.mark.parametrize("error", [OSError("the bucket is gone"), BulkError("the bucket is gone")])
def test_a_source_that_breaks_off_is_said_and_the_next_run_continues(tmp_path: Path, error: Exception) -> None:
    items = [Item(str(index), noise(index)) for index in range(23)]
    encode(replace(listed_job(tmp_path, items, shard_rows=8), out=tmp_path / "reference"))
    with pytest.raises(BulkError, match="the bucket is gone"):
        encode(listed_job(tmp_path, Listed(items, breaks={18: error}), shard_rows=8))
    assert len(list((tmp_path / "out").glob("part-*"))) == 2
    assert encode(listed_job(tmp_path, items, shard_rows=8)).resumed == 16
    assert content(tmp_path / "out") == content(tmp_path / "reference")


def test_files_that_vanish_midway_end_the_run_and_are_no_failures(folder: Path) -> None:
    """Nor are those that were read: a disk has gone. The next run continues."""
    reference, job = job_of(folder, "reference"), job_of(folder, "out")
    encode(reference)
    away = folder.with_name("away")

    def unmount(batch: int) -> None:
        if folder.exists():
            folder.rename(away)

    with pytest.raises(BulkError, match=r"not there any more, nor is .* What is done is kept"):
        encode(job, before=unmount)
    away.rename(folder)
    finished = encode(job)
    assert finished.failed == len(BAD)
    assert table_of(job.out)["id"].to_pylist() == table_of(reference.out)["id"].to_pylist()


def test_a_result_without_room_is_said_before_the_work(folder: Path, tmp_path: Path) -> None:
    """A terabyte's worth of items that nobody reads, for the first breaks off."""
    said: list[str] = []
    endless = Listed([Item("0", noise(0))], total=10**15, breaks={0: BulkError("enough")})
    with pytest.raises(BulkError, match="enough"):
        encode(listed_job(tmp_path, endless), warn=said.append)
    (warning,) = said
    assert warning.startswith("The result will have ")
    assert "are free" in warning


def test_ids_that_a_header_cannot_hold_are_said_before_the_work_is_done(tmp_path: Path) -> None:
    many = Listed([Item("long name " * 100, noise(0))] * 8, total=10**6)
    job = replace(listed_job(tmp_path, many), out=tmp_path / "out.safetensors")
    with pytest.raises(BulkError, match="more than readers accept"):
        encode(job)


def test_inputs_whose_number_is_not_known_are_read_to_their_end(tmp_path: Path) -> None:
    items = [Item(str(index), image_bytes(colour=(index, 0, 0))) for index in range(9)]
    assert encode(listed_job(tmp_path, items)).rows == 9
    assert encode(listed_job(tmp_path / "none", [])).rows == 0
