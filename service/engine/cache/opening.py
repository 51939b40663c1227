"""The result cache as the settings ask for it."""

import hashlib
from collections.abc import Callable
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from pydantic_settings import SettingsError

from encoders.adapters.registry import schemes
from service.engine.cache.disk import Disk
from service.engine.cache.results import ResultCache
from service.settings import Settings
from service.telemetry.metrics import Metrics


def opened(settings: Settings, *, hardware: Callable[[], str], metrics: Metrics) -> ResultCache | None:
    """None if it is off. hardware: asked where rows outlive the process. Raises SettingsError for its folder."""
    if not settings.cache:
        return None
    about = (f"exact pixels: {settings.exact_pixels}", f"most pixels: {settings.max_image_pixels}")
    if settings.cache_dir is None:
        return ResultCache(settings.cache, about=about, metrics=metrics)
    try:
        disk = Disk(Path(settings.cache_dir), settings.cache_disk)
    except OSError as error:
        raise SettingsError(f"cache_dir {settings.cache_dir} cannot be written to: {error.strerror}.") from error
    return ResultCache(settings.cache, about=(*about, hardware(), _software()), metrics=metrics, disk=disk)


def _software() -> str:
    """A fingerprint of what is installed, and of the code of encoders, which may be a working copy.

    All that is installed, though little of it changes a number: what decodes or computes is not for a list to miss.
    """
    installed = sorted(f"{each.metadata['Name']} {each.version}" for each in distributions())
    digest = hashlib.sha256("\n".join(installed).encode())
    for package in sorted({entry.module.partition(".")[0] for entry in schemes().values()}):
        for path in _modules(package):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _modules(package: str) -> list[Path]:
    """The files of a package, or of a module that is one file. None if it is not there."""
    found = find_spec(package)
    if found is None:
        return []
    if found.submodule_search_locations is None:
        return [Path(found.origin)] if found.has_location and found.origin else []
    return sorted(path for folder in found.submodule_search_locations for path in Path(folder).rglob("*.py"))
