"""Printing: tables and JSON to standard output, the rest to standard error."""

import io
import json
import sys

from rich.console import Console, RenderableType

_SHOWN = 60
"""Characters of a text that a note shows."""


def beginning(text: str, most: int = _SHOWN) -> str:
    """Of a caller's text."""
    return text if len(text) <= most else f"{text[:most]}..."


def printable(text: str) -> str:
    """Characters that would move a terminal's cursor or colour it are escaped."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def on_a_line(text: str) -> str:
    """The beginning of a text that may come from anywhere."""
    return printable(beginning(text, 200))


def escape_what_cannot_be_shown() -> None:
    """Characters that the encoding of the terminal does not have, and bytes of names that are no UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it may be closed, or a test's
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """A line for the person at the terminal, or several."""
    print("\n".join(map(printable, text.split("\n"))), file=sys.stderr)


def show(*shown: RenderableType) -> None:
    """Tables and text, as wide as the terminal."""
    console = Console(markup=False, highlight=False, emoji=False)
    for each in shown:
        console.print(each)


def show_json(value: object) -> None:
    """For machines."""
    print(json.dumps(value, indent=2))
