"""What deploy/kubernetes/ says to Kubernetes, KEDA and the Prometheus Operator, and that the service has all it names.

No cluster is needed. The overlays are built by kubectl; where it is not, those tests are skipped.
"""

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml

from encoders.adapters.registry import EncoderId, schemes
from service.cli.main import parser
from service.settings import PREFIX, Settings
from service.sizes import parse_bytes
from tests.deploy.test_deploy import dockerfile, environment, families, loaded, routes, selectors, stages, values
from tests.deploy.test_ray import strangers
from tests.support.paths import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
VERSION = "1.37"
GIB = 1024**3
LIBRARIES = GIB
"""Python, PyTorch and their libraries, beside both budgets."""

METADATA: dict[str, Any] = {"name": {}, "namespace": {}, "labels": {}, "annotations": {}}
SCALED_OBJECT: dict[str, Any] = {
    "scaleTargetRef": {"name": {}, "apiVersion": {}, "kind": {}, "envSourceContainerName": {}},
    "pollingInterval": {}, "initialCooldownPeriod": {}, "cooldownPeriod": {}, "idleReplicaCount": {},
    "minReplicaCount": {}, "maxReplicaCount": {},
    "advanced": {
        "horizontalPodAutoscalerConfig": {"behavior": {}, "name": {}}, "restoreToOriginalReplicaCount": {},
        "scalingModifiers": {"formula": {}, "target": {}, "activationTarget": {}, "metricType": {}},
    },
    "triggers": {
        "type": {}, "name": {}, "useCachedMetrics": {}, "authenticationRef": {"name": {}, "kind": {}}, "metricType": {},
        "metadata": {
            "serverAddress": {}, "query": {}, "queryParameters": {}, "threshold": {}, "activationThreshold": {},
            "namespace": {}, "customHeaders": {}, "ignoreNullValues": {}, "unsafeSsl": {}, "awsRegion": {},
            "timeout": {}, "identityOwner": {}, "authModes": {},
        },
    },
    "fallback": {"failureThreshold": {}, "replicas": {}, "behavior": {}},
}  # fmt: skip
"""Of keda.sh/v1alpha1 with a trigger of the type prometheus: the tags in apis/keda/v1alpha1/scaledobject_types.go and
pkg/scalers/prometheus_scaler.go of kedacore/keda, at 01ee1d3 and 0805d72."""
SERVICE_MONITOR: dict[str, Any] = {
    "jobLabel": {}, "targetLabels": {}, "podTargetLabels": {}, "selector": {"matchLabels": {}, "matchExpressions": {}},
    "namespaceSelector": {"any": {}, "matchNames": {}}, "sampleLimit": {}, "scrapeProtocols": {}, "targetLimit": {},
    "endpoints": {
        "port": {}, "targetPort": {}, "path": {}, "scheme": {}, "params": {}, "interval": {}, "scrapeTimeout": {},
        "honorLabels": {}, "relabelings": {}, "metricRelabelings": {},
    },
}  # fmt: skip
RULE: dict[str, Any] = {
    "groups": {
        "name": {}, "labels": {}, "interval": {},
        "rules": {
            "record": {}, "alert": {}, "expr": {}, "for": {}, "keep_firing_for": {}, "labels": {}, "annotations": {},
        },
    }
}  # fmt: skip
"""Of monitoring.coreos.com/v1: the tags below pkg/apis/monitoring/v1 of prometheus-operator/prometheus-operator."""
CUSTOM = {
    ("keda.sh/v1alpha1", "ScaledObject"): SCALED_OBJECT,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): SERVICE_MONITOR,
    ("monitoring.coreos.com/v1", "PrometheusRule"): RULE,
}

with_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
until_all_settings_are_there = pytest.mark.xfail(
    not {"metrics_port", "keys_file"} <= Settings.model_fields.keys(), reason="settings of other parts of issue 19"
)


@cache
def built(overlay: str) -> list[Any]:
    """The manifests that `kubectl apply -k` sends."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def named(overlay: str, kind: str, name: str = "visiontower") -> Any:
    (found,) = (each for each in built(overlay) if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def server(overlay: str) -> Any:
    """The pod's spec."""
    return named(overlay, "Deployment")["spec"]["template"]["spec"]


def container(overlay: str) -> Any:
    (found,) = server(overlay)["containers"]
    return found


def pods(overlay: str) -> Iterator[Any]:
    """The spec of every pod."""
    for each in built(overlay):
        if "template" in each.get("spec", {}):
            yield each["spec"]["template"]["spec"]


def containers(overlay: str) -> Iterator[Any]:
    for pod in pods(overlay):
        yield from [*pod.get("initContainers", []), *pod["containers"]]


def variables(overlay: str, found: Any) -> dict[str, str]:
    """What a container is given: of the image, of config maps, its own."""
    given = environment()
    for source in found.get("envFrom", []):
        given |= named(overlay, "ConfigMap", source["configMapRef"]["name"])["data"]
    return given | {each["name"]: each["value"] for each in found.get("env", []) if "value" in each}


def settings(overlay: str) -> Settings:
    given = variables(overlay, container(overlay)).items()
    ours: dict[str, Any] = {
        name.removeprefix(PREFIX).lower(): value for name, value in given if name.startswith(PREFIX)
    }
    return Settings(**ours)


def check(manifest: Any) -> None:
    """Raises for what Kubernetes, or the operator whose kind it is, would refuse or ignore."""
    known = CUSTOM.get((manifest["apiVersion"], manifest["kind"]))
    if known is None:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    else:
        whole = {"apiVersion": {}, "kind": {}, "metadata": METADATA, "spec": known}
        assert strangers(manifest, whole) == []


@pytest.mark.parametrize("path", sorted((KUBERNETES / "base").glob("*.yaml")), ids=lambda path: path.name)
def test_the_files_of_the_base_are_valid_as_they_are(path: Any) -> None:
    """Without kubectl too."""
    for manifest in yaml.safe_load_all(path.read_text()):
        if manifest["kind"] != "Kustomization":
            check(manifest)


@each_overlay
def test_an_overlay_builds_and_every_manifest_is_valid(overlay: str) -> None:
    kinds = {each["kind"] for each in built(overlay)}
    for manifest in built(overlay):
        check(manifest)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "visiontower"
    assert kinds >= {"Deployment", "Job", "PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor", "ScaledObject"}


@with_kubectl
def test_what_is_misspelt_would_be_found() -> None:
    deployment = named("cpu", "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        check(deployment | {"spec": deployment["spec"] | {"terminationGracePeriod": 1}})
    with pytest.raises(AssertionError, match="minReplicas"):
        check({"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {}, "spec": {"minReplicas": 1}})


@each_overlay
def test_images_are_those_that_compose_builds(overlay: str) -> None:
    files = ("docker-compose.yml", "deploy/compose.gpu.yml")
    compose = {loaded(path)["services"]["visiontower"]["image"] for path in files}
    (image,) = {each["image"] for each in containers(overlay)}
    assert image in compose
    assert image.partition(":")[2] in stages()


@each_overlay
def test_every_container_is_confined_as_the_namespace_demands(overlay: str) -> None:
    assert named(overlay, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    (user,) = [each.value for each in dockerfile() if (each.stage, each.keyword) == ("runtime", "USER")]
    for pod in pods(overlay):
        context = pod["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
        assert context["runAsNonRoot"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
    for each in containers(overlay):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@each_overlay
def test_no_pod_is_given_variables_that_are_no_settings(overlay: str) -> None:
    """Of a Service named visiontower Kubernetes makes VISIONTOWER_PORT=tcp://... and VISIONTOWER_SERVICE_HOST."""
    assert named(overlay, "Service")
    assert all(pod["enableServiceLinks"] is False for pod in pods(overlay))


@each_overlay
def test_every_mount_is_a_volume_and_all_that_is_written_lies_in_one(overlay: str) -> None:
    for pod in pods(overlay):
        given = {volume["name"] for volume in pod["volumes"]}
        for each in [*pod.get("initContainers", []), *pod["containers"]]:
            mounts = {mount["mountPath"]: mount["name"] for mount in each["volumeMounts"]}
            assert set(mounts.values()) <= given
            assert {"/tmp", *values("VOLUME")} <= set(mounts)
            assert environment()["HF_HOME"].startswith(tuple(values("VOLUME")))
    claim = named(overlay, "PersistentVolumeClaim", "visiontower-models")["metadata"]["name"]
    claims = [v["persistentVolumeClaim"] for pod in pods(overlay) for v in pod["volumes"] if v["name"] == "models"]
    assert [(each["claimName"], each.get("readOnly", False)) for each in claims] == [(claim, True), (claim, False)]


@each_overlay
@until_all_settings_are_there
def test_the_variables_are_settings_with_sound_values(overlay: str) -> None:
    found = settings(overlay)
    assert found.host == "0.0.0.0"
    assert found.offline
    for model in found.model:
        assert EncoderId.parse(model).scheme in schemes()


@each_overlay
def test_every_container_is_given_the_same_encoders(overlay: str) -> None:
    (models,) = {variables(overlay, each)["VISIONTOWER_MODEL"] for each in containers(overlay)}
    assert models


@each_overlay
def test_commands_are_those_of_the_command_line(overlay: str) -> None:
    assert values("ENTRYPOINT") == ['["visiontower"]']
    assert "args" not in container(overlay), "the image's own: serve"
    parsed = [parser().parse_args(each["args"]) for each in containers(overlay) if "args" in each]
    assert [(each.command, each.check, each.ids) for each in parsed] == [("pull", True, []), ("pull", False, [])]


@each_overlay
@until_all_settings_are_there
def test_ports_are_those_that_the_server_listens_on(overlay: str) -> None:
    listened = {"http": settings(overlay).port, "metrics": settings(overlay).metrics_port}  # type: ignore[attr-defined]
    assert {each["name"]: each["containerPort"] for each in container(overlay)["ports"]} == listened
    for port in named(overlay, "Service")["spec"]["ports"]:
        assert listened[port["targetPort"]] == port["port"]


@each_overlay
def test_probes_ask_the_right_routes_of_a_port_that_is_there(overlay: str) -> None:
    found = container(overlay)
    probes = {name: found[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    paths = {name: probe["path"] for name, probe in probes.items()}
    assert paths == {
        "startupProbe": "/health/live",
        "readinessProbe": "/health/ready",
        "livenessProbe": "/health/live",
    }
    assert set(paths.values()) <= routes()
    assert {probe["port"] for probe in probes.values()} <= {port["name"] for port in found["ports"]}


@each_overlay
def test_a_stop_waits_for_the_drain_and_a_rollout_for_the_loads(overlay: str) -> None:
    found, pod = container(overlay), server(overlay)
    drain_s = float(variables(overlay, found)["VISIONTOWER_DRAIN_TIMEOUT_S"])
    sleep_s = found["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= sleep_s + drain_s + 15
    start = found["startupProbe"]
    assert named(overlay, "Deployment")["spec"]["progressDeadlineSeconds"] > (
        start["failureThreshold"] * start["periodSeconds"]
    )


@each_overlay
def test_selectors_find_the_pods_that_are_meant(overlay: str) -> None:
    labels = named(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
    job = named(overlay, "Job", "visiontower-weights")["spec"]["template"]["metadata"]["labels"]
    service = named(overlay, "Service")
    of_servers = [
        service["spec"]["selector"],
        named(overlay, "Deployment")["spec"]["selector"]["matchLabels"],
        named(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        named(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        server(overlay)["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    for selector in of_servers:
        assert selector.items() <= labels.items()
        assert not selector.items() <= job.items()
    assert named(overlay, "NetworkPolicy", "visiontower-weights")["spec"]["podSelector"]["matchLabels"] == job
    monitor = named(overlay, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "visiontower", "the alerts ask for this job"
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] in routes()


@each_overlay
def test_servers_reach_nothing_but_dns_and_only_the_job_reaches_the_hub(overlay: str) -> None:
    def reached(name: str) -> set[int]:
        rules = named(overlay, "NetworkPolicy", name)["spec"]["egress"]
        return {port["port"] for rule in rules for port in rule["ports"]}

    assert reached("visiontower") == {53}
    assert reached("visiontower-weights") == {53, 443}
    callers, monitoring = named(overlay, "NetworkPolicy")["spec"]["ingress"]
    assert ([each["port"] for each in callers["ports"]], [each["port"] for each in monitoring["ports"]]) == (
        ["http"],
        ["metrics"],
    )
    assert "ingress" not in named(overlay, "NetworkPolicy", "visiontower-weights")["spec"]


@each_overlay
def test_the_autoscaler_asks_for_a_series_that_is_there(overlay: str) -> None:
    scaled = named(overlay, "ScaledObject")["spec"]
    deployment = named(overlay, "Deployment")
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "an apply would set them back"
    assert scaled["fallback"]["replicas"] >= scaled["minReplicaCount"]
    (trigger,) = scaled["triggers"]
    (selected,) = selectors(trigger["metadata"]["query"])
    assert selected == ("visiontower_queue_oldest_seconds", {"namespace": deployment["metadata"]["namespace"]})
    assert selected[0] in families()
    assert trigger["metricType"] == "AverageValue", "of a sum over the pods; and a fallback needs it"


@with_kubectl
def test_budgets_leave_room_within_the_limit_of_memory() -> None:
    for overlay in OVERLAYS:
        given = variables(overlay, container(overlay))
        limits = container(overlay)["resources"]["limits"]
        assert limits["memory"] == container(overlay)["resources"]["requests"]["memory"]
        host = parse_bytes(given["VISIONTOWER_MEMORY_BUDGET"])
        if "nvidia.com/gpu" not in limits:
            host += parse_bytes(given["VISIONTOWER_VRAM_BUDGET"])
        assert host + LIBRARIES < parse_bytes(f"{limits['memory']}B")


@with_kubectl
@pytest.mark.parametrize("overlay", ["gpu", "several-models"])
def test_a_card_a_pod_and_none_is_needed_for_a_rollout(overlay: str) -> None:
    deployment = named(overlay, "Deployment")
    limits = container(overlay)["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    assert "cpu" not in limits
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@with_kubectl
def test_several_models_share_a_card() -> None:
    given = variables("several-models", container("several-models"))
    assert len(given["VISIONTOWER_MODEL"].split(",")) > 1
    assert Settings(when_full=given["VISIONTOWER_WHEN_FULL"]).when_full == "evict"  # type: ignore[arg-type]


def test_keys_are_mounted_where_the_server_looks_for_them() -> None:
    component = yaml.safe_load((KUBERNETES / "components" / "keys" / "kustomization.yaml").read_text())
    pod = yaml.safe_load(component["patches"][0]["patch"])["spec"]["template"]["spec"]
    (patched,) = pod["containers"]
    (variable,), (mount,), (volume,) = patched["env"], patched["volumeMounts"], pod["volumes"]
    assert variable["name"].removeprefix(PREFIX).lower() in Settings.model_fields
    assert variable["value"].startswith(f"{mount['mountPath']}/")
    assert mount["name"] == volume["name"]


@with_kubectl
def test_an_overlay_with_keys_builds(tmp_path: Any) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes" / "overlays" / "cpu"
    file = overlay / "kustomization.yaml"
    file.write_text(file.read_text().replace("# - ../../components/keys", "- ../../components/keys"))
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=True)
    deployment = next(each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "Deployment")
    check(deployment)
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"VISIONTOWER_KEYS_FILE", "VISIONTOWER_HOST"} <= {each["name"] for each in found["env"]}


def test_rules_of_the_operator_are_the_files_that_prometheus_reads() -> None:
    done = subprocess.run([KUBERNETES / "alerts.sh"], capture_output=True, text=True, check=True)
    manifests = {each["metadata"]["name"]: each for each in yaml.safe_load_all(done.stdout)}
    read = loaded("deploy/prometheus/prometheus.yml")["rule_files"]
    assert set(manifests) == {f"visiontower-{name.removesuffix('.yml')}" for name in read}
    for name in read:
        manifest = manifests[f"visiontower-{name.removesuffix('.yml')}"]
        check(manifest)
        assert manifest["spec"] == loaded(f"deploy/prometheus/{name}")
