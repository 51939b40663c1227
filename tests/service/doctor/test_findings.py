"""Each kind of trouble is found, with what to do; and nothing is found where there is none."""

from dataclasses import fields, replace
from typing import Any

import pytest

from service.doctor.facts import Card, Check, Facts, Files, Folder, Format, Nvidia, Package, Port, Unknown
from service.doctor.findings import Severity, findings
from tests.support.machines import FOLDER, GIB, HEALTHY, MACHINE, SOFTWARE, TORCH

ASKED: Any = HEALTHY.asked
NO_CARD = replace(TORCH, cards=(), why_no_card="Found no NVIDIA driver on your system")
NO_CUDA = replace(TORCH, cards=(), cuda=None, version="2.15.0+cpu")
WRONG, NOTE = Severity.WRONG, Severity.NOTE


def machine(**changed: Any) -> Facts:
    return replace(HEALTHY, **changed)


def packages(*found: Package) -> Facts:
    return machine(software=replace(SOFTWARE, packages=found))


def card(capability: tuple[int, int] = (9, 0), *, total: int = 80 * GIB, free: int = 80 * GIB) -> Facts:
    return machine(torch=replace(TORCH, cards=(Card("NVIDIA X", capability, total, free),)))


def cores(**changed: Any) -> Facts:
    return machine(machine=replace(MACHINE, **changed))


READ_ONLY = {"Hugging Face": replace(FOLDER, is_writable=False, held=0)}

TROUBLES: dict[str, tuple[Facts, Severity, str, str]] = {
    "a package is too old": (
        packages(Package("torch", "2.5.0", ">=2.11", fits=False)),
        WRONG, "torch is 2.5.0, and torch>=2.11 is needed", "pip install 'torch>=2.11'",
    ),
    "an extra's package is too old": (
        packages(Package("openvino", "2024.0", ">=2026.2", fits=False, extra="openvino")),
        WRONG, "openvino is 2024.0", "pip install 'openvino>=2026.2'",
    ),
    "a package is missing": (packages(Package("timm", None, "", fits=False)), WRONG, "timm is not", "pip install"),
    "two installations": (
        packages(Package("torch", "2.15.0", "", fits=True, copies=("2.15.0 in /a", "2.11.0 in /b"))),
        NOTE, "2.15.0 in /a, 2.11.0 in /b", "pip uninstall",
    ),
    "the clock": (machine(software=replace(SOFTWARE, now=0.0)), WRONG, "The clock says 1970-01-01", "certificate"),
    "a misspelt variable": (
        machine(asked=Unknown("unknown variable VISIONTOWER_PROT."), choice=Unknown("as above")),
        WRONG, "VISIONTOWER_PROT", "docs/settings.md",
    ),
    "a device that is not there": (
        machine(choice=Unknown("'cuda' was asked for"), checks=Unknown("'cuda' was asked for")),
        WRONG, "would not start: 'cuda' was asked for", "VISIONTOWER_*",
    ),
    "torch does not start": (
        machine(torch=Unknown("the process ended with SIGILL"), choice=Unknown("it"), checks=Unknown("it")),
        WRONG, "torch does not start: the process ended with SIGILL", "--force-reinstall torch",
    ),
    "torch is killed": (
        machine(torch=Unknown("the process ended with SIGKILL"), choice=Unknown("it"), checks=Unknown("it")),
        WRONG, "ended with SIGKILL", "memory limit",
    ),
    "an old processor": (machine(torch=replace(TORCH, vectors="DEFAULT")), NOTE, "no AVX2", "pass the host's"),
    "a torch without CUDA beside a card": (machine(torch=NO_CUDA), NOTE, "built without CUDA", "pytorch.org"),
    "no driver": (
        machine(torch=NO_CARD, nvidia=Nvidia(1, None, None)), NOTE, "there is no driver", "--gpus all",
    ),
    "an old driver": (
        machine(torch=NO_CARD, nvidia=Nvidia(1, "535.104.05", (12, 2))),
        NOTE, "535.104.05 runs CUDA 12.2, and torch was built with 13.2", "CUDA 12.x",
    ),
    "an old driver, and CUDA asked for": (
        machine(torch=NO_CARD, nvidia=Nvidia(1, "535.104.05", (12, 2)), asked=replace(ASKED, device="cuda:0")),
        WRONG, "535.104.05", "Update the driver",
    ),
    "a hidden card": (
        machine(torch=NO_CARD, variables={"CUDA_VISIBLE_DEVICES": ""}), NOTE, "hides it", "Unset CUDA_VISIBLE",
    ),
    "a card that does not start": (machine(torch=NO_CARD), NOTE, "Found no NVIDIA driver", "nvidia-smi"),
    "a card too old for torch": (card((7, 0)), WRONG, "no kernels for cuda:0 (NVIDIA X)", "pytorch.org"),
    "a card too new for torch": (card((10, 0)), WRONG, "compute capability 10.0", "pytorch.org"),
    "a small card": (card(total=GIB, free=GIB), NOTE, "has 1 GiB", "visiontower vram"),
    "a shared card": (card(free=9 * GIB), NOTE, "9 GiB of 80 GiB free", "--vram-budget"),
    "another allocator": (
        machine(variables={"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}), NOTE, "expandable_segments", "Unset",
    ),
    "little memory": (cores(free=GIB // 2), WRONG, "Only 512 MiB of memory", "limit"),
    "a small container": (cores(limit=8 * GIB), NOTE, "8 GiB of the machine's 256 GiB", "--memory"),
    "swap": (cores(swap_used=3 * GIB), NOTE, "3 GiB is swapped out", "swap off"),
    "a part of a core": (cores(quota=0.5), NOTE, "allows 0.5 of a core", "--cpus"),
    "one thread": (machine(variables={"OMP_NUM_THREADS": "1"}), NOTE, "on 1 of 16 cores", "Unset OMP"),
    "few files": (machine(files=Files(1024, 1024, needed=1536)), WRONG, "1,024 files", "nofile"),
    "no temporary files": (
        machine(temporary=Unknown("No usable directory"), choice=Unknown("it"), checks=(Check("demo:vit", "", "it"),)),
        WRONG, "temporary", "--tmpfs",
    ),
    "a read-only cache": (machine(caches=READ_ONLY), NOTE, "not writable", "Mount a volume"),
    "a read-only cache, and weights to fetch": (
        machine(caches=READ_ONLY, asked=replace(ASKED, models=("demo:vit", "hf:a/b"))), WRONG, "not writable", "Mount",
    ),
    "a full disk": (machine(caches={"torch": replace(FOLDER, free=GIB)}), NOTE, "Only 1 GiB is free", "Make room"),
    "a slow decoder": (machine(pictures=(Format("JPEG", "jpg 9.0"),)), NOTE, "without libjpeg-turbo", "wheel"),
    "no decoder": (machine(pictures=(Format("JPEG", None),)), WRONG, "reads no JPEG", "wheel"),
    "no decoder of a rare format": (machine(pictures=(Format("AVIF", None),)), NOTE, "reads no AVIF", "wheel"),
    "a broken plug-in": (
        machine(pictures=(Format("HEIC", None, "heif", "pillow_heif is broken: no libheif"),)),
        WRONG, "HEIC is not read: pillow_heif is broken: no libheif", "again",
    ),
    "a taken port": (
        machine(ports=(Port("port", "127.0.0.1", 8000, "in use", is_taken=True),)), NOTE, "8000", "--port N",
    ),
    "a taken port for metrics": (
        machine(ports=(Port("metrics_port", "::1", 9000, "in use", is_taken=True),)), NOTE, "9000", "--metrics-port N",
    ),
    "a port that is not allowed": (
        machine(ports=(Port("port", "0.0.0.0", 80, "Permission denied", is_taken=False),)),
        WRONG, "Permission denied", "--port",
    ),
    "the self-test fails": (
        machine(checks=(Check("demo:vit", "", "cosines are off by 0.5"),)), WRONG, "demo:vit: cosines", "--json",
    ),
    "the self-test does not end": (
        machine(checks=Unknown("there was no answer within 180 s")), WRONG, "did not end: there was", "--json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TROUBLES)
def test_a_trouble_is_found_once_with_what_to_do(name: str) -> None:
    facts, severity, what, advice = TROUBLES[name]
    (found,) = findings(facts)
    assert found.severity is severity
    assert what in found.what
    assert advice in found.advice


WITH_RAY = replace(SOFTWARE, packages=(Package("ray", "2.60.0", "", fits=True, extra="ray"),))


def test_ray_needs_shared_memory_where_it_is_installed() -> None:
    small = Folder("/dev/shm", exists=True, is_writable=True, free=64 * 2**20)
    assert findings(machine(shared_memory=small)) == []
    (found,) = findings(machine(shared_memory=small, software=WITH_RAY))
    assert "/dev/shm has 64 MiB free" in found.what


@pytest.mark.parametrize(
    "facts",
    [
        HEALTHY,
        machine(torch=NO_CARD, nvidia=Nvidia(0, None, None)),
        machine(torch=NO_CUDA, nvidia=Nvidia(0, None, None)),
        machine(torch=replace(TORCH, vectors="DEFAULT", machine="aarch64")),
        card((9, 3)),
        cores(limit=200 * GIB, quota=2.5, swap_used=2**20),
        machine(variables={"OMP_NUM_THREADS": "1"}, asked=replace(ASKED, processes=16)),
        machine(variables={"OMP_NUM_THREADS": "8,2"}),
        machine(files=Files(None, None, needed=1536)),
        machine(caches={"torch": replace(FOLDER, exists=False, held=0)}),
        machine(checks=None),
    ],
    ids=[
        "healthy", "no card", "no card, no CUDA", "ARM", "a later card of its generation", "roomy limits",
        "processes share", "nested threads", "no limit of files", "no cache yet", "no self-test",
    ],
)  # fmt: skip
def test_nothing_is_found_where_nothing_is_wrong(facts: Facts) -> None:
    assert findings(facts) == []


def test_intermediate_code_runs_on_later_cards() -> None:
    built = replace(TORCH, architectures=("sm_90a", "compute_90"), cards=(Card("X", (12, 0), 80 * GIB, 80 * GIB),))
    assert findings(machine(torch=built)) == []


def test_what_is_wrong_comes_first() -> None:
    both = machine(variables={"OMP_NUM_THREADS": "1"}, files=Files(1, 1, needed=2))
    assert [each.severity for each in findings(both)] == [WRONG, NOTE]


def test_a_part_that_could_not_be_looked_at_hides_no_other() -> None:
    for part in fields(Facts):
        if part.name in ("variables", "files"):
            continue
        facts = machine(**{part.name: Unknown("it broke")}, files=Files(1, 1, needed=2))
        assert any("may open 1 files" in each.what for each in findings(facts)), part.name
