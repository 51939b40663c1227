"""An engine's part of a machine: how much it is, and what its settings become."""

import os

import pytest

from encoders.memory.machine import available_cores
from service.cluster.errors import ClusterError
from service.cluster.share import Share
from service.memory.account import automatic_limit
from service.settings import Settings
from tests.support import cudastub


@pytest.mark.parametrize(
    ("cluster", "device", "share"),
    [
        ({"CPU": 16.0}, "auto", Share(1, 0)),
        ({"CPU": 16.0}, "cuda", Share(1, 1)),  # cards may come, if the cluster grows
        ({"CPU": 64.0, "GPU": 4.0}, "auto", Share(16, 1)),
        ({"CPU": 64.0, "GPU": 4.0}, "cpu", Share(1, 0)),
        ({"CPU": 2.0, "GPU": 4.0}, "auto", Share(1, 1)),
    ],
)
def test_without_numbers_it_has_a_card_and_its_cores_or_one_core(
    cluster: dict[str, float], device: str, share: Share
) -> None:
    assert Share.of(cluster, Settings(device=device)) == share


def test_a_part_of_a_card_comes_with_that_part_of_its_cores() -> None:
    assert Share.of({"CPU": 64.0, "GPU": 4.0}, Settings(), gpus=0.5) == Share(8, 0.5)
    assert Share.of({"CPU": 64.0, "GPU": 4.0}, Settings(), gpus=0.5, cpus=2) == Share(2, 0.5)


@pytest.mark.parametrize(
    ("cpus", "gpus", "said"),
    [
        (0, 0, "needs a core"),
        (1e-5, 0, "needs a core"),  # Ray counts in ten thousandths
        (float("nan"), 0, "needs a core"),
        (1, 2, "one card or a part"),
        (1, -1, "one card or a part"),
    ],
)
def test_what_no_engine_can_have_is_refused(cpus: float, gpus: float, said: str) -> None:
    with pytest.raises(ClusterError, match=said):
        Share(cpus, gpus)


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cpu", 1)])
def test_the_device_and_the_card_go_together(device: str, gpus: float) -> None:
    with pytest.raises(ClusterError, match="leave the device at auto"):
        Share.of({"CPU": 8.0, "GPU": 1.0}, Settings(device=device), gpus=gpus)


def test_a_part_of_the_cores_is_that_part_of_the_memory_and_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = available_cores()
    part = Share(cores / 2, 0).settings(Settings())
    assert (part.device, part.vram_share, part.vram_budget) == ("cpu", 0.4, "auto")
    assert part.preprocess_threads == max(1, cores // 2)
    assert os.environ["OMP_NUM_THREADS"] == str(max(1, cores // 2)), "torch reads it when it is imported"
    assert isinstance(part.memory_budget, int)
    assert part.memory_budget <= automatic_limit()


def test_what_the_operator_names_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    part = Share(0.5, 0).settings(Settings(vram_budget=2**30, memory_budget=2**29, preprocess_threads=3))
    assert (part.vram_budget, part.memory_budget, part.preprocess_threads) == (2**30, 2**29, 3)
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_whole_card_is_planned_for_as_without_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    part = Share(1, 1).settings(Settings())
    assert (part.device, part.vram_budget, part.vram_share) == ("cuda", "auto", 0.8)


@pytest.mark.slow
def test_of_half_a_card_half_is_planned_for(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of all its memory, whatever another engine has taken of it."""
    half = cudastub.on_stub_card(tmp_path_factory, "share", "0.5", memory_gb=10)
    assert half["device"] == "cuda"
    assert half["vram_budget"] == int(0.5 * 0.8 * half["card"])


def test_a_missing_card_is_told() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        Share(1, 0.5).settings(Settings())
