"""The command line: flags in, a command called, errors as one line. Imports nothing heavy until it must.

Exit status: 0 done, 1 done but some files failed, 2 not done and why, 130 interrupted.
"""

import argparse
import errno
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from encoders.contract.errors import EncoderFailed, VisiontowerError, in_brief
from service.bulk.errors import BulkError
from service.cli import doctor, embed, keys, models, plan, pull, ray, search, serve, similarity, verify, vram
from service.cli.arguments import ArgumentError, Help
from service.cli.output import escape_what_cannot_be_shown, printable, say
from service.cluster.errors import ClusterError
from service.settings import PREFIX

_HELP = """\
Images and texts in; patch tokens, embeddings, scores and labels out.

  visiontower serve                               # demo encoders, port 8000
  visiontower embed photos/ -o photos.parquet     # a folder to a table
  visiontower search photos.parquet "a red car"   # find in it
  visiontower similarity cat.jpg "a cat" "a dog"  # which text fits
  visiontower models                              # what can be served
  visiontower pull openclip:RN50@openai           # fetch weights ahead
  visiontower vram demo:vit                       # what it takes of a GPU
  visiontower plan --images 1e9 --model demo:vit --gpu h100   # how long
  visiontower verify demo:vit photos/             # are the numbers right
  visiontower doctor                              # is the machine right"""

_COMMANDS = (serve, embed, search, similarity, models, pull, vram, plan, verify, doctor, keys, ray)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    escape_what_cannot_be_shown()
    arguments = _parsed(argv)
    logging.getLogger("service").addHandler(logging.NullHandler())  # a command tells a failure as one line
    try:
        status: int = arguments.run(arguments)
        if sys.stdout is not None:  # it was closed
            sys.stdout.flush()
    except EncoderFailed as error:
        cause = error.__cause__
        because = "" if cause is None else f" ({type(cause).__name__}: {in_brief(cause)})"
        return _failed(arguments.command, f"{error}{because}")
    except (VisiontowerError, BulkError, ClusterError, ArgumentError, SettingsError) as error:
        return _failed(arguments.command, str(error))
    except ValidationError as error:
        return _failed(arguments.command, "; ".join(_problem(each) for each in error.errors()))
    except MemoryError:
        return _failed(arguments.command, "There is not enough memory.")
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `visiontower models --scheme timm | head`
        sys.stdout = None  # nothing is left to flush it into
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.stdout = None
        return _failed(arguments.command, str(error))
    return status


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, those of a list that flags have cut in two included: argparse takes its first part alone."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if rest:
        gathered = getattr(arguments, "gathers", None)
        if gathered is None or any(word.startswith("-") for word in rest):
            top.error(printable(f"unrecognized arguments: {' '.join(rest)}"))
        name, kind = gathered
        getattr(arguments, name).extend(map(kind, rest))
    return arguments


def parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    top = argparse.ArgumentParser("visiontower", description=_HELP, formatter_class=Help, allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"visiontower {version('visiontower')}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return top


def _problem(error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    where = f"{serve.setting_flag(name)} ({PREFIX}{name.upper()}): " if name else ""
    return where + str(error["msg"]).removeprefix("Value error, ")


def _failed(command: str, message: str) -> int:
    say(f"visiontower {command}: {' '.join(message.split())}")
    return 2
