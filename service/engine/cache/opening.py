"""The result cache as the settings ask for it."""

import hashlib
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

from pydantic_settings import SettingsError

import encoders
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
    """A fingerprint of what is installed, and of our own code that makes numbers, which may be a working copy.

    All that is installed, though little of it changes a number: what decodes or computes is not for a list to miss.
    """
    installed = sorted(f"{each.metadata['Name']} {each.version}" for each in distributions())
    digest = hashlib.sha256("\n".join(installed).encode())
    for path in sorted(Path(encoders.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
