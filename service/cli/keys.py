"""`visiontower keys`: access keys made, listed and removed."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.access.key_file import add_key, remove_key
from service.access.keys import LIMITS, Key, digest_of, entry_of, key_of, new_secret, read_file
from service.access.usage import Usage
from service.cli.arguments import ArgumentError, add_command, flag
from service.cli.output import say, show, show_json
from service.settings import PREFIX

_HELP = """\
Access keys for 'visiontower serve'. Only their digests are kept: a key is shown
once, when it is created. docs/access.md"""

_CREATE_HELP = """\
Create a key. It goes to standard output, and all else to standard error.

  visiontower keys create search-team --file keys.toml
  visiontower keys create trial --file keys.toml --requests-per-second 5 \\
      --images-per-day 1000 --model demo:vit
  visiontower keys create search-team     # a line for the environment

Then: visiontower serve --keys-file keys.toml. A server that runs already has
the new key within a second."""

_LIST_HELP = """\
The names of a file's keys and their limits; never the keys.

  visiontower keys list --file keys.toml
  visiontower keys list --file keys.toml --usage /var/lib/visiontower/usage"""

_REMOVE_HELP = """\
Remove a key. A server that runs refuses it within a second.

  visiontower keys remove trial --file keys.toml"""


def add(commands: Any) -> None:
    """The command, and those below it."""
    keys = add_command(commands, "keys", "access keys: create, list, remove", _HELP, run=create)
    below = keys.add_subparsers(metavar="COMMAND", required=True)
    made = add_command(below, "create", "a new key, shown once", _CREATE_HELP, run=create)
    made.add_argument("name", metavar="NAME", help="of whom it is for, as metrics and logs say it: A-Z a-z 0-9 - _")
    made.add_argument("--file", type=Path, metavar="FILE", help="add it to this file [print it for the environment]")
    for limit, kind, text in (
        ("requests_per_second", float, "requests in any second"),
        ("images_in_flight", int, "images being worked on at once, by a server process"),
        ("images_per_day", int, "images of a day, which ends at midnight, UTC"),
    ):
        made.add_argument(f"--{limit.replace('_', '-')}", type=kind, metavar="N", help=f"{text} [any number]")
    made.add_argument(
        "--model", dest="models", action="append", metavar="ID", help="an encoder that it may use; several times [all]"
    )
    listed = add_command(below, "list", "names and limits", _LIST_HELP, run=list_keys)
    _add_file(listed)
    listed.add_argument(
        "--usage", type=Path, metavar="FILE", help="the server's --keys-usage: show the images of today too"
    )
    listed.add_argument("--json", action="store_true", help="for machines")
    removed = add_command(below, "remove", "so that a key is refused", _REMOVE_HELP, run=remove)
    removed.add_argument("name", metavar="NAME", help="of the key")
    _add_file(removed)


def create(arguments: argparse.Namespace) -> int:
    """Make a key and print it."""
    limits = {name: value for name in LIMITS if (value := getattr(arguments, name)) is not None}
    if limits and arguments.file is None:
        raise ArgumentError("Limits stand in a file: add --file FILE.")
    secret = new_secret()
    with flag(arguments.name):
        key = key_of(arguments.name, {"sha256": digest_of(secret).hex(), **limits})
    if arguments.file is None:
        print(secret)
        say(f"For the server; several are separated by commas:\n{PREFIX}KEYS={entry_of(key)}")
        return 0
    with flag("--file"):
        add_key(arguments.file, key)
    print(secret)
    say(f"'{key.name}' stands in {arguments.file}. The key itself is kept nowhere: this was the only time it is shown.")
    if key.images_per_day is not None:
        say("So that the day's count outlives a restart: visiontower serve --keys-usage FILE.")
    return 0


def list_keys(arguments: argparse.Namespace) -> int:
    """Print names and limits."""
    with flag("--file"):
        keys = read_file(arguments.file)
    today = _today(arguments.usage)
    rows = [{"name": key.name, **{name: getattr(key, name) for name in LIMITS}, **today(key)} for key in keys]
    if arguments.json:
        show_json(rows)
        return 0
    from service.cli.tables import keys_table

    show(keys_table(rows))
    return 0


def remove(arguments: argparse.Namespace) -> int:
    """Take a key out of its file."""
    with flag("--file"):
        remove_key(arguments.file, arguments.name)
    say(f"'{arguments.name}' is removed from {arguments.file}.")
    return 0


def _add_file(command: argparse.ArgumentParser) -> None:
    command.add_argument("--file", type=Path, metavar="FILE", required=True, help="of the keys")


def _today(usage: Path | None) -> Callable[[Key], dict[str, int]]:
    """Of a key, what to show of its day. Nothing without a file. Raises ArgumentError."""
    if usage is None:
        return lambda key: {}
    if not usage.is_file():
        raise ArgumentError(f"--usage: there is no file {usage}.")
    with flag("--usage"):
        counts = Usage(usage)
    return lambda key: {"images_today": counts.today(key.name)}
