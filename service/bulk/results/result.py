"""A result that is searched: vectors on disk, and what they are of."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from encoders.contract.values import ImageSize
from service.bulk.errors import BulkError
from service.bulk.rows import Array
from service.sizes import parse_image_size

POOLED = "pooled"
STRETCH_BLOCKS = 16
"""Blocks that a core reads one after the other."""


@dataclass(frozen=True)
class Origin:
    """How the vectors were made. revision: of the weights. resolution: of the images; None for the native one."""

    model: str
    revision: str
    resolution: ImageSize | None
    runtime: str
    exact_pixels: bool

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Origin | None":
        """From a run's parameters in a file's metadata. None if they are not all there: another program wrote it."""
        try:
            return cls(
                model=str(about["model"]),
                revision=str(about["revision"]),
                resolution=parse_image_size(about["resolution"]),
                runtime=str(about["runtime"]),
                exact_pixels=str(about["exact_pixels"]).lower() == "true",
            )
        except (KeyError, ValueError):
            return None

    @classmethod
    def of_schema(cls, schema: pa.Schema) -> "Origin | None":
        """From the metadata of a table."""
        about = schema.metadata or {}
        return cls.of({key.decode(errors="replace"): value.decode(errors="replace") for key, value in about.items()})


@dataclass(frozen=True)
class Stretch:
    """Consecutive rows. blocks: reads them in order as [n, width]; a row without a vector is NaN."""

    rows: int
    blocks: Callable[[], Iterator[Array]]


@dataclass(frozen=True)
class Result:
    """Vectors in a file or a folder. Nothing of them is in memory.

    origin: None if the file does not say. names: of the rows at these places, what embed was given for each.
    """

    path: Path
    origin: Origin | None
    width: int
    stretches: Sequence[Stretch]
    names: Callable[[Sequence[int]], list[str]]

    @property
    def rows(self) -> int:
        """All, also those without a vector."""
        return sum(stretch.rows for stretch in self.stretches)


def tokens_only(path: Path) -> BulkError:
    """There is nothing to be searched."""
    return BulkError(
        f"{path} holds tokens only; pooled vectors are searched: write it again with --output pooled, or both."
    )


def unreadable(path: Path, error: Exception) -> BulkError:
    """It is damaged, or no such file."""
    reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
    return BulkError(
        f"{path} cannot be read: {reason}. It is cut short, or no {path.suffix} file: copy or write it again."
    )
