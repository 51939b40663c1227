"""The application that Ray Serve runs, from its arguments. Imports Ray."""

import os
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from service.run.ray import autoscaling
from service.run.ray.replica import Replica
from service.run.ray.services import Replicas, ServiceArgs
from service.settings import Settings

_HEALTH_EVERY_S = 3
_UPSCALE_S, _DOWNSCALE_S, _MEAN_S = 10, 300, 10
_BEYOND_DRAIN_S = 15.0
"""What a replica has beside drain_timeout_s to end."""


def application(args: ServiceArgs) -> serve.Application:
    """As `service.run.ray:app`."""
    settings = Settings(**args.settings)
    cluster = ray.cluster_resources() if ray.is_initialized() else {}
    share = args.share(cluster)
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="visiontower",
        ray_actor_options={"num_cpus": share.cpus, "num_gpus": share.gpus},
        max_ongoing_requests=settings.max_connections,  # so that the queue behind it refuses, with its own problem
        graceful_shutdown_timeout_s=settings.drain_timeout_s + _BEYOND_DRAIN_S,
        graceful_shutdown_wait_loop_s=1,
        health_check_period_s=_HEALTH_EVERY_S,
        logging_config={"enable_access_log": False},  # a replica logs its requests itself
        **_number(args.replicas),
    )
    return deployment.bind(settings, share, os.getcwd())


def _number(replicas: Replicas) -> dict[str, Any]:
    least, most = replicas
    if least == most:
        return {"num_replicas": least}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            upscale_delay_s=_UPSCALE_S,
            downscale_delay_s=_DOWNSCALE_S,
            look_back_period_s=_MEAN_S + 1,
            policy=AutoscalingPolicy(policy_function=f"{autoscaling.__name__}:{autoscaling.by_waiting.__name__}"),
        )
    }
