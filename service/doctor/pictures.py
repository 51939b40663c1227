"""What reads pictures here: Pillow's libraries, and packages beside it."""

from functools import partial
from importlib import import_module
from importlib.util import find_spec

from PIL import features

from encoders.images.decode import FORMATS, PLUGINS, Plugin
from service.doctor.facts import TURBO, Format, Unknown, looked

_LIBRARIES = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp", "AVIF": "avif", "TIFF": "libtiff"}
"""Pillow's names; it reads the other formats by itself."""


def pictures() -> tuple[Format, ...]:
    """Every format that could be read, and what reads it."""
    found = [Format(name, _library(name)) for name in FORMATS]
    for plugin in PLUGINS.values():
        found.append(_format(plugin))
    return tuple(found)


def _format(plugin: Plugin) -> Format:
    """It is imported: a package may be there without the libraries that it needs."""
    if not find_spec(plugin.package):
        return Format(plugin.name, None, plugin.extra)
    trouble = looked(partial(import_module, plugin.package))
    if isinstance(trouble, Unknown):
        return Format(plugin.name, None, plugin.extra, f"{plugin.package} is broken: {trouble.could_not_tell}")
    return Format(plugin.name, plugin.package, plugin.extra)


def _library(name: str) -> str | None:
    feature = _LIBRARIES.get(name)
    if feature is None:
        return "Pillow"
    if not features.check(feature):
        return None
    if name == "JPEG" and features.check("libjpeg_turbo"):
        return f"{TURBO} {features.version('libjpeg_turbo')}"
    return f"{feature} {features.version(feature) or ''}".strip()
