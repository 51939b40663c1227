"""The library that reads and writes Lance datasets, which an extra installs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.bulk.errors import BulkError

if TYPE_CHECKING:
    from lance import LanceDataset


def library() -> Any:
    """The module `lance`. Raises BulkError if it is not installed."""
    try:
        import lance
    except ModuleNotFoundError as error:
        raise BulkError("Lance datasets need a library that is not here: pip install 'visiontower[lance]'.") from error
    return lance


def opened(path: Path) -> "LanceDataset":
    """The dataset in this folder.

    Raises BulkError if the library is not installed, ValueError or OSError if the folder holds no dataset.
    """
    dataset: LanceDataset = library().dataset(path)
    return dataset
