"""The YAML of `serve deploy` and of a RayService: the same applications as `visiontower serve --ray` deploys."""

from collections.abc import Sequence
from typing import Any

from service.cluster.join import require_ray
from service.run.ray.services import Service

APP = "service.run.ray:app"


def config(services: Sequence[Service], *, host: str, port: int) -> str:
    """The file's text. host, port: of the proxies. Raises ClusterError if Ray is not installed."""
    require_ray()
    import yaml  # comes with Ray
    from ray.serve.schema import ServeDeploySchema

    written: dict[str, Any] = {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": service.name,
                "route_prefix": service.prefix,
                "import_path": APP,
                "args": service.args.written(),
            }
            for service in services
        ],
    }
    ServeDeploySchema.model_validate(written)
    text: str = yaml.safe_dump(written, sort_keys=False)
    return f"# serve deploy FILE, or serveConfigV2 of a RayService. docs/ray.md\n{text}"
