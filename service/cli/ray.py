"""`visiontower ray config`: the service as a file for `serve deploy` and for KubeRay."""

import argparse
from pathlib import Path
from typing import Any

from service.cli.arguments import ArgumentError, add_command
from service.cli.replicas import add_replicas, services_of
from service.cli.serve import add_settings, settings_of

_HELP = """\
Files for a cluster of Ray. docs/ray.md has the way from one machine to many."""

_CONFIG_HELP = """\
Write the service as a YAML file, for 'serve deploy' and for the serveConfigV2
of a RayService. It takes the flags of 'visiontower serve --ray', and starts
nothing.

  visiontower ray config --model demo:vit --replicas 1-4 -o serve.yaml
  serve deploy serve.yaml

To change what runs, change the file and deploy it again: replicas are replaced
one after the other, and no request fails."""


def add(commands: Any) -> None:
    """The command, and those below it."""
    ray = add_command(commands, "ray", "the service as a file for a cluster of Ray", _HELP, run=run)
    below = ray.add_subparsers(metavar="COMMAND", required=True)
    config = add_command(below, "config", "write it for 'serve deploy' and KubeRay", _CONFIG_HELP, run=run)
    config.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to [standard output]")
    add_replicas(config)
    add_settings(config)


def run(arguments: argparse.Namespace) -> int:
    """Write the file."""
    from service.run.ray.config import config

    settings = settings_of(arguments)
    text = config(services_of(arguments, settings), host=settings.host, port=settings.port)
    if arguments.output is None:
        print(text, end="")
        return 0
    try:
        arguments.output.write_text(text)
    except OSError as error:
        raise ArgumentError(f"{arguments.output}: {error.strerror}.") from error
    return 0
