"""`visiontower pull`, against a hub on this machine: what is fetched, checked and said."""

import errno
import json
import os
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import pytest
import timm
import torch
from httpx import Request, Response
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

import encoders
from encoders.adapters import demo
from encoders.contract.errors import WeightsError, WeightsNotHere
from encoders.runtime.downloads import go_offline, hub_fault
from encoders.runtime.weights import fitting
from service.cli.main import main
from tests.support import hub
from tests.support.hf_folders import write

NOWHERE = "http://127.0.0.1:9"
"""Nobody listens there."""
UNAVAILABLE: Any = Response(503, request=Request("GET", NOWHERE))  # the hub's library may have another httpx


@pytest.fixture(autouse=True)
def _connected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes offline here is of the process."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "clip"
    write("clip", folder)
    return folder


def pull(*argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[Any], str]:
    """Status, what is said of each id, and what the person is told."""
    status = main(["pull", "--json", *argv])
    printed = capsys.readouterr()
    return status, json.loads(printed.out), printed.err


def test_weights_in_the_package_are_checked_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    status, (found,), _ = pull("demo:vit", capsys=capsys)
    file = demo.WEIGHTS / "vit.safetensors"
    revision = encoders.load("demo:vit").spec.revision
    size = file.stat().st_size
    assert status == 0
    assert found == {
        "id": "demo:vit", "bytes": size, "revision": revision, "where": str(file), "error": None, "ok": True,
    }  # fmt: skip


def test_a_repository_is_fetched_once_and_then_needs_no_network(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub.serving(monkeypatch, tmp_path, {"house/clip": clip}) as served:
        status, (found,), _ = pull("hf:house/clip", capsys=capsys)
        fetched = sum(path.endswith("model.safetensors") for path in served.fetched)
        assert pull("hf:house/clip", capsys=capsys)[0] == 0
        assert sum(path.endswith("model.safetensors") for path in served.fetched) == fetched == 1
    assert status == 0
    assert found["bytes"] == (clip / "model.safetensors").stat().st_size
    assert Path(found["where"]).is_relative_to(tmp_path)
    assert found["revision"] == encoders.load(f"hf:{clip}").spec.revision
    assert pull("--check", "hf:house/clip", capsys=capsys)[:2] == (0, [found])


def test_a_damaged_file_is_told_and_fetched_again(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub.serving(monkeypatch, tmp_path, {"house/clip": clip}):
        _, (whole,), _ = pull("hf:house/clip", capsys=capsys)
        file = Path(whole["where"]).resolve()
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # it loads
        status, (found,), told = pull("hf:house/clip", capsys=capsys)
        assert (status, found) == (0, whole)
        assert "is damaged" in told
        file.write_bytes(b"a page of a proxy")
        status, (found,), _ = pull("--check", "hf:house/clip", capsys=capsys)
        assert status == 1
        assert f"{file} is damaged" in found["error"]


def test_timm_and_open_clip_fetch_from_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = timm.create_model("test_vit.r160_in1k")
    folder = tmp_path / "files"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with hub.serving(monkeypatch, tmp_path / "cache", {"timm/test_vit.r160_in1k": folder}):
        status, found, said = pull("timm:test_vit.r160_in1k", "openclip:RN50@yfcc15m", capsys=capsys)
    assert status == 1
    assert (found[0]["ok"], found[0]["bytes"]) == (True, (folder / "pytorch_model.bin").stat().st_size)
    assert not found[1]["ok"]
    assert "timm/resnet50_clip.yfcc15m/resolve/main" in said
    assert "no such repository" in said
    assert "ERROR" not in said


@pytest.mark.parametrize(
    ("encoder_id", "said"),
    [
        ("hf:house/gated", "is gated. Accept the terms"),
        ("hf:house/nothing", "no repository house/nothing"),
        ("hf:house/clip@v9", "revision v9"),
        ("timm:resnet10t.c3_in1k", "there is no such repository, or it is private"),
    ],
)
def test_what_the_hub_refuses_is_told_and_the_others_are_fetched(
    encoder_id: str,
    said: str,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    refusals = {"house/gated": (403, "GatedRepo")}
    with hub.serving(monkeypatch, tmp_path, {"house/clip": clip}, refusals):
        status, found, told = pull(encoder_id, "demo:vit", capsys=capsys)
    assert status == 1
    assert [each["ok"] for each in found] == [False, True]
    assert said in found[0]["error"]
    assert found[0]["error"] in told


def test_without_a_network_it_says_so_once_and_checks_what_is_there(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with hub.serving(monkeypatch, tmp_path, {"house/clip": clip}):
        assert pull("hf:house/clip", capsys=capsys)[0] == 0
    hub.ask(monkeypatch, NOWHERE, tmp_path)
    status, found, said = pull("hf:house/clip", "hf:house/other", "openclip:RN50@openai", capsys=capsys)
    assert status == 1
    assert [each["ok"] for each in found] == [True, False, False]
    assert said.count("cannot be reached") == 1
    assert f"{NOWHERE}/house/other/resolve/main/config.json is missing" in said
    assert "`visiontower pull openclip:RN50@openai` fetches it" in said
    assert "In float32 the weights have 408 MB." in said


def test_what_needs_no_network_does_not_ask_for_one(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.ask(monkeypatch, NOWHERE, tmp_path)
    status, found, said = pull(f"hf:{clip}", "timm:test_vit@random", "fake:vit", capsys=capsys)
    assert status == 0
    assert [each["where"] for each in found] == [str(clip / "model.safetensors"), None, None]
    assert "cannot be reached" not in said


def test_a_damaged_file_is_told_and_its_table_fits_80_columns(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert main(["pull", f"hf:{tmp_path}", "demo:resnet"]) == 1
    printed = capsys.readouterr()
    assert str(weights) in printed.err
    *table, where = printed.out.splitlines()
    assert max(map(len, table)) <= 80
    assert where == f"demo:resnet  {demo.WEIGHTS / 'resnet.safetensors'}"


def test_without_an_id_it_pulls_what_would_be_served(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VISIONTOWER_MODEL", "demo:resnet,fake:vit")
    status, found, _ = pull("--check", capsys=capsys)
    assert status == 0
    assert [each["id"] for each in found] == ["demo:resnet", "fake:vit"]


def test_a_text_that_is_no_id_is_told_before_anything_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "demo:vit", "ViT-B-32"]) == 2
    assert "is not an encoder id" in capsys.readouterr().err


def test_offline_no_url_is_opened() -> None:
    """Some of open_clip's and timm's weights are at a URL and not on the hub."""
    go_offline()
    with pytest.raises(WeightsNotHere, match=r"https://example\.org/a\.pt is missing"), fitting("timm:a", "a file"):
        urllib.request.urlopen("https://example.org/a.pt")
    assert hub_fault() is None, "it is not asked"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/models/a"), "the disk is full. Make room"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/models/a"), "/models/a cannot be written"),
        (
            HfHubHTTPError("500 for url https://a/b", response=UNAVAILABLE),
            "https://a/b is missing, and cannot be downloaded",
        ),
    ],
)
def test_a_file_that_cannot_be_had_or_kept_is_told(error: OSError, said: str) -> None:
    told = FileNotFoundError("Failed to download")  # open_clip's
    told.__context__ = error
    with pytest.raises(WeightsNotHere, match=said), fitting("openclip:RN50@openai", "openai"):
        raise told


def test_the_password_of_a_mirror_is_not_told() -> None:
    missing = LocalEntryNotFoundError("no https://me:hush@mirror.example/house/a/config.json")
    missing.__context__ = OSError("proxy http://me:hush@proxy:3128 does not answer")
    with pytest.raises(WeightsNotHere) as raised, fitting("hf:a", "a"):
        raise missing
    assert "https://mirror.example/house/a/config.json" in str(raised.value)
    assert "http://proxy:3128" in str(raised.value)
    assert "hush" not in str(raised.value)


def test_an_error_of_another_kind_stays_one() -> None:
    said = "does not load into timm:a: shapes differ"
    with pytest.raises(WeightsError, match=said) as raised, fitting("timm:a", "a file"):
        raise ValueError("shapes differ")
    assert not isinstance(raised.value, WeightsNotHere)
