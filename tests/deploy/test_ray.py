"""What deploy/ray/ says to Ray, KubeRay and Prometheus."""

import re
import shlex
from typing import Any

import pytest
import yaml

from service.cli.main import main, parser
from service.run.ray.services import ServiceArgs
from service.settings import Settings
from service.telemetry.metrics import Metrics, ModelNow, Now
from tests.support.paths import ROOT

RAY = ROOT / "deploy" / "ray"

CLUSTER: dict[str, Any] = {
    "rayVersion": {}, "authOptions": {"mode": {}, "secretName": {}, "enableK8sTokenAuth": {}},
    "enableInTreeAutoscaling": {}, "autoscalerOptions": {}, "gcsFaultToleranceOptions": {},
    "headServiceAnnotations": {}, "networkPolicy": {}, "tlsOptions": {}, "upgradeStrategy": {},
    "headGroupSpec": {
        "rayStartParams": {}, "template": {}, "serviceType": {}, "headService": {}, "enableIngress": {},
        "resources": {}, "labels": {},
    },
    "workerGroupSpecs": {
        "groupName": {}, "replicas": {}, "minReplicas": {}, "maxReplicas": {}, "numOfHosts": {},
        "rayStartParams": {}, "template": {}, "scaleStrategy": {}, "idleTimeoutSeconds": {}, "suspend": {},
        "resources": {}, "labels": {}, "priority": {},
    },
}  # fmt: skip
SPECS: dict[str, dict[str, Any]] = {
    "RayService": {
        "serveConfigV2": {}, "excludeHeadPodFromServeSvc": {}, "upgradeStrategy": {}, "serveService": {},
        "rayClusterDeletionDelaySeconds": {}, "suspend": {}, "managedBy": {}, "rayClusterConfig": CLUSTER,
    },
    "RayJob": {
        "activeDeadlineSeconds": {}, "backoffLimit": {}, "submitterPodTemplate": {}, "metadata": {},
        "clusterSelector": {}, "submitterConfig": {}, "managedBy": {}, "deletionStrategy": {}, "entrypoint": {},
        "runtimeEnvYAML": {}, "jobId": {}, "submissionMode": {}, "entrypointResources": {}, "entrypointNumCpus": {},
        "entrypointNumGpus": {}, "ttlSecondsAfterFinished": {}, "preRunningDeadlineSeconds": {},
        "shutdownAfterJobFinishes": {}, "suspend": {}, "rayClusterSpec": CLUSTER,
    },
}  # fmt: skip
"""The keys of ray.io/v1, down to the pods: the json tags in rayservice_types.go, rayjob_types.go and
raycluster_types.go of ray-project/kuberay, below ray-operator/apis/ray/v1, at feeaf72."""


def crd(kind: str) -> dict[str, Any]:
    return {"apiVersion": {}, "kind": {}, "metadata": {}, "spec": SPECS[kind]}


def strangers(value: Any, known: dict[str, Any], path: str = "") -> list[str]:
    """Paths of keys that are not known; what lies below a key without known ones is somebody else's."""
    if not known:
        return []
    if isinstance(value, list):
        return [name for each in value for name in strangers(each, known, path)]
    here = [f"{path}.{name}" for name in value if name not in known]
    return here + [
        name for key in value.keys() & known.keys() for name in strangers(value[key], known[key], f"{path}.{key}")
    ]


def manifest(name: str = "rayservice.yaml") -> Any:
    """The first of the file."""
    return next(yaml.safe_load_all((RAY / name).read_text()))


@pytest.mark.parametrize(("name", "kind"), [("rayservice.yaml", "RayService"), ("rayjob.yaml", "RayJob")])
def test_a_manifest_has_no_key_that_kuberay_does_not_know(name: str, kind: str) -> None:
    found = manifest(name)
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", kind)
    assert strangers(found, crd(kind)) == []
    cluster = "rayClusterConfig" if kind == "RayService" else "rayClusterSpec"
    misspelt: dict[str, Any] = {"spec": {cluster: {"headGroupSpecs": {}}}}
    assert strangers(misspelt, crd(kind)) == [f".spec.{cluster}.headGroupSpecs"]


def test_the_job_s_engines_are_as_many_and_as_large_as_its_workers() -> None:
    job = manifest("rayjob.yaml")["spec"]
    (workers,) = job["rayClusterSpec"]["workerGroupSpecs"]
    arguments = parser().parse_args(shlex.split(job["entrypoint"])[1:])
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (arguments.engine_cpus, arguments.engine_gpus) == (float(limits["cpu"]), float(limits["nvidia.com/gpu"]))
    assert arguments.engines == workers["replicas"]
    (mount,) = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert arguments.out.startswith(mount["mountPath"])


def test_its_serve_config_is_what_the_command_above_it_writes(capsys: pytest.CaptureFixture[str]) -> None:
    schema = pytest.importorskip("ray.serve.schema")
    text = (RAY / "rayservice.yaml").read_text()
    found = re.search(r"# visiontower (ray config .*\n)  #(.*)\n", text)
    assert found is not None
    assert main(shlex.split(found[1] + found[2])) == 0
    config = yaml.safe_load(manifest()["spec"]["serveConfigV2"])
    assert config == yaml.safe_load(capsys.readouterr().out)
    schema.ServeDeploySchema.model_validate(config)
    args = ServiceArgs.model_validate(config["applications"][0]["args"])
    Settings(**args.settings)
    workers = manifest()["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert (workers["minReplicas"], workers["maxReplicas"]) == args.replicas
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (args.gpus, args.cpus) == (float(limits["nvidia.com/gpu"]), float(limits["cpu"]) - 1), "one for the proxy"


def test_a_pod_is_given_the_time_that_a_replica_takes_to_drain() -> None:
    pod = manifest()["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > Settings().drain_timeout_s


def test_prometheus_gives_the_samples_their_names_back() -> None:
    """As it applies its rules: a regex holds for the whole value."""
    config = yaml.safe_load((RAY / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    keep, rename, *_ = job["metric_relabel_configs"]
    families = Metrics(["a"]).families(Now({"a": ModelNow(1, 0.0)}, "cpu", {"free": 1}, {"body": 1}))
    names = {sample.name for family in families for sample in family.samples}
    assert len(names) > 10
    for name in names:
        assert re.fullmatch(keep["regex"], f"ray_{name}")
        assert re.sub(f"^{rename['regex']}$", rename["replacement"].replace("$", "\\"), f"ray_{name}") == name
    assert not re.fullmatch(keep["regex"], "ray_serve_num_requests")
    for path in config["rule_files"]:
        assert (RAY / path).is_file()
