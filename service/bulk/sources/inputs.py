"""Which kind of source a name on the command line is."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from service.bulk.errors import BulkError
from service.bulk.items import Inputs
from service.bulk.resume import MANIFEST, RUN, UNFINISHED
from service.bulk.sources.files import Files, is_image
from service.bulk.sources.joined import Joined, Kind
from service.bulk.sources.options import Options
from service.bulk.sources.place import is_read_once, shown
from service.bulk.sources.places import Places, scheme_of
from service.bulk.sources.retries import reason
from service.bulk.sources.tables import Tables, is_table
from service.bulk.sources.tars import Tars, is_tar
from service.bulk.sources.texts import Texts, lines_of

_BRACES = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<words>[^{}]*,[^{}]*))\}")
_MOST_NAMES = 1_000_000
"""That braces of one name may stand for."""


def inputs_of(
    names: Sequence[str],
    options: Options | None = None,
    *,
    lists: Sequence[str] = (),
    texts: Sequence[str] = (),
    places: Places | None = None,
    standard_input: BinaryIO | None = None,
    warn: Callable[[str], None] | None = None,
) -> Inputs:
    """All items of a run: of the names in their order, then of the lists, then of the files of texts.

    A name is a file, a folder, a glob, or has braces: x-{00..12}.tar. Its suffix says whether it is a table or a tar;
    all else is an image. Of a folder its images are taken; of one without images its tables or its tars. Each file is
    taken once. warn: told what is odd about the sources, while they are read.

    Raises BulkError if something is not there, holds nothing, or `options` name what it has not.
    """
    options, places = options or Options(), places or Places()
    if [*lists, *texts].count("-") > 1:
        raise BulkError("Standard input can be read once: give one '-'.")
    if standard_input is None:
        standard_input = _standard_input() if "-" in (*lists, *texts) else io.BytesIO()
    found: dict[str, str] = {}  # name -> kind
    try:
        for name in names:
            found.update((each, _kind(each)) for each in _files(name, places))
        if names and not found:
            raise BulkError("There is no image, table or tar in what was given.")
        by_kind = groupby(found, key=found.__getitem__)
        kinds = [_made(kind, list(group), places, options, warn or _keep_silent) for kind, group in by_kind]
        for name in lists:
            kinds.append(Files(list(lines_of(name, places, standard_input)), places))
        kinds += [Texts(name, places, standard_input) for name in texts]
    except OSError as error:
        raise BulkError(_sentence(error)) from error
    if not kinds:
        raise BulkError("There is nothing to embed: name files, folders, a --list or --texts.")
    if options.names_columns and not any(isinstance(kind, Tables | Tars) for kind in kinds):
        raise BulkError("Columns are of tables and tars, and there are none of these.")
    return Joined(kinds)


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise BulkError("Standard input is closed, and '-' means it.")
    return sys.stdin.buffer


def _keep_silent(said: str) -> None:
    """Nobody listens."""


def _sentence(error: OSError) -> str:
    where = f"{shown(str(error.filename))}: " if error.filename else ""
    if isinstance(error, FileNotFoundError) and error.strerror is None:  # fsspec's, which says the path alone
        return f"{reason(error)} is not there."
    return f"{where}{reason(error)}."


def _kind(name: str) -> str:
    return "tables" if is_table(name) else "tars" if is_tar(name) else "files"


def _made(kind: str, names: Sequence[str], places: Places, options: Options, warn: Callable[[str], None]) -> Kind:
    if kind == "tables":
        return Tables(names, places, options)
    return Tars(names, places, options, warn) if kind == "tars" else Files(names, places)


def _files(name: str, places: Places) -> Iterator[str]:
    """The files that a name means."""
    place = places.of(name)
    if scheme_of(name):
        is_there = False
    else:
        name = str(Path(name))  # as a path is written: no ./ before it, no / after it
        is_there = os.path.lexists(name)
    for pattern in [name] if is_there else _without_braces(name):
        if not is_there and any(sign in pattern for sign in "*?["):
            matching = list(place.matching(pattern))
            if not matching:
                raise BulkError(f"Nothing matches {shown(pattern)}.")
            yield from matching
        elif place.is_folder(pattern):
            yield from _of_folder(pattern, place.below(pattern))
        elif _kind(pattern) != "files" and is_read_once(pattern):
            raise BulkError(
                f"{shown(pattern)} is a pipe or a device: a table or a tar is read more than once. Write it to a file."
            )
        else:
            yield pattern


def _of_folder(folder: str, below: Iterator[str]) -> Iterator[str]:
    """Its images; if it has none, its tables or its tars.

    Left out are those whose names say that they are unfinished, and those in results of `embed` that lie in the folder.
    """
    images: list[str] = []
    results: set[str] = set()
    others: dict[str, list[str]] = {"tables": [], "tars": []}
    for name in below:
        if is_image(name):
            images.append(name)
        elif _is_of_result(name):
            results.add(os.path.dirname(name))
        elif (kind := _kind(name)) != "files" and not _is_hidden(name.removeprefix(folder)):
            others[kind].append(name)
    if images:
        return iter(images)
    results.discard(folder.rstrip("/"))  # a result that is named itself is a table like others
    others = {kind: [name for name in names if not _is_below(name, results)] for kind, names in others.items()}
    if others["tables"] and others["tars"]:
        raise BulkError(f"{shown(folder)} has tables and tars: say which with a glob, '{shown(folder)}/*.tar'.")
    return iter(others["tables"] or others["tars"])


def _is_of_result(name: str) -> bool:
    """Whether it is the file that says whose result the folder holds."""
    folder, name = os.path.split(name)
    return name == RUN or (name == MANIFEST and folder.endswith(UNFINISHED))


def _is_below(name: str, folders: AbstractSet[str]) -> bool:
    return any(name.startswith(f"{folder}/") for folder in folders)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(("_", ".")) for part in path.split("/"))


def _without_braces(name: str) -> Iterator[str]:
    """{00..12} and {a,b} as a shell has them, from the left."""
    found = _BRACES.search(name)
    if found is None:
        yield name
        return
    if found["words"] is not None:
        words: Sequence[str] = found["words"].split(",")
    else:
        first, last = int(found["first"]), int(found["last"])
        if last < first or last - first >= _MOST_NAMES:
            raise BulkError(f"{shown(name)}: {{{found['first']}..{found['last']}}} is no range of numbers.")
        words = [str(number).zfill(len(found["first"])) for number in range(first, last + 1)]
    for word in words:
        yield from _without_braces(f"{name[: found.start()]}{word}{name[found.end() :]}")
