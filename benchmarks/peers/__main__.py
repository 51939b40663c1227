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
    _share(folder)


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
