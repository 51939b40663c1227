"""Programs as the docs' pages have them, and how they run: in the environment of `make clients`."""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

PYTHON = ROOT / "build" / "clients" / ".venv" / "bin" / "python"
_LEFT = """
import json, numpy
left = {name: numpy.asarray(globals()[name]).tolist() for name in ("images", "texts", "best") if name in globals()}
open("{name}.json", "w").write(json.dumps(left))
"""
"""Runs behind a program in Python, and keeps its variables in a file."""


@dataclass(frozen=True)
class Program:
    """A program of a page, under its heading."""

    name: str
    language: str
    code: str

    @property
    def packages(self) -> set[str]:
        """What the program says is to be installed."""
        lines = re.findall(r"^# pip install (.+)$", self.code, flags=re.MULTILINE)
        return {name.strip('"') for line in lines for name in line.split()}

    def run(self, folder: Path, *command: str | Path) -> str:
        """What it prints. It can reach nothing but servers on this machine."""
        nowhere = {f"{scheme}_PROXY": "http://127.0.0.1:9" for scheme in ("HTTP", "HTTPS", "ALL")}
        ours = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")  # the clients share much that is slow to compile
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        environment |= {**nowhere, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        done = subprocess.run(
            command, input=self.code, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{self.name}, in the environment of `make clients`:\n{done.stdout}{done.stderr}"
        return done.stdout

    def left(self, folder: Path) -> dict[str, Any]:
        """Run it in Python. Its variables `images`, `texts` and `best`, those that it has."""
        assert PYTHON.exists(), "the clients have an environment of their own: make clients"
        Program(self.name, self.language, self.code + _LEFT.replace("{name}", self.name)).run(folder, PYTHON, "-")
        found: dict[str, Any] = json.loads((folder / f"{self.name}.json").read_text())
        return found


@cache
def programs(page: str) -> dict[str, Program]:
    """Of a page in docs/, by the heading that each stands under."""
    found = {}
    for part in re.split(r"^##+ ", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)[1:]:
        name = part.splitlines()[0]
        for language, code in re.findall(r"```(\w+)\n(.*?)```", part, flags=re.DOTALL):
            assert name not in found, f"{name} has two programs"
            found[name] = Program(name, language, code)
    return found


def in_python(page: str) -> list[str]:
    """The names of its programs in Python."""
    return [program.name for program in programs(page).values() if program.language == "python"]
