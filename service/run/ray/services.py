"""What is to be deployed: one service with all its models, or one a model, each under its own prefix. Knows no Ray."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.cluster.errors import ClusterError
from service.cluster.share import Share
from service.settings import Settings

if TYPE_CHECKING:
    from service.cluster.share import Share

_OF_THE_PROXY = {"host", "port", "processes"}
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._]+")


class Replicas(NamedTuple):
    """How many there are, at least and at most."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> "Replicas":
        """Of `3` or `1-8`. Raises ValueError."""
        least, dash, most = text.partition("-")
        if not least.isdecimal() or (dash and not most.isdecimal()):
            raise ValueError(f"'{text}' is no number of replicas: use 3, or 1-8 for as many as the load needs")
        found = cls(int(least), int(most or least))
        if found.most < 1:
            raise ValueError(f"'{text}' is no number of replicas: with none, nothing would be served; use 1, or 0-1")
        if found.most < found.least:
            raise ValueError(f"'{text}' is no number of replicas: write the smaller number first")
        return found


def _replicas(value: object) -> object:
    return Replicas.parse(str(value)) if isinstance(value, str | int) else value


class ServiceArgs(BaseModel):
    """Arguments of `service.run.ray:app`. replicas: 3, or 1-8. cpus, gpus: of each replica; None as Share.of says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Any] = Field(default_factory=dict)
    """By the names of Settings; variables of the machine that builds the application fill in what is not here."""
    replicas: Annotated[Replicas, BeforeValidator(_replicas)] = Replicas(1, 1)
    cpus: float | None = None
    gpus: float | None = None

    def share(self, cluster: Mapping[str, float]) -> "Share":
        """What each replica gets. cluster: its resources, as of Share.of. Raises ClusterError."""
        from service.cluster.share import Share  # with the engine

        settings = Settings(**self.settings)
        _refuse_metrics_port(settings)
        return Share.of(cluster, settings, cpus=self.cpus, gpus=self.gpus)

    def written(self) -> dict[str, Any]:
        """For a file, from which it can be read again; without what is as by default."""
        least, most = self.replicas
        replicas = {"replicas": least if least == most else f"{least}-{most}"}
        return {**self.model_dump(exclude={"replicas"}, exclude_defaults=True), **replicas}


def _refuse_metrics_port(settings: Settings) -> None:
    """Raises ClusterError if there is one: Ray's proxies listen, and on one port."""
    if settings.metrics_port is not None:
        raise ClusterError(
            "On a cluster Ray's proxies listen, on one port each: leave --metrics-port out. Ray has the metrics of all "
            "replicas on a port of its own (docs/ray.md)."
        )


@dataclass(frozen=True)
class Service:
    """One application of Ray Serve. prefix: of its paths, such as /vit; / for none."""

    name: str
    prefix: str
    args: ServiceArgs


def services(
    settings: Settings, *, replicas: Replicas, cpus: float | None, gpus: float | None, prefix: str, per_model: bool
) -> list[Service]:
    """The applications that serve the models of the settings. Raises ClusterError if they cannot be."""
    _refuse_metrics_port(settings)
    if not settings.port:
        raise ClusterError("On a cluster the port is the same on all machines: --port cannot be 0.")
    if settings.processes > 1:
        raise ClusterError("On a cluster there are replicas in place of processes: use --replicas.")
    if not re.fullmatch(r"/|(/(?!\.{1,2}(/|$))[\w.~-]+)+", prefix, re.ASCII):
        raise ClusterError(f"'{prefix}' is no prefix of paths: it begins with / and does not end with it, as /vt does.")
    if prefix.split("/")[1] == "-":
        raise ClusterError(f"'{prefix}' cannot be a prefix: Ray keeps all paths below /- for itself.")
    Share.check(cpus=cpus, gpus=gpus)
    given = settings.model_dump(mode="json", exclude_defaults=True, exclude=_OF_THE_PROXY)

    def service(path: str, models: Sequence[str]) -> Service:
        name = f"visiontower{path.rstrip('/').replace('/', '-')}"  # two services of one cluster differ in it
        args = ServiceArgs(settings={**given, "model": list(models)}, replicas=replicas, cpus=cpus, gpus=gpus)
        return Service(name, path, args)

    if not per_model:
        return [service(prefix, settings.model)]
    above = prefix.rstrip("/")
    found = [service(f"{above}/{_NOT_IN_A_NAME.sub('-', model)}", [model]) for model in settings.model]
    if len({each.prefix for each in found}) < len(found):
        raise ClusterError(f"Two of {', '.join(settings.model)} would have one prefix: deploy them separately.")
    return found
