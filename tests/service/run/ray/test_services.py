"""Which applications the flags ask for, and the file that holds them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from service.cli.main import main
from service.cluster.errors import ClusterError
from service.run.ray.services import Replicas, Service, ServiceArgs, services
from service.run.ray.serving import shortages
from service.settings import Settings

ray_schema = pytest.importorskip("ray.serve.schema")


def of(settings: Settings, *, prefix: str = "/", per_model: bool = False) -> list[Service]:
    return services(settings, replicas=Replicas(1, 3), cpus=2, gpus=None, prefix=prefix, per_model=per_model)


@pytest.mark.parametrize(("text", "replicas"), [("3", (3, 3)), ("1-8", (1, 8)), ("0-2", (0, 2)), ("4-4", (4, 4))])
def test_a_number_of_replicas_or_from_and_to(text: str, replicas: tuple[int, int]) -> None:
    assert Replicas.parse(text) == replicas


@pytest.mark.parametrize("text", ["", "0", "three", "-1", "1-", "4-2", "1-2-3", "1.5"])
def test_another_number_of_replicas_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no number of replicas"):
        Replicas.parse(text)


def test_one_application_serves_all_models() -> None:
    (one,) = of(Settings(model=("demo:vit", "demo:resnet"), max_batch=8, port=9000), prefix="/vt")
    assert (one.name, one.prefix) == ("visiontower-vt", "/vt")
    assert one.args.settings == {"model": ["demo:vit", "demo:resnet"], "max_batch": 8}


def test_services_below_several_prefixes_have_names_of_their_own() -> None:
    names = {of(Settings(), prefix=prefix)[0].name for prefix in ("/", "/vt", "/vt/b")}
    assert names == {"visiontower", "visiontower-vt", "visiontower-vt-b"}


def test_or_each_has_its_own_below_its_prefix() -> None:
    found = of(Settings(model=("demo:vit", "openclip:ViT-L-14-336@openai")), prefix="/vt", per_model=True)
    assert [(each.name, each.prefix) for each in found] == [
        ("visiontower-vt-demo-vit", "/vt/demo-vit"),
        ("visiontower-vt-openclip-ViT-L-14-336-openai", "/vt/openclip-ViT-L-14-336-openai"),
    ]
    assert [each.args.settings["model"] for each in found] == [["demo:vit"], ["openclip:ViT-L-14-336@openai"]]


@pytest.mark.parametrize("prefix", ["vt", "/vt/", "//", "/a b", "", "/a/../b", "/."])
def test_a_prefix_that_no_path_has_is_refused(prefix: str) -> None:
    with pytest.raises(ClusterError, match="is no prefix of paths"):
        of(Settings(), prefix=prefix)


@pytest.mark.parametrize("prefix", ["/-", "/-/routes"])
def test_a_prefix_that_ray_keeps_for_itself_is_refused(prefix: str) -> None:
    with pytest.raises(ClusterError, match="Ray keeps all paths below /-"):
        of(Settings(), prefix=prefix)
    assert of(Settings(), prefix="/-a/-")


def test_models_that_would_have_one_prefix_are_refused() -> None:
    with pytest.raises(ClusterError, match="would have one prefix"):
        of(Settings(model=("demo:vit", "demo@vit:x", "demo:vit:x")), per_model=True)


def test_processes_are_replicas_here() -> None:
    with pytest.raises(ClusterError, match="use --replicas"):
        of(Settings(processes=2))


def test_the_proxies_have_one_port() -> None:
    with pytest.raises(ClusterError, match="leave --metrics-port out"):
        of(Settings(metrics_port=9000))
    with pytest.raises(ClusterError, match="leave --metrics-port out"):
        ServiceArgs(settings={"metrics_port": 9000}).share({"CPU": 4})


@pytest.mark.parametrize(
    ("replicas", "cpus", "gpus", "said"),
    [
        ((2, 8), None, None, []),  # half of the cores come with each of two cards
        ((3, 8), None, None, ["want 24 cores, and the cluster has 16", "want 3 cards, and the cluster has 2"]),
        ((17, 17), None, 0, ["want 17 cores, and the cluster has 16"]),
        ((4, 4), 4, 0.5, []),
    ],
)
def test_more_than_the_cluster_has_is_said(
    replicas: tuple[int, int], cpus: float | None, gpus: float | None, said: list[str]
) -> None:
    found = services(Settings(), replicas=Replicas(*replicas), cpus=cpus, gpus=gpus, prefix="/", per_model=False)
    texts = list(shortages(found, {"CPU": 16.0, "GPU": 2.0}))
    assert len(texts) == len(said)
    assert all(each in text for each, text in zip(said, texts, strict=True))


def unknown(written: Any, schema: type[BaseModel]) -> set[str]:
    """Keys that the schema does not have: Ray would pass over them in silence."""
    return set(written) - set(schema.model_fields)


def test_the_file_is_what_ray_serve_takes(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    flags = "--model demo:vit --max-batch 8 --port 9001 --replicas 1-4 --replica-cpus 2 --route-prefix /vt"
    assert main(["ray", "config", *flags.split(), "-o", str(file)]) == 0
    written = yaml.safe_load(file.read_text())
    (application,) = written["applications"]
    assert unknown(written, ray_schema.ServeDeploySchema) == set()
    assert unknown(application, ray_schema.ServeApplicationSchema) == set()
    assert unknown(written["http_options"], ray_schema.HTTPOptionsSchema) == set()
    read = ray_schema.ServeDeploySchema.model_validate(written)
    assert (read.http_options.port, read.applications[0].route_prefix) == (9001, "/vt")
    args = ServiceArgs.model_validate(application["args"])
    assert (args.replicas, args.cpus, args.gpus) == (Replicas(1, 4), 2, None)
    assert Settings(**args.settings).max_batch == 8


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ray", "config", "-o", str(tmp_path / "none" / "serve.yaml")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        *("serve --replicas 2", "serve --replica-gpus 0.5", "serve --route-prefix /vt", "serve --app-per-model"),
        *("embed x.png -o x.npy --engines 2", "embed x.png -o x.npy --engine-gpus 0.5"),
    ],
)
def test_flags_of_a_cluster_want_one(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert "is for a cluster: add --ray" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("serve --ray local --replicas two", "--replicas: 'two' is no number of replicas"),
        ("serve --ray local --processes 2", "use --replicas"),
        ("serve --ray local --port 0", "--port cannot be 0"),
        ("ray config --port 0", "--port cannot be 0"),
        ("embed {images} -o x.npy --ray ray://127.0.0.1:10001", "Ray Data does not run through ray://"),
        ("serve --ray local --replica-gpus 2", "more engines for more cards"),
        ("serve --ray local --replica-cpus 0", "needs a core"),
        ("embed {images} -o x.npy --ray local --engine-cpus 0", "needs a core"),
        ("embed {images} -o x.npy --ray local --engine-gpus 2", "more engines for more cards"),
    ],
)
def test_what_cannot_be_is_told_at_once(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").touch()
    assert main(words.format(images=tmp_path).split()) == 2
    assert said in capsys.readouterr().err


def test_arguments_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="replica"):
        ServiceArgs.model_validate({"replica": 2})
