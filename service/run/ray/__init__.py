"""The service as an application of Ray Serve: `service.run.ray:app` is what `serve run` and `serve deploy` import."""

from typing import Any

from service.run.ray.services import ServiceArgs


def app(args: ServiceArgs) -> Any:
    """The ray.serve.Application for these arguments, which a YAML has under `args`. Raises ClusterError."""
    from service.run.ray.application import application  # imports Ray

    return application(args)
