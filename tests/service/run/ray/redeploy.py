"""Deploys the service anew on a cluster, and leaves it running: python -m ... ADDRESS ARGS, which are JSON."""

import sys

from service.cluster.join import joined
from service.run.ray import app
from service.run.ray.services import ServiceArgs

with joined(sys.argv[1]):
    from ray import serve

    serve.run(app(ServiceArgs.model_validate_json(sys.argv[2])), name="visiontower", route_prefix="/")
