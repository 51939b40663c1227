"""The items that failed, in a file beside a result that has no rows for them."""

import json
from pathlib import Path

from service.bulk.rows import Rows
from service.bulk.sinks.sink import File


def ledger(path: Path, rows: Rows) -> File:
    """One object an item that failed."""

    def fill(new: Path) -> None:
        with new.open("w") as file:
            for item, error in rows.failures():
                file.write(json.dumps({"id": item, "error": error}) + "\n")

    return path, fill if rows.failed else None
