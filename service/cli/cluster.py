"""The flags of `visiontower embed` that say which machines do the work."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from service.cli.arguments import ArgumentError, positive

if TYPE_CHECKING:
    from service.bulk.cluster import ClusterEmbedder
    from service.settings import Settings


ENGINE_FLAGS = ("engines", "engine_cpus", "engine_gpus")


def add_cluster_flags(command: argparse.ArgumentParser) -> None:
    """--ray, and what each of its engines gets."""
    command.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="on a Ray cluster: auto (the one that this machine is of), HOST:PORT; local begins one here. Needs the "
        "extra ray",
    )
    command.add_argument("--engines", metavar="N", type=positive, help="engines of the cluster [all there is room for]")
    command.add_argument(
        "--engine-cpus", metavar="N", type=float, help="cores of each [those that go with its card; 1]"
    )
    command.add_argument("--engine-gpus", metavar="N", type=float, help="its card, or a part such as 0.5 [1 if any]")


@contextmanager
def cluster_of(arguments: argparse.Namespace, settings: "Settings") -> Iterator["ClusterEmbedder"]:
    """The cluster's engines, until the block ends. Raises ClusterError, or ArgumentError if there is no room."""
    if arguments.ray.startswith("ray://"):
        raise ArgumentError(
            "--ray: Ray Data does not run through ray://. Run the command on a machine of the cluster, with --ray auto."
        )
    from service.cluster.join import joined
    from service.cluster.share import Share

    Share.check(cpus=arguments.engine_cpus, gpus=arguments.engine_gpus)  # a cluster takes seconds to begin
    with joined(arguments.ray, include_dashboard=False) as resources:
        share = Share.of(resources, settings, cpus=arguments.engine_cpus, gpus=arguments.engine_gpus)
        most = share.most(resources)
        if most < (arguments.engines or 1):
            raise ArgumentError(
                f"The cluster has {resources.get('CPU', 0):g} cores and {resources.get('GPU', 0):g} cards: room for "
                f"{most} engines of {share.cpus:g} cores and {share.gpus:g} cards each."
            )
        from service.bulk.cluster import ClusterEmbedder

        yield ClusterEmbedder(settings, share, engines=arguments.engines or most)
