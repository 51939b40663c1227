"""What reads pictures here: Pillow's libraries, and packages beside it."""

from importlib.util import find_spec

from PIL import features

from encoders.images.decode import FORMATS, PLUGINS
from service.doctor.facts import TURBO, Format

_LIBRARIES = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp", "AVIF": "avif", "TIFF": "libtiff"}
"""Pillow's names; it reads the other formats by itself."""


def pictures() -> tuple[Format, ...]:
    """Every format that could be read, and what reads it."""
    found = [Format(name, _library(name)) for name in FORMATS]
    for plugin in PLUGINS.values():
        found.append(Format(plugin.name, plugin.package if find_spec(plugin.package) else None, plugin.extra))
    return tuple(found)


def _library(name: str) -> str | None:
    feature = _LIBRARIES.get(name)
    if feature is None:
        return "Pillow"
    if not features.check(feature):
        return None
    if name == "JPEG" and features.check("libjpeg_turbo"):
        return f"{TURBO} {features.version('libjpeg_turbo')}"
    return f"{feature} {features.version(feature) or ''}".strip()
