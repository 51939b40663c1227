"""Inputs of several kinds, one after the other."""

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Protocol

import pyarrow as pa

from service.bulk.errors import BulkError
from service.bulk.items import Modality, Row
from service.bulk.sources.columns import common_type
from service.bulk.sources.place import Skip
from service.bulk.sources.places import scheme_of


class Kind(Protocol):
    """Items of one kind of source."""

    @property
    def columns(self) -> pa.Schema:
        """That the items carry."""

    @property
    def modality(self) -> Modality:
        """What the items are."""

    @property
    def total(self) -> int | None:
        """How many there are, if that is known."""

    @property
    def files(self) -> Sequence[str]:
        """The tables and tars, by name; none of other kinds."""

    def parameters(self) -> Mapping[str, Any]:
        """What must be equal for a run to go on. files: of tables and tars, their stamps by name."""

    def rows(self, skip: Skip) -> Iterator[Row]:
        """All but the first ones that `skip` leaves out."""


class Joined:
    """The Inputs of a run. Columns that only some kinds carry are null elsewhere.

    Raises BulkError if two kinds have different types for one column.
    """

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self._kinds = kinds
        types: dict[str, pa.DataType] = {}
        for field in (field for kind in kinds for field in kind.columns):
            known = types.get(field.name, field.type)
            both = common_type(known, field.type)
            if both is None:
                raise BulkError(f"The sources do not agree on column {field.name}: it is {known} and {field.type}.")
            types[field.name] = both
        self.columns = pa.schema(list(types.items()))

    @property
    def modalities(self) -> Set[Modality]:
        """Of all kinds."""
        return {kind.modality for kind in self._kinds}

    @property
    def total(self) -> int | None:
        """The sum."""
        totals = [kind.total for kind in self._kinds]
        known = [total for total in totals if total is not None]
        return sum(known) if len(known) == len(totals) else None

    @property
    def files(self) -> Sequence[str]:
        """Of all kinds, on this machine."""
        return [name for kind in self._kinds for name in kind.files if not scheme_of(name)]

    def parameters(self) -> Mapping[str, object]:
        """Of each kind, in order; and of each table and tar by its name, so that a run can say which one changed."""
        sources, files = [], {}
        for kind in self._kinds:
            about = dict(kind.parameters())
            files.update(about.pop("files", {}))
            sources.append(about)
        return {"sources": sources, **{f"file {name}": stamp for name, stamp in files.items()}}

    def rows(self, start: int) -> Iterator[Row]:
        """In order. Images in buckets and behind web servers are pending."""
        skip = Skip(start)
        return (each for kind in self._kinds for each in kind.rows(skip))
