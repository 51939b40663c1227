"""Make the environment of peers: `python -m benchmarks.peers NAME...`; without names, of all of them."""

import argparse
import shutil
import subprocess
import venv
from pathlib import Path

from benchmarks import peers


def main() -> None:
    """Make what is asked for anew; minutes a peer."""
    parser = argparse.ArgumentParser("python -m benchmarks.peers", description=__doc__)
    parser.add_argument("names", nargs="*", choices=peers.names(), default=peers.names())
    for name in parser.parse_args().names:
        make(name)


def make(name: str) -> None:
    """build/peers/NAME with the peer's pinned packages, and ours behind them."""
    folder = peers.ENVIRONMENTS / name
    shutil.rmtree(folder, ignore_errors=True)
    print(f"Making {folder}", flush=True)
    venv.create(folder, with_pip=True)
    pip: list[str | Path] = [
        peers.python(name),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-cache-dir",
    ]
    subprocess.run([*pip, "-r", peers.FOLDER / name / "requirements.txt"], check=True)
    source = peers.FOLDER / name / "source"
    if source.is_file():
        _fetch(*source.read_text().split(), to=folder / "source")
    _share(folder)


def _fetch(repository: str, commit: str, part: str, *, to: Path) -> None:
    """One folder of one commit, of a peer that no registry has."""
    git = ["git", "-C", str(to)]
    subprocess.run(["git", "init", "--quiet", to], check=True)
    for command in (
        ["remote", "add", "origin", repository],
        ["sparse-checkout", "set", part],
        ["fetch", "--quiet", "--depth", "1", "--filter", "blob:none", "origin", commit],
        ["checkout", "--quiet", commit],
    ):
        subprocess.run([*git, *command], check=True)


def _share(folder: Path) -> None:
    """Lend the environment our torch and open_clip.

    torch is several GB, and its version must not differ between those that are compared. A .pth file's folder goes to
    the end of sys.path, behind the environment's own packages: what the peer pins, the peer gets. It is written last,
    so that pip neither sees our packages nor takes them for installed.
    """
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "zz_shared.pth").write_text(peers.shared_packages() + "\n")


if __name__ == "__main__":
    main()
