"""A set of labels: its name and a file with one label a line."""

from pathlib import Path
from typing import NamedTuple

_MOST_CHARS = 1000
"""Of a label."""


class LabelSet(NamedTuple):
    """name: as requests say it."""

    name: str
    labels: tuple[str, ...]

    @classmethod
    def read(cls, entry: str) -> "LabelSet":
        """NAME=FILE, UTF-8, empty lines left out. Raises ValueError, which says what is wrong."""
        name, equals, path = entry.partition("=")
        if not name.strip() or not equals or not path.strip():
            raise ValueError(f"'{entry}' is not NAME=FILE, as in animals=animals.txt")
        try:
            lines = Path(path.strip()).read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ValueError(f"the labels of '{name.strip()}' cannot be read from {path.strip()}: {reason}") from error
        labels = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if not labels:
            raise ValueError(f"{path.strip()} has no label")
        longest = max(labels, key=len)
        if len(longest) > _MOST_CHARS:
            raise ValueError(
                f"{path.strip()} has a label of {len(longest):,} characters, and one may have {_MOST_CHARS:,}: "
                "a label is a line"
            )
        return cls(name.strip(), labels)
