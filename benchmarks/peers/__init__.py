"""Other servers, each as it is released, in an environment of its own, as its documentation recommends."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parent
ENVIRONMENTS = Path("build/peers")


def names() -> list[str]:
    """Every peer that can be set up and driven."""
    return sorted(path.parent.name for path in FOLDER.glob("*/server.py"))


def python(name: str) -> Path:
    """The interpreter of a peer's environment, which `python -m benchmarks.peers NAME` makes."""
    return (ENVIRONMENTS / name / "bin" / "python").absolute()


def script(name: str) -> Path:
    """The peer's program: `server.py --model FOLDER --port N --dtype float32|bfloat16`."""
    return FOLDER / name / "server.py"


def shared_packages() -> str:
    """Where this environment keeps torch, open_clip and Pillow."""
    return next(path for path in sys.path if path.endswith("site-packages"))
