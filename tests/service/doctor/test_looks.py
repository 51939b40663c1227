"""What is looked at on this machine, and on folders that stand for others."""

import socket
import urllib.request
from itertools import combinations
from pathlib import Path

import huggingface_hub.constants as constants
import numpy as np
import pytest

from encoders.images.decode import FORMATS, PLUGINS, Plugin
from service.doctor import caches, devices, environment, machine, pictures, software
from service.doctor.facts import Asked, Choice, Unknown, looked
from service.doctor.self_test import APART, COSINES, read_formats, try_encoder
from service.engine.backend import real_backend
from service.settings import Settings


def test_the_packages_are_those_of_the_metadata_and_fit_here() -> None:
    found = {each.name: each for each in software.software().packages if each.extra is None}
    assert found["torch"].needs == ">=2.11"
    assert [each for each in found.values() if not each.fits] == []


def test_an_extra_is_there_if_all_its_packages_are() -> None:
    extras = software.software().extras
    assert "dev" not in extras
    assert extras["heif"]


def test_the_machine_has_memory_and_cores() -> None:
    here = machine.machine()
    assert 0 < here.free <= here.usable <= here.memory
    assert 1 <= here.allowed <= here.cores


def test_a_server_needs_more_files_than_connections() -> None:
    found = machine.open_files(8)
    assert found.needed > 8
    assert found.soft is None or found.hard is None or found.soft <= found.hard


def test_a_folder_that_is_not_there_yet_has_its_disk(tmp_path: Path) -> None:
    found = machine.folder(tmp_path / "a" / "b", counts=True)
    assert (found.exists, found.is_writable, found.held) == (False, True, 0)
    assert found.free > 0


def test_a_file_counts_once_however_many_links_it_has(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(10_000))
    (tmp_path / "link").symlink_to(tmp_path / "blob")
    (tmp_path / "broken").symlink_to(tmp_path / "nothing")
    held = machine.folder(tmp_path, counts=True).held
    assert held is not None
    assert 10_000 <= held < 10_500


def test_weights_are_kept_where_the_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert caches.caches()["torch"].path == str(tmp_path / "hub")


def test_a_port_that_somebody_listens_on_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        asked = Asked(("demo:vit",), "auto", "127.0.0.1", port=0, metrics_port=taken, processes=1, connections=8)
        assert [each.is_taken for each in machine.ports(asked)] == [False, True]


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    asked = Asked(("demo:vit",), "auto", "192.0.2.1", port=0, metrics_port=None, processes=1, connections=8)
    (found,) = machine.ports(asked)
    assert found.problem is not None
    assert not found.is_taken


def test_nvidias_cards_are_counted_on_the_bus(tmp_path: Path) -> None:
    for name, vendor, kind in (("gpu", "0x10de", "0x030200"), ("sound", "0x10de", "0x040300"), ("x", "0x8086", "0x03")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor)
        (tmp_path / name / "class").write_text(kind)
    assert devices.cards_on(tmp_path) == 1


def test_torch_tells_of_this_processor() -> None:
    here = devices.torch()
    assert here.processor
    assert here.threads >= 1
    assert (here.why_no_card is None) or not here.cards


@pytest.mark.usefixtures("connected_again")
def test_the_choice_is_what_the_settings_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DEVICE": "cpu", "DTYPE": "float32", "VRAM_BUDGET": "3GiB", "PREPROCESS_THREADS": "5"}.items():
        monkeypatch.setenv(f"VISIONTOWER_{name}", value)
    choice = devices.choice()
    assert (choice.device, choice.dtype, choice.budget, choice.decoding_threads) == ("cpu", "float32", 3 * 2**30, 5)


@pytest.fixture
def connected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes offline here is of the process."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.mark.usefixtures("connected_again")
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MODEL", "dem:vit", "Unknown scheme 'dem'"),
        ("MODEL", "demo:vit,demo:vitt", "There is no 'demo:vitt'"),
        ("CACHE_DIR", f"{__file__}/cache", "cache cannot be written to"),
    ],
)
def test_what_serve_would_not_start_with_is_told(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONTOWER_CACHE", "1MiB")
    monkeypatch.setenv(f"VISIONTOWER_{name}", value)
    found = looked(devices.choice)
    assert isinstance(found, Unknown)
    assert said in found.could_not_tell


@pytest.mark.usefixtures("connected_again")
def test_weights_that_are_elsewhere_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONTOWER_MODEL", "hf:house/nowhere")
    assert isinstance(devices.choice(), Choice)


@pytest.mark.usefixtures("connected_again")
def test_looking_at_the_settings_makes_no_folder_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DEVICE": "cpu", "CACHE": "1MiB", "CACHE_DIR": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(f"VISIONTOWER_{name}", value)
    devices.choice()
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_cannot_be_imported_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pillow_lame.py").write_text("raise ImportError('liblame.so: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PLUGINS, "LAME", Plugin("pillow_lame", "", "LAME", "lame"))
    found = pictures.pictures()[-1]
    assert (found.name, found.library) == ("LAME", None)
    assert found.problem == "pillow_lame is broken: ImportError: liblame.so: no such file"


def test_every_format_is_named_with_what_reads_it() -> None:
    found = {each.name: each for each in pictures.pictures()}
    assert set(FORMATS) < set(found)
    assert found["GIF"].library == "Pillow"
    assert found["JPEG XL"].extra == "jxl"


def test_secrets_are_not_told() -> None:
    told = environment.variables(
        {
            "VISIONTOWER_PORT": "9000",
            "VISIONTOWER_PORTT": "hush",
            "VISIONTOWER_KEYS": "hush",
            "HF_TOKEN": "hush",
            "https_proxy": "http://me:hu/sh@proxy:3128",
            "ALL_PROXY": "me:hush@proxy:3128",
            "HF_ENDPOINT": "https://me:hush@hub.example",
            "VISIONTOWER_TRACES_ENDPOINT": "https://collector/v1/traces?token=hush",
            "VISIONTOWER_MODEL": "hf:a/b?preprocess=openai",
            "HOME": "/home/me",
        }
    )
    assert told == {
        "ALL_PROXY": "proxy:3128",
        "HF_ENDPOINT": "https://hub.example",
        "HF_TOKEN": "(set)",
        "VISIONTOWER_KEYS": "(set)",
        "VISIONTOWER_MODEL": "hf:a/b?preprocess=openai",
        "VISIONTOWER_PORT": "9000",
        "VISIONTOWER_PORTT": "(set)",
        "VISIONTOWER_TRACES_ENDPOINT": "https://collector/v1/traces",
        "https_proxy": "http://proxy:3128",
    }


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("VISIONTOWER_PROT", "9000", "unknown variable VISIONTOWER_PROT. Did you mean"),
        ("VISIONTOWER_PORT", "http", "VISIONTOWER_PORT: Input should be a valid integer"),
        ("VISIONTOWER_TRACES_ENDPOINT", "me:hush@c/", "VISIONTOWER_TRACES_ENDPOINT: it is no URL of a collector: use"),
    ],
)
def test_what_serve_would_refuse_is_told(name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    asked = looked(environment.asked)
    assert isinstance(asked, Unknown)
    assert asked.could_not_tell.startswith(said)
    assert "Known:" not in asked.could_not_tell


def test_all_formats_are_read() -> None:
    check = read_formats()
    assert check.problem is None
    assert check.said.endswith("formats read")


@pytest.mark.parametrize("model", COSINES)
def test_the_demo_encoders_answer_as_they_are_known_to(model: str) -> None:
    backend = real_backend(Settings(device="cpu", dtype="float32"))
    check = try_encoder(model, backend, backend.memory())
    assert check.problem is None
    assert check.said.endswith("memory 1.00 of the plan")


def test_the_cosines_of_another_encoder_are_not_allowed() -> None:
    for one, other in combinations(COSINES.values(), 2):
        assert np.abs(np.asarray(one) - np.asarray(other)).max() > 2 * APART
