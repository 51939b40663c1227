"""`visiontower doctor`: what this machine has, what is wrong with it, and whether the demo encoders run on it."""

import argparse
import time
from dataclasses import asdict
from typing import Any

from service.cli.arguments import add_command
from service.cli.output import say, show, show_json

_HELP = """\
Tell what this machine has for the service, what is wrong with it and what to
do about that; then run the demo encoders on it and compare their answers with
known ones. Nothing is fetched, and nothing is changed.

  visiontower doctor
  visiontower doctor --no-self-test
  visiontower doctor --json              # to paste into a report
  VISIONTOWER_DEVICE=cuda visiontower doctor

It reads the VISIONTOWER_* variables as `visiontower serve` does, and takes none
of its flags. Of a variable that may hold a secret it says only that it is set.
Exit status: 0 nothing is wrong (something may be worth knowing), 1 something
is, 2 it could not look."""


def add(commands: Any) -> None:
    """The command and its flags."""
    doctor = add_command(commands, "doctor", "what this machine has, and what is wrong with it", _HELP, run=run)
    doctor.add_argument("--no-self-test", action="store_true", help="do not run the demo encoders")
    doctor.add_argument("--json", action="store_true", help="for machines, and for reports of errors")


def run(arguments: argparse.Namespace) -> int:
    """Print the page. 1 if something is wrong."""
    from service.cli import doctor_page
    from service.doctor.examination import examine
    from service.doctor.findings import Severity, findings

    runs_encoders = not arguments.no_self_test
    say("Looking at this machine, and running the demo encoders." if runs_encoders else "Looking at this machine.")
    began = time.monotonic()
    facts = examine(runs_encoders=runs_encoders)
    seconds = time.monotonic() - began
    found = findings(facts)
    if arguments.json:
        show_json({"seconds": round(seconds, 1), "findings": [asdict(each) for each in found], **asdict(facts)})
    else:
        show(*doctor_page.page(facts, found, seconds=seconds))
    return 1 if any(each.severity is Severity.WRONG for each in found) else 0
