"""The command `visiontower`, `python -m service.cli` too. Every import is inside, so that a broken one is told."""

import sys


def main() -> int:
    """Run a command; returns the exit status."""
    try:
        return _run()
    except KeyboardInterrupt:  # while it is imported
        return 130


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
