"""The keys as they are now: those of the environment, and those of a file that may change while the server runs."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from service.access.keys import Keys, content_of, key_of_entry, read_file

_log = logging.getLogger(__name__)
_LOOK_S = 1.0
_SETTLES_S = 0.1
"""A content that stays for as long is not one that is still being written."""


class KeyRing:
    """Keeps the last keys that could be read. Lives on the event loop, which reads a thousand keys in some 50 ms."""

    def __init__(
        self, entries: Sequence[str], path: Path | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """entries: as `key_of_entry` reads them. Raises ValueError if they or the file cannot be read."""
        self._entries = [key_of_entry(entry) for entry in entries]
        self._path = path
        self._clock = clock
        self._found = self._seen = self._look()
        self._due = clock() + _LOOK_S
        self._keys = self._read()
        if not self._keys.by_name:
            _log.warning("%s has no key: every request is refused that needs one", path)

    @property
    def keys(self) -> Keys:
        """Those of now: the file is looked at once a second, and its keys are others if its content is, and stays.

        If it cannot be read, the keys stay as they were, and the log says so once.
        """
        if self._path is not None and (now := self._clock()) >= self._due:
            found, before = self._look(), self._seen
            self._seen = found
            self._due = now + (_LOOK_S if found == before else _SETTLES_S)
            if found == before and found != self._found:
                self._found = found
                try:
                    self._keys = self._read()
                    _log.info("%s has been read again: %d keys", self._path, len(self._keys.by_name))
                except ValueError as error:
                    _log.error("the access keys stay as they were: %s", error)
        return self._keys

    def _read(self) -> Keys:
        return Keys([*self._entries, *([] if self._path is None else read_file(self._path))])

    def _look(self) -> bytes | str:
        """The file's content, or why it cannot be read.

        Its time and size do not tell of every change: a copy may keep the time, and a clock may be set back.
        """
        try:
            return b"" if self._path is None else content_of(self._path)
        except ValueError as error:
            return str(error)
