"""How far a call has come: told to a function, or shown by tqdm."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Progress: TypeAlias = bool | Callable[[int, int | None], None]
"""True for a bar of tqdm; or a function of how many are done, and of how many there are if that is known."""


@contextmanager
def progress_of(wanted: Progress, total: int | None) -> Iterator[Callable[[int], None]]:
    """A function to tell how many more are done. Raises ImportError if a bar is wanted and tqdm is not installed."""
    if wanted is False:
        yield lambda more: None
    elif wanted is True:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("progress=True needs tqdm: pip install 'visiontower-client[progress]'.") from error
        with tqdm(total=total) as bar:
            yield bar.update
    else:
        done = 0

        def tell(more: int) -> None:
            nonlocal done
            done += more
            wanted(done, total)

        yield tell
