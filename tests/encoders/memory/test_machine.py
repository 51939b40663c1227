"""The cores and the memory of a container, read from control groups that these tests write to a folder."""

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.memory.machine import MemoryLimit, available_cores, memory_limits

ROOT_GROUP = "0::/\n"


def cores_of_the_process() -> int:
    """As the scheduler has it, without any group."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def cores(folder: Path, files: dict[str, str], *, membership: str = ROOT_GROUP) -> int:
    write(folder, {"self": membership, **files})
    return available_cores(cgroup=folder, membership=folder / "self")


def limits(folder: Path, files: dict[str, str], *, membership: str = ROOT_GROUP) -> list[MemoryLimit]:
    write(folder, {"self": membership, **files})
    return memory_limits(cgroup=folder, membership=folder / "self")


V1_GROUP = "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("files", "membership"),
    [
        ({"cpu.max": "100000 100000\n"}, ROOT_GROUP),
        ({"cpu.max": "10000 100000\n"}, ROOT_GROUP),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1_GROUP),
        ({"cpu/docker/abc/cpu.cfs_quota_us": "50000", "cpu/docker/abc/cpu.cfs_period_us": "100000"}, V1_GROUP),
        ({"app/cpu.max": "max 100000\n", "cpu.max": "100000 100000"}, "0::/app\n"),
        ({"app/web/cpu.max": "max 100000\n", "app/cpu.max": "90000 100000\n"}, "0::/app/web\n"),
        ({"cpu.max": "100000 100000"}, "0::/../elsewhere\n"),
    ],
    ids=["v2", "v2-part", "v1-container", "v1-host", "v2-above", "v2-two-above", "v2-outside"],
)
def test_a_quota_of_at_most_one_core_leaves_one(tmp_path: Path, files: dict[str, str], membership: str) -> None:
    assert cores(tmp_path, files, membership=membership) == 1


@given(quota=st.integers(1_000, 10_000_000), period=st.integers(1_000, 1_000_000))
def test_a_quota_is_rounded_up_and_never_exceeds_the_cores(
    tmp_path_factory: pytest.TempPathFactory, quota: int, period: int
) -> None:
    found = cores(tmp_path_factory.mktemp("cgroup"), {"cpu.max": f"{quota} {period}\n"})
    assert found == min(math.ceil(quota / period), cores_of_the_process())


@pytest.mark.parametrize(
    ("files", "membership"),
    [
        ({}, ROOT_GROUP),
        ({"cpu.max": "max 100000\n"}, ROOT_GROUP),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, V1_GROUP),
        ({"cpu.max": "nonsense"}, ROOT_GROUP),
        ({"other/cpu.max": "10000 100000\n"}, "0::/app\n"),
    ],
    ids=["nothing", "v2-max", "v1-none", "unreadable", "another-group"],
)
def test_without_a_quota_the_cores_it_may_run_on_count(tmp_path: Path, files: dict[str, str], membership: str) -> None:
    assert cores(tmp_path, files, membership=membership) == cores_of_the_process()


def test_without_control_groups_the_cores_it_may_run_on_count(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert available_cores(cgroup=absent, membership=absent) == cores_of_the_process()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there is no affinity to set")
def test_affinity_counts(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cores(tmp_path, {}) == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_the_memory_limit_of_a_container_comes_with_its_use(tmp_path: Path) -> None:
    assert limits(tmp_path, {"memory.max": "1000\n", "memory.current": "400\n"}) == [MemoryLimit(1000, 400)]


def test_version_1_has_a_tree_for_memory(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": "1000\n", "memory/memory.usage_in_bytes": "400\n"}
    assert limits(tmp_path, files, membership=V1_GROUP) == [MemoryLimit(1000, 400)]


def test_the_limits_of_all_groups_above_hold(tmp_path: Path) -> None:
    files = {
        "app/web/memory.max": "max\n",
        "app/web/memory.current": "1\n",
        "app/memory.max": "500\n",
        "app/memory.current": "2\n",
        "memory.max": "900\n",
        "memory.current": "3\n",
    }
    found = limits(tmp_path, files, membership="0::/app/web\n")
    assert found == [MemoryLimit(500, 2), MemoryLimit(900, 3)]


def test_the_name_of_a_group_is_any_bytes(tmp_path: Path) -> None:
    (tmp_path / "self").write_bytes(b"0::/web\xff\r\x0c\n")
    group = tmp_path / os.fsdecode(b"web\xff\r\x0c")
    group.mkdir()
    (group / "memory.max").write_text("1000")
    (group / "memory.current").write_text("400")
    assert memory_limits(cgroup=tmp_path, membership=tmp_path / "self") == [MemoryLimit(1000, 400)]


def test_without_a_memory_limit_there_is_none(tmp_path: Path) -> None:
    assert limits(tmp_path, {"memory.max": "max\n", "memory.current": "400\n"}) == []
