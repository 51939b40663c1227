"""`visiontower serve --ray`: deploys the applications, stays until a signal, and takes them away again."""

import logging
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import httpx

from service.cluster.errors import ClusterError
from service.cluster.join import LOCAL, joined
from service.run import exits
from service.run.ray import app
from service.run.ray.services import Service
from service.telemetry import logs

_log = logging.getLogger(__name__)
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_ROUTES = "/-/routes"
"""Where a proxy tells the prefixes of all applications."""
_ASKED_S = 10.0


def serve(services: Sequence[Service], *, address: str, host: str, port: int, log_level: str) -> None:
    """Serve until a signal; then answer the admitted requests and delete the applications. A second signal ends it now.

    address: as of joined. host, port: of the proxies, one on each machine that has a replica. Raises ClusterError.
    """
    logs.configure(log_level)
    try:
        with (
            _signals_interrupt(),
            joined(address) as cluster,
            _signals_interrupt(),  # again: Ray has taken SIGTERM meanwhile
            deployed(services, cluster, host=host, port=port, ends_serve=address != LOCAL),
        ):
            if not address.startswith("ray://"):  # else the proxies are elsewhere
                _check_proxy(services, host=host, port=port)
            _log.info("the cluster is at %s", _cluster_address())
            for service in services:
                _log.info("running on http://%s:%d%s", host, port, service.prefix)
            threading.Event().wait()
    except KeyboardInterrupt:
        _log.info("stopped")


@contextmanager
def deployed(
    services: Sequence[Service], cluster: Mapping[str, float], *, host: str, port: int, ends_serve: bool
) -> Iterator[None]:
    """The applications run inside, and are drained and deleted in the end. To be used as a driver of the cluster.

    cluster: its resources. ends_serve: end Ray Serve too, if it was begun here and nobody else's are left.

    Raises ClusterError if they do not start, or if one of the same name is there: another command may hold it.
    """
    from ray import serve

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with ExitStack() as ends:
        try:
            before = serve.status()
            _refuse_others(services, before.applications)
            if ends_serve and not before.proxies:
                ends.callback(_end_serve)
            serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
            targets = [
                serve.RunTarget(app(service.args), name=service.name, route_prefix=service.prefix)
                for service in services
            ]
            for text in shortages(services, cluster):
                _log.warning(text)
            for service in services:
                ends.callback(serve.delete, service.name)
            serve.run_many(targets)
        except (RuntimeError, TimeoutError, ValueError) as error:
            raise ClusterError(f"The replicas do not start: {_reason(error, services)}") from error
        yield


def shortages(services: Sequence[Service], cluster: Mapping[str, float]) -> Iterator[str]:
    """What the cluster has too little of. Ray waits for machines that may never come, and says so nowhere."""
    wanted = [(service.args.share(cluster), service.args.replicas.least) for service in services]
    for name, resource, amount in (
        ("cores", "CPU", sum(share.cpus * least for share, least in wanted)),
        ("cards", "GPU", sum(share.gpus * least for share, least in wanted)),
    ):
        has = cluster.get(resource, 0)
        if amount > has:
            yield f"the replicas want {amount:g} {name}, and the cluster has {has:g}: the rest wait for machines"


def _end_serve() -> None:
    from ray import serve

    if not serve.status().applications:
        serve.shutdown()


def _refuse_others(services: Sequence[Service], there: Mapping[str, Any]) -> None:
    """Raises ClusterError if one of the services is there already. It would be replaced, and deleted in the end."""
    if taken := [service for service in services if service.name in there]:
        raise ClusterError(
            f"'{taken[0].name}' is on this cluster already. Use another --route-prefix; or change it by "
            "'visiontower ray config' and 'serve deploy'; or end it first: signal the command that serves it, or, if "
            "that is gone, run 'serve shutdown', which ends all applications of the cluster."
        )


def _check_proxy(services: Sequence[Service], *, host: str, port: int) -> None:
    """Serve keeps the address with which it was started on this cluster. Raises ClusterError if it is another."""
    url = f"http://{_EVERYWHERE.get(host, host)}:{port}{_ROUTES}"
    try:
        routes = httpx.get(url, timeout=_ASKED_S, trust_env=False).json()
    except (httpx.HTTPError, ValueError):
        routes = {}
    if not routes.keys() >= {service.prefix for service in services}:
        raise ClusterError(
            f"Ray Serve was started on this cluster before, and does not answer at {host}:{port}. Give the --host and "
            "--port that it has, or end it by 'serve shutdown'."
        )


def _cluster_address() -> str:
    """By which others join it, from its machines."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _reason(error: Exception, services: Sequence[Service]) -> str:
    """What a replica said that did not start, which ends the traceback that Ray has; else the error's own text."""
    from ray import serve

    applications = serve.status().applications
    deployments = [applications[each.name].deployments for each in services if each.name in applications]
    said = "\n".join(
        [str(error) or type(error).__name__, *(each.message for found in deployments for each in found.values())]
    )
    told = re.findall(r"^(?:\w+\.)*\w+Error: (.+)", said, flags=re.MULTILINE)
    return told[-1] if told else said.splitlines()[0]


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Inside, the signals that end a service raise KeyboardInterrupt."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in exits.SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
