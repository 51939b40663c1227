"""What deploy/ names is there: paths, ports, variables, stages, routes, metrics. No container engine is needed."""

import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.image_size import DOCKERFILE, Instruction, instructions
from service.http.app import create_app
from service.http.problems import REFUSALS
from service.settings import PREFIX, Settings
from service.telemetry.metrics import STATES
from service.telemetry.metrics_table import KINDS, all_families
from tests.support.paths import ROOT
from tests.support.prometheus import RULES, rules
from tests.support.serving import backend_of

DEPLOY = ROOT / "deploy"
COMPOSE_FILES = ("docker-compose.yml", "deploy/compose.gpu.yml", "deploy/compose.traces.yml")
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
PORT = Settings.model_fields["port"].default


@cache
def dockerfile() -> list[Instruction]:
    return list(instructions(DOCKERFILE.read_text()))


def values(keyword: str) -> list[str]:
    return [each.value for each in dockerfile() if each.keyword == keyword]


def loaded(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def stages() -> set[str]:
    return {each.stage for each in dockerfile()}


def copied() -> list[str]:
    """What the image takes from the repository."""
    words = [shlex.split(value) for value in values("COPY")]
    return [source for line in words if not line[0].startswith("--from") for source in line[:-1]]


def environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for value in values("ENV") for pair in shlex.split(value))


def health_check() -> list[str]:
    command: list[str] = json.loads(values("HEALTHCHECK")[0].split("CMD", 1)[1])
    return command


def routes() -> set[str]:
    app = create_app(
        Settings(model=("fake:vit",)), backend=backend_of(load=lambda model: pytest.fail("nothing is loaded"))
    )
    return set(app.openapi()["paths"]) | {route.path for route in app.routes if hasattr(route, "path")}


def families() -> dict[str, set[str]]:
    """Every series name the service can expose, with its labels."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return {family.name + suffix: set(labels) for family, labels in all_families() for suffix in suffixes[family.type]}


def recorded() -> dict[str, set[str]]:
    """Every series that deploy/prometheus/rules.yml records, with its labels: its name begins with them."""
    found = {}
    for rule in rules("rules.yml"):
        found[rule["record"]] = {*rule["record"].partition(":")[0].split("_"), *rule.get("labels", {})}
    return found


def expressions() -> Iterator[str]:
    for file in RULES:
        yield from (rule["expr"] for rule in rules(file))
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        yield from (target["expr"] for panel in board["panels"] for target in panel.get("targets", []))
        yield from (variable["definition"] for variable in board["templating"]["list"])
        yield from (annotation["expr"] for annotation in board["annotations"]["list"])


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(series, label -> matched value) of an expression."""
    for name, inside in re.findall(r"\b((?:\w+:)?(?:visiontower|process)_\w+(?::\w+)?)(?:\{([^}]*)\})?", expression):
        yield name, dict(re.findall(r'(\w+)[=!~]+"([^"]*)"', inside))


def test_every_copied_path_is_there_and_reaches_the_build() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*", "everything is left out unless it is named"
    for source in copied():
        assert (ROOT / source).exists(), source
        assert any(fnmatch.fnmatch(source.rstrip("/"), line[1:]) for line in ignored if line[0] == "!"), source


def test_what_the_package_is_built_from_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"], "pyproject.toml", "encoders/", "service/"} <= set(copied())


def test_both_variants_are_stages_and_the_cpu_is_the_default() -> None:
    assert {"cpu", "cuda"} <= stages()
    assert dockerfile()[-1].stage == "cpu"


def test_the_container_is_not_root_and_keeps_weights_in_a_volume() -> None:
    assert [each.value for each in dockerfile() if (each.stage, each.keyword) == ("runtime", "USER")] == ["10001:10001"]
    assert values("VOLUME") == ["/models"]
    assert {environment()[name].split("/")[1] for name in ("HOME", "HF_HOME", "TORCH_HOME")} == {"models"}


def test_the_container_listens_where_the_settings_say() -> None:
    assert values("EXPOSE") == [str(PORT)]
    assert environment()["VISIONTOWER_HOST"] == "0.0.0.0"


def variables() -> Iterator[tuple[str, str]]:
    """(where, VISIONTOWER_ variable)."""
    for path in ("deploy/Dockerfile", "deploy/README.md", "deploy/systemd/visiontower.env", *COMPOSE_FILES):
        for name in re.findall(rf"\b{PREFIX}[A-Z_]+[A-Z]", (ROOT / path).read_text()):
            yield path, name


def test_every_variable_is_a_setting() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    found = list(variables())
    assert found
    assert [each for each in found if each[1] not in known] == []


def test_the_values_of_variables_are_valid() -> None:
    compose = loaded("docker-compose.yml")["services"]["visiontower"]["environment"]
    given = {**environment(), **{name: _default(value) for name, value in compose.items()}}
    settings: dict[str, Any] = {
        name.removeprefix(PREFIX).lower(): value for name, value in given.items() if name.startswith(PREFIX)
    }
    assert Settings(**settings).model == Settings.model_fields["model"].default


def _default(value: str) -> str:
    """`${NAME:-default}` as it is when NAME is not set."""
    found = re.fullmatch(r"\$\{\w+:-(.*)\}", value)
    return found.group(1) if found else value


def test_the_health_check_is_a_module_of_the_package() -> None:
    python, flag, module = health_check()
    assert (python, flag) == ("python", "-m")
    assert find_spec(module)


@pytest.mark.parametrize("path", COMPOSE_FILES)
def test_compose_builds_from_paths_and_stages_that_are_there(path: str) -> None:
    for service in loaded(path)["services"].values():
        build = service.get("build", {})
        assert build.get("target", "cpu") in stages()
        assert (ROOT / build.get("context", ".") / build.get("dockerfile", "deploy/Dockerfile")).is_file()
        declared = {value.split("=")[0] for value in values("ARG")}
        assert set(build.get("args", {})) <= declared


def test_every_mount_is_there() -> None:
    compose = loaded("docker-compose.yml")
    for service in compose["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (ROOT / source).is_dir() if source.startswith(".") else source in compose["volumes"], mount


def test_ports_are_open_to_this_machine_only_and_lead_to_the_services() -> None:
    services = loaded("docker-compose.yml")["services"]
    published = {name: service["ports"] for name, service in services.items()}
    assert published == {
        "visiontower": [f"127.0.0.1:{PORT}:{PORT}"],
        "prometheus": ["127.0.0.1:9090:9090"],
        "grafana": ["127.0.0.1:3000:3000"],
    }


def test_the_gpu_file_changes_services_that_are_there() -> None:
    assert set(loaded("deploy/compose.gpu.yml")["services"]) <= set(loaded("docker-compose.yml")["services"])


def test_traces_go_to_a_jaeger_that_grafana_finds() -> None:
    services = loaded("deploy/compose.traces.yml")["services"]
    assert services.keys() == {"visiontower", "jaeger"}
    given: dict[str, Any] = {name: _default(value) for name, value in services["visiontower"]["environment"].items()}
    settings = Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in given.items()})
    assert settings.traces_endpoint == "http://jaeger:4318/v1/traces"
    assert services["jaeger"]["ports"] == ["127.0.0.1:16686:16686"]
    assert re.search(r":\d+\.\d+\.\d+$", services["jaeger"]["image"])
    (jaeger,) = loaded("deploy/grafana/provisioning/datasources/jaeger.yml")["datasources"]
    assert jaeger["url"] == "http://jaeger:16686"
    (prometheus,) = loaded("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    (link,) = prometheus["jsonData"]["exemplarTraceIdDestinations"]
    assert link == {"name": "trace_id", "datasourceUid": jaeger["uid"]}
    assert "--enable-feature=exemplar-storage" in loaded("docker-compose.yml")["services"]["prometheus"]["command"]


def test_a_stop_waits_for_the_drain() -> None:
    service = loaded("docker-compose.yml")["services"]["visiontower"]
    drain_s = float(service["environment"]["VISIONTOWER_DRAIN_TIMEOUT_S"])
    assert float(service["stop_grace_period"].removesuffix("s")) > drain_s + 5


def test_images_are_pinned() -> None:
    images = [value.split()[0] for value in values("FROM") if value.split()[0] not in stages()]
    images += [service["image"] for service in loaded("docker-compose.yml")["services"].values()]
    pinned = [image for image in images if not image.startswith("visiontower:")]
    assert len(pinned) == 3
    for image in pinned:
        assert re.search(r":v?\d+\.\d+\.\d+", image), image


def test_prometheus_scrapes_the_service() -> None:
    config = loaded("deploy/prometheus/prometheus.yml")
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"visiontower:{PORT}"]}]
    assert job["metrics_path"] in routes()
    assert all((DEPLOY / "prometheus" / name).is_file() for name in config["rule_files"])


def test_grafana_reads_that_prometheus_and_that_dashboard() -> None:
    compose = loaded("docker-compose.yml")["services"]
    (source,) = loaded("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose
    (provider,) = loaded("deploy/grafana/provisioning/dashboards/visiontower.yml")["providers"]
    mounts = dict(mount.split(":")[1::-1] for mount in compose["grafana"]["volumes"])
    folder = ROOT / mounts[provider["options"]["path"]]
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (folder / home.removeprefix(provider["options"]["path"] + "/")).is_file()
    for path in DASHBOARDS:
        assert _uids(json.loads(path.read_text())) == {source["uid"]}


def _uids(value: object) -> set[str]:
    """Of every data source below this value."""
    if isinstance(value, list):
        return set().union(*map(_uids, value))
    if not isinstance(value, Mapping):
        return set()
    own = {value["datasource"]["uid"]} if "datasource" in value else set()
    return own.union(*map(_uids, value.values()))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_dashboards_use_variables_they_define(path: Path) -> None:
    board = json.loads(path.read_text())
    defined = {variable["name"] for variable in board["templating"]["list"]}
    used = set(
        re.findall(r"\$(\w+)", " ".join(t["expr"] for panel in board["panels"] for t in panel.get("targets", [])))
    )
    assert used - {"__rate_interval"} == defined
    for key in ("id", "title"):
        values = [panel[key] for panel in board["panels"]]
        assert len(set(values)) == len(values)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_panels_do_not_overlap_and_each_says_what_it_is_for(path: Path) -> None:
    panels = json.loads(path.read_text())["panels"]
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]
    assert [panel["title"] for panel in panels if panel["type"] != "row" and not panel.get("description")] == []
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels if panel["type"] == "timeseries")


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_every_metric_and_label_exists(expression: str) -> None:
    known = families() | recorded()
    for name, matched in selectors(expression):
        assert name in known, f"no series {name}"
        assert set(matched) <= known[name] | {"instance", "job"}, name
        for reason in matched.get("reason", "").split("|"):
            assert not reason or reason in REFUSALS
        for route in matched.get("route", "").split("|"):
            assert not route or route in routes() or route == "/health/.*"
        for label, of in (("state", STATES), ("kind", KINDS)):
            assert all(value in of for value in matched.get(label, of[0]).split("|"))
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    assert grouped <= set().union(*known.values()) | {"instance", "le"}


def test_every_metric_of_the_service_is_on_a_dashboard_or_an_alert() -> None:
    """But for these: a constant, until batches are padded."""
    shown = {name for expression in expressions() for name, _ in selectors(expression)}
    unseen = {re.sub(r"_(bucket|sum|count)$", "", name) for name in families()}
    unseen -= {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert unseen <= {"visiontower_batch_padding_ratio"}


def test_constraints_pin_every_direct_dependency_exactly() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), text
    assert not [name for name in pinned if name.startswith(("nvidia-", "cuda-", "triton", "visiontower"))]


def test_the_daily_commands_are_there() -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    verbs = {line.split()[1] for line in done.stdout.splitlines()}
    assert verbs >= {"setup", "fmt", "check", "test", "test-slow", "run", "serve", "help"}


@pytest.mark.parametrize("failing", ["nothing", "check", "test"])
def test_before_a_merge_every_part_must_pass_and_says_how_long_it_took(tmp_path: Path, failing: str) -> None:
    parts = {"setup": "make setup", "check": "make check clients browser -j 2", "test": "make test SLOW=1 JOBS=3"}
    stub = tmp_path / "make"
    stub.write_text(f'#!/bin/sh\n[ "$1" != {failing} ]\n')
    stub.chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    ran = subprocess.run([ROOT / ".ci" / "run"], env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert (ran.returncode == 0) == (failing == "nothing")
    times = re.findall(r"^ +0 min 0\d s  (.+)$", ran.stdout, flags=re.MULTILINE)
    done = list(parts)[: list(parts).index(failing) + 1] if failing in parts else parts
    assert times == [*(parts[part] for part in done), "in all"]


def test_a_suite_without_a_test_fails() -> None:
    none = [sys.executable, "-m", "pytest", "--numprocesses", "2", "-m", "slow and not slow", __file__]
    ran = subprocess.run(none, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, ran.stdout
