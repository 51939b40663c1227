"""Looks at everything. Each part is looked at by itself: where one breaks, the others are still told."""

from functools import partial

from service.doctor import caches, devices, environment, machine, pictures, software
from service.doctor.apart import Look, apart
from service.doctor.facts import Facts, Unknown, looked
from service.doctor.self_test import self_test

_WITHIN_S = 180.0
"""Of one look. The longest, the import of torch and the self-test, take seconds; a cold disk or many cards, longer."""


def examine(*, runs_encoders: bool) -> Facts:
    """All the facts. runs_encoders: whether the self-test is run."""
    asked = looked(environment.asked)
    looks: list[Look] = [devices.nvidia, devices.torch]
    if not isinstance(asked, Unknown):
        looks.append(devices.choice)
        if runs_encoders:
            looks.append(self_test)
    found = apart(looks, within_s=_WITHIN_S)
    return Facts(
        software=looked(software.software),
        variables=environment.variables(),
        asked=asked,
        torch=found[devices.torch],
        nvidia=found[devices.nvidia],
        choice=found.get(devices.choice, asked),
        machine=looked(machine.machine),
        files=asked if isinstance(asked, Unknown) else looked(partial(machine.open_files, asked.connections)),
        shared_memory=looked(partial(machine.folder, machine.SHARED_MEMORY)),
        temporary=looked(machine.temporary_folder),
        pictures=looked(pictures.pictures),
        caches=looked(caches.caches),
        ports=asked if isinstance(asked, Unknown) else looked(partial(machine.ports, asked)),
        checks=found.get(self_test, asked) if runs_encoders else None,
    )
