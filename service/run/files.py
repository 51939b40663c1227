"""Open files: how many a server needs, and how many the system allows."""

import logging
from contextlib import suppress

_log = logging.getLogger(__name__)
_BESIDE = 512
"""Open files of a process beside its connections: weights, libraries, sockets of its own."""


def needed(connections: int) -> int:
    """Files that a server with so many connections may have open."""
    return connections + _BESIDE


def limits() -> tuple[int | None, int | None]:
    """The soft and the hard limit of this process; None for no limit. Raises ImportError on Windows."""
    import resource

    both = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (None if limit == resource.RLIM_INFINITY else limit for limit in both)
    return soft, hard


def allow(connections: int) -> None:
    """Let the process have that many sockets beside its other files, as far as the system's hard limit goes."""
    with suppress(ImportError):  # not on Windows
        import resource

        soft, hard = limits()
        wanted = needed(connections)
        if hard is not None and wanted > hard:
            _log.warning("%d connections need %d open files, and the system allows %d", connections, wanted, hard)
            wanted = hard
        if soft is not None and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.RLIM_INFINITY if hard is None else hard))
