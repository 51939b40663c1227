"""The part of the machine that this process may use: cores, and a container's memory. Without torch.

The kernel's control groups hold a container to its limits, by processor time and by bytes. A process is in one group,
and the limits of the groups above it hold too. Version 2 has one tree for everything, version 1 a tree a controller.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

CGROUP = Path("/sys/fs/cgroup")
"""Where the trees are mounted. A container often sees its own group here, as the root."""
MEMBERSHIP = Path("/proc/self/cgroup")
"""Names the process' group in each tree: `ID:CONTROLLERS:/path`, where version 2 names no controllers."""


class MemoryLimit(NamedTuple):
    """Bytes that a control group may use, and that it uses."""

    limit: int
    used: int


def available_cores(*, cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """The cores that this process can keep busy: those it may run on, or the processor time it may take if less.

    A quota of one core and a half is rounded up to two. At least 1. os.cpu_count counts the machine's cores, whoever
    may use them.
    """
    quotas = (math.ceil(quota) for quota in core_quotas(cgroup=cgroup, membership=membership))
    return max(1, min([cores_to_run_on(), *quotas]))


def cores_to_run_on() -> int:
    """The cores that the scheduler may put this process on (taskset, cpusets)."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS or Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def core_quotas(*, cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> Iterator[float]:
    """Cores' worth of processor time that each control group above this process with a quota may take."""
    for folder in _groups(cgroup, membership, None):
        numbers = _numbers(folder / "cpu.max")  # "QUOTA PERIOD", in microseconds; without a quota "max PERIOD"
        if len(numbers) == 2 and numbers[1] > 0:
            yield numbers[0] / numbers[1]
    for folder in _groups(cgroup, membership, "cpu"):
        quota, period = _numbers(folder / "cpu.cfs_quota_us"), _numbers(folder / "cpu.cfs_period_us")
        if quota and period and quota[0] > 0 and period[0] > 0:  # without a quota it is -1
            yield quota[0] / period[0]


def memory_limits(*, cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> list[MemoryLimit]:
    """The limit and the use of each control group above this process that has a limit."""
    found = []
    for folder, limit, used in (
        *((folder, "memory.max", "memory.current") for folder in _groups(cgroup, membership, None)),
        *(
            (folder, "memory.limit_in_bytes", "memory.usage_in_bytes")
            for folder in _groups(cgroup, membership, "memory")
        ),
    ):
        limits, uses = _numbers(folder / limit), _numbers(folder / used)
        if limits and uses:
            found.append(MemoryLimit(limits[0], uses[0]))
    return found


def host_memory() -> tuple[int, int]:
    """Bytes of the machine's memory in all, and those that are free now; the container's where it has less."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for limit, used in memory_limits():
        total, free = min(total, limit), min(free, max(0, limit - used))
    return total, free


def _groups(cgroup: Path, membership: Path, controller: str | None) -> Iterator[Path]:
    """The folder of the process' group and those above it, up to the root. controller: None for version 2."""
    root = cgroup if controller is None else cgroup / controller
    own = next((path for names, path in _memberships(membership) if _is_of(controller, names)), "/")
    if ".." in Path(own).parts:  # a group outside what this container sees
        own = "/"
    folder = root / own.lstrip("/")
    yield folder
    while folder != root:
        folder = folder.parent
        yield folder


def _memberships(membership: Path) -> Iterator[tuple[str, str]]:
    """(controllers, path) of each tree."""
    try:
        lines = os.fsdecode(membership.read_bytes()).split("\n")  # a group's name is any bytes but this
    except OSError:  # no Linux
        return
    for line in lines:
        if line:
            _, names, path = line.split(":", 2)
            yield names, path


def _is_of(controller: str | None, names: str) -> bool:
    return names == "" if controller is None else controller in names.split(",")


def _numbers(file: Path) -> list[int]:
    """The whole numbers in a file; none if it is not there or says `max`."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []
