"""What deploy/Dockerfile installs, and how large its layers are; how much of the image a change of our code moves.

    python -m benchmarks.image_size
    python -m benchmarks.image_size --target cuda --keep /tmp/image

The stages that the image copies from are built without a container engine, in a clean folder: their COPY and RUN lines
are carried out with the Dockerfile's ENV and ARG, by the Python that runs this. The base image is not counted. The cpu
target downloads 0.5 GB, cuda several.
"""

import argparse
import gzip
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
_MB = 10**6
_KINDS = {".py": "Python", ".pyc": "Python, compiled", ".so": "native code", ".safetensors": "weights"}
_LARGEST = 12
"""Packages that are shown by name."""


class Instruction(NamedTuple):
    """One of a Dockerfile's; stage: the name of the stage it is in."""

    stage: str
    keyword: str
    value: str


class Copy(NamedTuple):
    """`COPY [--from=stage] sources destination`; without a stage from the repository."""

    stage: str | None
    sources: tuple[str, ...]
    destination: str


@dataclass
class Stage:
    """One of the Dockerfile's. parent: a stage or an image."""

    name: str
    parent: str
    steps: list[Copy | str] = field(default_factory=list)
    """In order: what is copied, and the lines of RUN."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of its own ENV and ARG."""
    folder: str | None = None
    """WORKDIR."""

    @property
    def copied(self) -> list[str]:
        """The stages it copies from."""
        return [step.stage for step in self.steps if isinstance(step, Copy) and step.stage]


class Layer(NamedTuple):
    """What one COPY adds to the image. Bytes; compressed as a registry keeps it."""

    name: str
    files: int
    size: int
    compressed: int
    kinds: Counter[str]
    packages: Counter[str]


def instructions(text: str) -> Iterator[Instruction]:
    """The lines of a Dockerfile."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    stage = ""
    for line in filter(str.strip, lines.splitlines()):
        keyword, value = line.split(maxsplit=1)
        if keyword == "FROM":
            stage = value.split()[2]
        yield Instruction(stage, keyword, value)


def stages(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name."""
    found: dict[str, Stage] = {}
    for name, keyword, value in instructions(text):
        if keyword == "FROM":
            found[name] = Stage(name, parent=value.split()[0])
        elif keyword == "COPY":
            origin = re.match(r"--from=(\S+)\s+", value)
            *sources, destination = value[origin.end() if origin else 0 :].split()
            found[name].steps.append(Copy(origin and origin[1], tuple(sources), destination))
        elif keyword == "RUN":
            found[name].steps.append(re.sub(r"--mount=\S+\s+", "", value))
        elif keyword in {"ENV", "ARG"}:
            found[name].environment |= dict(pair.split("=", 1) for pair in shlex.split(value))
        elif keyword == "WORKDIR":
            found[name].folder = value
    return found


def needed(found: dict[str, Stage], target: str) -> list[str]:
    """The stages that the target copies from, and those that these begin with or copy from, in order."""
    wanted: set[str] = set()
    waiting = list(found[target].copied)
    while waiting:
        if (name := waiting.pop()) in found and name not in wanted:
            wanted.add(name)
            waiting += [found[name].parent, *found[name].copied]
    return [name for name in found if name in wanted]


class Builder:
    """Builds stages, each in a folder of its own that stands for the container's root.

    Commands find a Python of their own first. Absolute paths of the container in them become paths of that folder.
    """

    def __init__(self, found: dict[str, Stage], folder: Path) -> None:
        self._stages = found
        self._folder = folder
        self._python = folder / "python"
        subprocess.run([sys.executable, "-m", "venv", self._python], check=True)

    def path(self, stage: str, inside: str, *, base: str = "/") -> Path:
        """On this machine, of a path inside the stage."""
        return self._folder / stage / (Path(base) / inside).relative_to("/")

    def build(self, name: str) -> None:
        """Carry out the lines of the stage. Raises CalledProcessError if a command fails."""
        stage = self._stages[name]
        root = self.path(name, "/")
        if stage.parent in self._stages:
            shutil.copytree(self.path(stage.parent, "/"), root, symlinks=True)
            stage.environment = self._stages[stage.parent].environment | stage.environment
            stage.folder = stage.folder or self._stages[stage.parent].folder
        root.mkdir(exist_ok=True)
        here = self.path(name, stage.folder or "/")
        here.mkdir(parents=True, exist_ok=True)
        for step in stage.steps:
            if isinstance(step, Copy):
                self._copy(step, here)
            else:
                environment = {key: self._inside(value, root) for key, value in stage.environment.items()}
                environment["PATH"] = f"{self._python / 'bin'}{os.pathsep}{os.environ['PATH']}"
                command = self._inside(step, root)
                subprocess.run(
                    command, shell=True, check=True, cwd=here, env=os.environ | environment, stdout=sys.stderr
                )

    def _copy(self, copy: Copy, here: Path) -> None:
        for each in copy.sources:
            source = self.path(copy.stage, each) if copy.stage else ROOT / each
            target = here / copy.destination
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, target / source.name)

    @staticmethod
    def _inside(text: str, root: Path) -> str:
        return re.sub(r"(?<![\w.}/-])/(?=opt/|src/)", f"{root}/", text)


class _Count(io.RawIOBase):
    """Takes bytes and counts them."""

    size = 0

    def write(self, data: Any) -> int:
        self.size += len(data)
        return len(data)


def layer(name: str, folder: Path) -> Layer:
    """The layer that a copy of this folder is."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    kinds: Counter[str] = Counter()
    packages: Counter[str] = Counter()
    for path in files:
        size = path.stat().st_size
        native = ".so" if ".so" in path.suffixes else path.suffix
        kinds[_KINDS.get(native, "other")] += size
        packages[_package(path)] += size
    return Layer(name, len(files), sum(kinds.values()), _compressed(folder), kinds, packages)


def _package(path: Path) -> str:
    """The top-level package that a file belongs to."""
    parts = path.parts
    if "site-packages" not in parts:
        return "beside the packages"
    return re.split(r"[-.]", parts[parts.index("site-packages") + 1])[0]


def _compressed(folder: Path) -> int:
    count = _Count()
    with ExitStack() as stack:
        packed = stack.enter_context(gzip.GzipFile(fileobj=count, mode="wb", compresslevel=6))
        stack.enter_context(tarfile.open(fileobj=packed, mode="w|")).add(folder, arcname="")
    return count.size


def layers(found: dict[str, Stage], target: str, folder: Path) -> Iterator[Layer]:
    """Build what the target copies, in the folder."""
    builder = Builder(found, folder)
    for name in needed(found, target):
        builder.build(name)
    for step in found[target].steps:
        if isinstance(step, Copy) and step.stage:
            yield layer(step.stage, builder.path(step.stage, step.sources[0]))


def show(measured: Sequence[Layer], console: Console) -> None:
    """Layers, kinds of file, and the largest packages. MB are 10^6 bytes."""
    table = Table("layer", box=None)
    for title in ("files", "MB", "MB compressed"):
        table.add_column(title, justify="right")
    for each in measured:
        table.add_row(each.name, f"{each.files:,}", _mb(each.size), _mb(each.compressed))
    console.print(table)
    for each in measured:
        table = Table(f"in {each.name}", box=None)
        table.add_column("MB", justify="right")
        largest = each.packages.most_common(_LARGEST)
        rest = each.size - sum(size for _, size in largest)
        for title, size in [*each.kinds.most_common(), ("", None), *largest, ("all other packages", rest)]:
            table.add_row(title, "" if size is None else _mb(size))
        console.print("", table, sep="\n")


def _mb(size: int) -> str:
    return f"{size / _MB:,.1f}"


def main() -> None:
    """Build, measure, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="build in this new folder, and leave it")
    options = parser.parse_args()
    found = stages(DOCKERFILE.read_text())
    with tempfile.TemporaryDirectory() as temporary:
        if options.keep:
            options.keep.mkdir()
        show(list(layers(found, options.target, options.keep or Path(temporary))), Console())


if __name__ == "__main__":
    main()
