"""What goes into a bulk run: items in a fixed order. Knows no kind of source."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from threading import Event
from typing import Literal, Protocol, TypeAlias

import pyarrow as pa

from encoders.contract.errors import ImageError
from service.engine.values import Source

Modality: TypeAlias = Literal["image", "text"]


@dataclass(frozen=True, eq=False)
class Cell:
    """A value of an Arrow column, as it stands there: Python's types know no nanoseconds and no year 10000.

    The cells of a column share it, also when they are pickled together. Two are equal if their values are.
    """

    column: pa.Array
    row: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cell) and bool(self.array().equals(other.array()))

    def array(self, rows: int = 1) -> pa.Array:
        """This value, and those after it."""
        return self.column.slice(self.row, rows)


@dataclass(frozen=True)
class Item:
    """One row of the result: an image or a text.

    id: names the row; ids need not differ. source: the image, or an ImageError that stands for it. columns: values that
    are carried through to the result, Python's or a Cell each; their Arrow types are in `Inputs.columns`.
    """

    id: str
    source: Source | None = None
    text: str | None = None
    columns: Mapping[str, object] = field(default_factory=dict)


class Unread(Protocol):
    """An image that must be read before the engine gets it. It can be pickled, and read on another machine."""

    def read(self, stop: Event) -> bytes | ImageError:
        """Its bytes, or the error that stands for it. It waits for its server, until the event is set.

        Raises BulkError if the server is out of reach for too long.
        """


@dataclass(frozen=True)
class Pending:
    """An item without its image."""

    item: Item
    unread: Unread


Row: TypeAlias = Item | Pending


class Inputs(Protocol):
    """All items of a run. They can be pickled, and read on another machine."""

    @property
    def columns(self) -> pa.Schema:
        """The columns that the items carry; often none."""

    @property
    def modalities(self) -> Set[Modality]:
        """What the items are: images, texts, or some of each."""

    @property
    def total(self) -> int | None:
        """How many items there are; None if that is not known before they are read."""

    @property
    def files(self) -> Sequence[str]:
        """The tables and tars of this machine among the sources, by name."""

    def parameters(self) -> Mapping[str, object]:
        """What must be equal for a run to go on, as JSON has it: kinds, names; the ids and their number where known."""

    def rows(self, start: int) -> Iterator[Row]:
        """The items from the start-th on, always in the same order. It may block: a run calls it on a thread.

        Raises BulkError or OSError where the source ends before its time.
        """
