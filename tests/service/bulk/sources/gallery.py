"""The same pictures in every kind of source."""

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.items import Inputs, Item
from service.bulk.reading import read_ahead
from service.bulk.sources import Options, inputs_of
from service.bulk.sources.places import Places
from service.bulk.sources.retries import Patience

PICTURES: Mapping[str, bytes] = {f"{number:02}.jpg": bytes([number]) * (number + 1) for number in range(11)}
"""What stands for a picture: nothing here decodes one."""
QUICK = Patience(first_s=0.001, longest_s=0.002, total_s=0.05)


def content(item: Item) -> bytes | str:
    """An item's image as bytes, its text, or the error that stands for it."""
    if item.text is not None:
        return item.text
    if isinstance(item.source, Path):
        return item.source.read_bytes()
    return item.source if isinstance(item.source, bytes) else str(item.source)


def inputs(*names: str | Path, options: Options | None = None, **more: Any) -> Inputs:
    """Of names, with little patience."""
    return inputs_of([str(name) for name in names], options, places=Places(QUICK), **more)


def items_of(found: Inputs, start: int = 0) -> Iterator[Item]:
    """With their images, as a run reads them."""
    return read_ahead(found.rows(start))


def contents(found: Inputs, start: int = 0) -> list[bytes | str]:
    return [content(item) for item in items_of(found, start)]


def ids(found: Inputs) -> list[str]:
    return [item.id for item in items_of(found, 0)]


def goes_on_anywhere(found: Inputs) -> None:
    """From every start on, the items are those of a whole run."""
    whole = [(item.id, content(item), item.columns) for item in items_of(found, 0)]
    assert found.total in (None, len(whole))
    for start in range(len(whole) + 2):
        assert [(item.id, content(item), item.columns) for item in items_of(found, start)] == whole[start:]


def folder_of(folder: Path, files: Mapping[str, bytes] = PICTURES) -> Path:
    for name, each in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(each)
    return folder


def table_of(**columns: Any) -> pa.Table:
    """The pictures with their names and further columns."""
    return pa.table({"name": list(PICTURES), "image": list(PICTURES.values()), **columns})


def parquet_of(table: pa.Table, group: int = 3) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=group)
    return file.getvalue()


def tar_of(members: Mapping[str, bytes] | Sequence[tuple[str, bytes]], mode: Any = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        for name, each in members.items() if isinstance(members, Mapping) else members:
            about = tarfile.TarInfo(name)
            about.size = len(each)
            tar.addfile(about, io.BytesIO(each))
    return file.getvalue()
