"""A release: service and client have one version, and every fragment of the changelog is one that towncrier takes."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

NOT_FRAGMENTS = {"README.md"}


def pyproject(folder: str = ".") -> dict[str, Any]:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())


def fragments() -> list[Path]:
    folder = ROOT / pyproject()["tool"]["towncrier"]["directory"]
    return [path for path in folder.iterdir() if path.name not in NOT_FRAGMENTS]


def test_service_and_client_have_one_version() -> None:
    assert pyproject()["project"]["version"] == pyproject("client")["project"]["version"]


def test_every_fragment_has_a_name_and_a_known_kind() -> None:
    kinds = {kind["directory"] for kind in pyproject()["tool"]["towncrier"]["type"]}
    named = re.compile(rf"\+[a-z0-9-]+\.(?:{'|'.join(kinds)})\.md")
    assert [path.name for path in fragments() if not named.fullmatch(path.name)] == []


def test_the_next_changelog_can_be_made_and_has_every_fragment() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9", "--date", "2000-01-01"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "## 9.9.9 (2000-01-01)" in made
    words = " ".join(made.split())
    assert [path.name for path in fragments() if " ".join(path.read_text().split()) not in words] == []


def test_a_release_goes_below_the_title() -> None:
    assert (ROOT / "CHANGELOG.md").read_text().startswith(pyproject()["tool"]["towncrier"]["start_string"])
