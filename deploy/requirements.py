"""Print what a project requires, with the extras that are named: `requirements.py pyproject.toml openvino,heif`."""

import sys
import tomllib
from pathlib import Path


def requirements(project: Path, extras: list[str]) -> list[str]:
    """The dependencies of the project and of these extras. Raises SystemExit if an extra is unknown."""
    described = tomllib.loads(project.read_text())["project"]
    known = described["optional-dependencies"]
    if unknown := set(extras) - set(known):
        raise SystemExit(f"no such extra: {', '.join(sorted(unknown))}. Extras: {', '.join(known)}")
    return [*described["dependencies"], *(each for extra in extras for each in known[extra])]


if __name__ == "__main__":
    path, *given = sys.argv[1:]
    print(*requirements(Path(path), [extra for each in given for extra in each.split(",")]), sep="\n")
