"""The flags that say how the service runs on a cluster."""

import argparse
from typing import TYPE_CHECKING

from service.cli.arguments import flag
from service.settings import Settings

if TYPE_CHECKING:
    from service.run.ray.services import Service

REPLICA_FLAGS = ("replicas", "replica_cpus", "replica_gpus", "route_prefix", "app_per_model")


def add_replicas(command: argparse.ArgumentParser) -> None:
    """--replicas and the others."""
    group = command.add_argument_group("on a cluster")
    group.add_argument("--replicas", metavar="N|MIN-MAX", help="how many; 1-8: as the load needs [1]")
    group.add_argument(
        "--replica-cpus", type=float, metavar="N", help="cores of each [with a card its part of the cores, else 1]"
    )
    group.add_argument(
        "--replica-gpus",
        type=float,
        metavar="N",
        help="card of each, or a part of one: 0.5 puts two on a card, each with half of its memory [1 if the cluster "
        "has cards, else 0]",
    )
    group.add_argument("--route-prefix", metavar="/PATH", help="prefix of all paths [/]")
    group.add_argument(
        "--app-per-model",
        action="store_true",
        default=None,
        help="an application for each --model, with replicas of its own, below /demo-vit for demo:vit",
    )


def services_of(arguments: argparse.Namespace, settings: Settings) -> list["Service"]:
    """What the flags ask for. Raises ArgumentError or ClusterError."""
    from service.run.ray.services import Replicas, services  # imports the engine, which other commands do without

    with flag("--replicas"):
        replicas = Replicas.parse(arguments.replicas or "1")
    return services(
        settings,
        replicas=replicas,
        cpus=arguments.replica_cpus,
        gpus=arguments.replica_gpus,
        prefix=arguments.route_prefix or "/",
        per_model=bool(arguments.app_per_model),
    )
