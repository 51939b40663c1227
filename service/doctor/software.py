"""The versions that are installed, against those that visiontower needs by its own metadata. Imports none of them."""

import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from service.doctor.facts import Package, Software

_NOT_TO_RUN = ("dev",)
"""Extras for work on visiontower itself."""
PLUGINS = "visiontower.encoders"


def software() -> Software:
    """All that is installed, and what is missing."""
    copies: dict[str, dict[str, None]] = {}
    for each in metadata.distributions():
        name = each.metadata["Name"]  # None where an installation was broken off
        if name:
            copies.setdefault(canonicalize_name(name), {})[f"{each.version} in {each.locate_file('')}"] = None
    own = metadata.distribution("visiontower")
    return Software(
        visiontower=own.version,
        python=platform.python_version(),
        folder=sys.prefix,
        system=platform.platform(terse=True),
        packages=tuple(_package(*each, copies) for each in _requirements(own)),
        plugins=tuple(
            dict.fromkeys(
                f"{point.dist.name} {point.dist.version}"
                for point in metadata.entry_points(group=PLUGINS)
                if point.dist is not None
            )
        ),
        installed_at=_installed_at(own),
        now=time.time(),
    )


def _requirements(own: metadata.Distribution) -> Iterator[tuple[Requirement, str | None]]:
    """Those for this machine, each with the extra it belongs to."""
    extras = [each for each in own.metadata.get_all("Provides-Extra") or () if each not in _NOT_TO_RUN]
    for each in map(Requirement, own.requires or ()):
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            yield each, None
            continue
        for extra in extras:
            if each.marker.evaluate({"extra": extra}):
                yield each, extra


def _package(requirement: Requirement, extra: str | None, copies: dict[str, dict[str, None]]) -> Package:
    found = tuple(copies.get(canonicalize_name(requirement.name), ()))
    version = metadata.version(requirement.name) if found else None
    return Package(
        name=requirement.name,
        version=version,
        needs=str(requirement.specifier),
        fits=version is not None and requirement.specifier.contains(version, prereleases=True),
        extra=extra,
        copies=found if len(found) > 1 else (),
    )


def _installed_at(own: metadata.Distribution) -> float:
    """When the installer wrote its notes, by the clock of then; 0 if it wrote none."""
    notes = own.locate_file(f"visiontower-{own.version}.dist-info/RECORD")
    return os.path.getmtime(str(notes)) if os.path.exists(str(notes)) else 0.0
