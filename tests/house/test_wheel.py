"""The wheel holds the two packages, all of them and nothing else, and is enough to serve the demo encoders.

It is built from the source archive, as for a release: what is missing there is missing in the wheel.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from json import loads
from pathlib import Path, PurePosixPath
from threading import Timer

import httpx
import pytest

from service.settings import PREFIX
from tests.support.paths import ROOT
from tests.support.serving import PNG, image_bytes

PACKAGES = ("encoders", "service")
DEMOS = ("demo:vit", "demo:resnet", "demo:convnext")
LIMIT_S = 120


def tracked() -> list[PurePosixPath]:
    """The checkout's files, as Git lists them."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no Git checkout, so nothing says which files are tracked")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [PurePosixPath(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(PurePosixPath(), tmp_path_factory.mktemp("visiontower"))


def built(project: PurePosixPath, folder: Path) -> Path:
    """The wheel of a project of the checkout.

    From a copy of the tracked files: building writes beside the source, and reads what was left there.
    """
    for path in tracked():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / path)
    out = folder / "dist"
    archive = f"from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})"
    run([sys.executable, "-c", archive], cwd=folder / project)
    (source,) = out.glob("*.tar.gz")
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out)]
    run([*wheel, str(source)], cwd=folder)
    (made,) = out.glob("*.whl")
    return made


def run(command: list[str], *, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[PurePosixPath]:
    """The wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return {PurePosixPath(name) for name in archive.namelist()}


def test_every_file_of_the_two_packages_is_in_the_wheel(names: set[PurePosixPath]) -> None:
    """Modules, weights, pages. A new kind of file has its suffix under package-data in pyproject.toml."""
    wanted = {path for path in tracked() if path.parts[0] in PACKAGES}
    assert {path.suffix for path in wanted} >= {".py", ".json", ".safetensors", ".gz", ".png", ".jpg"}
    assert not wanted - names


def test_nothing_else_is_in_the_wheel(names: set[PurePosixPath]) -> None:
    """No trainer, test or benchmark, and no file that the checkout does not have."""
    inside = {path for path in names if not path.parts[0].endswith(".dist-info")}
    assert {path.parts[0] for path in inside} == set(PACKAGES)
    assert not inside - set(tracked())


@pytest.mark.slow
def test_the_wheel_of_the_client_holds_its_package_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(built(PurePosixPath("client"), tmp_path)) as archive:
        inside = {PurePosixPath("client", name) for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == {path for path in tracked() if path.parts[:2] == ("client", "visiontower_client")}


def test_the_command_is_an_entry_point_of_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (listed,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        points = ConfigParser()
        points.read_string(archive.read(listed).decode())
    assert dict(points["console_scripts"]) == {"visiontower": "service.cli.__main__:main"}


# Installed.


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment's programs: the wheel, before what is installed here without what is editable."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site, programs = (Path(sysconfig.get_path(name, "venv", vars=paths)) for name in ("purelib", "scripts"))
    here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "here.pth").write_text("\n".join(here))  # a .pth inside these folders is not read
    python = programs / "python"
    install = ["install", "--no-deps", "--no-index", "--ignore-installed", "--quiet", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True, env=environment())
    return programs


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def environment() -> dict[str, str]:
    """Without settings, and without a thread count: the one of a server of ours that takes all cores."""
    apart = ("PYTHONPATH", "OMP_NUM_THREADS")
    return {name: value for name, value in os.environ.items() if name not in apart and not name.startswith(PREFIX)}


def output(*command: str | Path) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=LIMIT_S)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@contextmanager
def serving(*command: str | Path) -> Iterator[str]:
    """The address of a server that the command starts."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        limit = Timer(LIMIT_S, process.kill)
        limit.start()
        try:
            assert process.stderr is not None
            said = ""
            while (found := re.search(r"running on (http://[\w.]+:\d+)", said)) is None:
                said = process.stderr.readline()
                assert said, "it ended"
            yield found[1]
            process.terminate()
            assert "Application shutdown complete" in process.stderr.read()
        finally:
            limit.cancel()
            process.kill()


@pytest.mark.slow
def test_what_is_imported_is_the_installed_wheel(installed: Path, elsewhere: Path) -> None:
    show = "import encoders, service; print(encoders.__file__, service.__file__, sep='\\n')"
    for file in output(installed / "python", "-c", show).split():
        assert Path(file).is_relative_to(installed.parent), file


@pytest.mark.slow
def test_the_installed_command_describes_a_demo_encoder(installed: Path, elsewhere: Path) -> None:
    spec = loads(output(installed / "visiontower", "models", "demo:vit", "--json"))
    assert spec["id"] == "demo:vit"


@pytest.mark.slow
def test_the_installed_command_serves_the_demo_encoders(installed: Path, elsewhere: Path) -> None:
    models = [word for name in DEMOS for word in ("--model", name)]
    with (
        serving(installed / "visiontower", "serve", *models, "--host", "127.0.0.1", "--port", "0") as address,
        httpx.Client(base_url=address, trust_env=False, timeout=LIMIT_S) as client,
    ):
        assert client.get("/health/ready").status_code == 200
        for name in DEMOS:
            answer = client.post("/embed", params={"model": name}, content=image_bytes(), headers=PNG)
            assert answer.status_code == 200, answer.text
            assert answer.json()["model"] == name
