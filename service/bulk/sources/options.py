"""What is taken from tables and tars."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Columns by name; of a tar's samples, the suffixes of members.

    image, text: the one that is embedded; neither: the one column of images, found by itself. id: names the rows.
    carried: go into the result. trust_paths: a table's paths may lead anywhere, into buckets too.
    """

    image: str | None = None
    text: str | None = None
    id: str | None = None
    carried: Sequence[str] = ()
    trust_paths: bool = False

    @property
    def names_columns(self) -> bool:
        """Whether anything here needs a table or a tar."""
        return bool(self.image or self.text or self.id or self.carried)
