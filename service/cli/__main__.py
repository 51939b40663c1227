"""The command `visiontower`, `python -m service.cli` too. Every import is inside, so that a broken one is told."""

import os
import sys


def main() -> int:
    """Run a command; returns the exit status."""
    hold_standard_files()
    try:
        return _run()
    except KeyboardInterrupt:  # while it is imported
        return 130


def hold_standard_files() -> None:
    """Open those of 0, 1 and 2 that are closed: else the next file, a socket perhaps, gets what libraries say there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:  # `print` would take standard output in its place
        sys.stderr = os.fdopen(2, "w")


def _run() -> int:
    try:
        from service.cli.main import main as run
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        print(
            f"visiontower: {library or 'a library'} is missing or broken: {error}. Install it again, for example in a "
            "new environment: pip install visiontower",
            file=sys.stderr,
        )
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
