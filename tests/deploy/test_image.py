"""The image: what its layers hold, so that little moves, and what is told of its contents."""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks.image_size import DOCKERFILE, layer, needed, stages
from tests.support.paths import ROOT

STAGES = stages(DOCKERFILE.read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = ROOT / "deploy" / "requirements.py"
LICENCES = ROOT / "deploy" / "licences.py"

each_target = pytest.mark.parametrize("target", ["cpu", "cuda"])


def sources(stage: str) -> set[str]:
    """What a stage takes from the repository, itself or by those it needs."""
    names = [stage, *needed(STAGES, stage), *parents(stage)]
    steps = [step for name in names for step in STAGES[name].steps if not isinstance(step, str)]
    return {source for step in steps if step.stage is None for source in step.sources}


def parents(stage: str) -> list[str]:
    parent = STAGES[stage].parent
    return [parent, *parents(parent)] if parent in STAGES else []


@each_target
def test_an_image_is_its_dependencies_and_our_package_in_a_layer_of_its_own(target: str) -> None:
    dependencies, ours = STAGES[target].copied
    assert dependencies == f"dependencies-{target}"
    assert {"encoders/", "service/"} <= sources(ours)
    assert not {"encoders/", "service/"} & sources(dependencies), "a change of our code would move them"


@each_target
def test_the_layer_of_dependencies_sees_their_names_and_pins_alone(target: str) -> None:
    """The names are made from pyproject.toml in a stage that is not copied whole."""
    steps = [
        step for name in [f"dependencies-{target}", *parents(f"dependencies-{target}")] for step in STAGES[name].steps
    ]
    copied = {source for step in steps if not isinstance(step, str) for source in step.sources}
    assert copied == {"constraints.txt", "deploy/licences.py", "/src/requirements.txt"}


def test_the_target_says_which_pytorch_is_installed() -> None:
    assert STAGES["dependencies-cpu"].environment == {"UV_TORCH_BACKEND": "cpu"}
    assert STAGES["dependencies-cuda"].environment == {}
    assert STAGES["dependencies-cpu"].steps == STAGES["dependencies-cuda"].steps


@each_target
def test_a_target_needs_nothing_of_the_other(target: str) -> None:
    assert needed(STAGES, target) == ["base", "build", "requirements", "dependencies", f"dependencies-{target}", "ours"]


def test_tools_have_one_version_here_and_in_the_makefile() -> None:
    texts = [path.read_text() for path in (DOCKERFILE, ROOT / "Makefile")]
    for tool in ("uv", "cyclonedx-bom"):
        assert len({version for text in texts for version in re.findall(rf"\b{tool}==([\d.]+)", text)}) == 1, tool


def test_the_requirements_are_the_project_s_and_those_of_its_extras() -> None:
    run = [sys.executable, str(REQUIREMENTS), str(ROOT / "pyproject.toml")]
    extras = PROJECT["optional-dependencies"]
    printed = subprocess.run([*run, "openvino,heif"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert printed == [*PROJECT["dependencies"], *extras["openvino"], *extras["heif"]]
    refused = subprocess.run([*run, "opnvino"], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "no such extra: opnvino. Extras: openvino, heif" in refused.stderr


def test_a_layer_is_counted_by_kind_and_package(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    for name, size in {"one/a.py": 10, "one/lib.so.1": 1000, "one-1.0.dist-info/METADATA": 5, "two.py": 7}.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_bytes(bytes(size))
    (tmp_path / "link").symlink_to(packages / "two.py")
    counted = layer("ours", tmp_path)
    assert (counted.files, counted.size) == (4, 1022)
    assert counted.kinds == {"native code": 1000, "Python": 17, "other": 5}
    assert counted.packages == {"one": 1015, "two": 7}
    assert 0 < counted.compressed < 1022


def component(name: str, *choices: object) -> dict[str, object]:
    return {"name": name, "version": "1", "licenses": list(choices)}


def test_every_licence_is_named_or_flagged(tmp_path: Path) -> None:
    components = [
        component("spdx", {"license": {"id": "MIT"}}, {"license": {"name": "License :: OSI Approved :: MIT License"}}),
        component("expression", {"expression": "MIT OR Apache-2.0"}),
        component("classifier", {"license": {"name": "License :: OSI Approved :: BSD License"}}),
        component("text", {"license": {"text": {"content": "Do what you like."}}}),
        component("none"),
    ]
    bom = tmp_path / "sbom.json"
    bom.write_text(json.dumps({"components": components}))
    run = [sys.executable, str(LICENCES), str(bom)]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    flag = runpy.run_path(str(LICENCES))["NOT_NAMED"]
    assert [re.split(r"\s{2,}", line) for line in printed] == [
        ["classifier", "1", "BSD License"],
        ["expression", "1", "MIT OR Apache-2.0"],
        ["none", "1", flag],
        ["spdx", "1", "MIT"],
        ["text", "1", flag],
    ]
