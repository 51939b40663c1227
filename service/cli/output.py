"""Printing: tables and JSON to standard output, the rest to standard error."""

import json
import sys

from rich.console import Console, RenderableType

_SHOWN = 60
"""Characters of a text that a note shows."""


def beginning(text: str) -> str:
    """Of a caller's text."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def say(text: str) -> None:
    """A line for the person at the terminal."""
    print(text, file=sys.stderr)


def show(*shown: RenderableType) -> None:
    """Tables and text, as wide as the terminal."""
    console = Console(markup=False, highlight=False, emoji=False)
    for each in shown:
        console.print(each)


def show_json(value: object) -> None:
    """For machines."""
    print(json.dumps(value, indent=2))
