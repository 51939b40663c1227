"""Changes the file of keys while servers read it: it is replaced in one step, and nobody else's change is lost."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from service.access.keys import MOST_FILE_BYTES, Key, Keys, read_keys, tables_of, text_of, written

_OWN_ALONE = 0o600


def add_key(path: Path, key: Key) -> None:
    """Put it at the end. The file is made if it is not there. Raises ValueError if it cannot be, or has such a key."""
    with _changing(path) as (text, lines):
        Keys([*read_keys(text), key])
        if lines and lines[-1].strip():
            lines += ["\n"] if lines[-1].endswith("\n") else ["\n", "\n"]
        lines.append(written(key))


def remove_key(path: Path, name: str) -> None:
    """Take its table away; the rest stays as it is, remarks too. Raises ValueError if there is no such key."""
    with _changing(path) as (text, lines):
        left = tables_of(text)
        if left.pop(name, None) is None:
            raise ValueError(f"{path} has no key '{name}'. It has {', '.join(left) or 'none'}")
        heads = [place for place, line in enumerate(lines) if line.lstrip().startswith("[")] + [len(lines)]
        for head, end in pairwise(heads):
            if lines[head].split("#")[0].strip().strip("[]").strip(" \"'") == name:
                while lines[end - 1].lstrip()[:1] in ("", "#"):  # of the next key, perhaps
                    end -= 1
                del lines[head:end]
                while head < len(lines) and not lines[head].strip():
                    del lines[head]
                break
        if tables_of("".join(lines)) != left:
            raise ValueError(f"'{name}' is written in an unusual way: remove it from {path} by hand")


@contextmanager
def _changing(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The file's text, and its lines, which may be changed; then they replace it, unless the block raises.

    The new file lies beside it meanwhile. It is a lock too.
    """
    path = path.resolve()  # a link stays one
    new = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _OWN_ALONE)
    except FileExistsError as error:
        raise ValueError(f"somebody else is changing {path}. If not, delete {new}") from error
    except OSError as error:
        raise ValueError(f"{new} cannot be written: {error.strerror}") from error
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            text = text_of(path) if path.exists() else ""
            lines = text.splitlines(keepends=True)
            yield text, lines
            content = "".join(lines)
            if len(content.encode()) > MOST_FILE_BYTES:
                raise ValueError(f"{path} would have over {MOST_FILE_BYTES:,} bytes")
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        _take_after(new, path)
        new.replace(path)
    except BaseException:  # after the replacement the name may be the next writer's
        new.unlink(missing_ok=True)
        raise


def _take_after(new: Path, old: Path) -> None:
    """The server may run as another user than who changes its keys: mode and owner stay as they were."""
    with suppress(FileNotFoundError):
        before = old.stat()
        new.chmod(before.st_mode & 0o777)
        with suppress(PermissionError, AttributeError):  # none on Windows
            os.chown(new, before.st_uid, before.st_gid)
