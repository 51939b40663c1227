"""Access keys whose secrets the tests know."""

from pathlib import Path
from typing import Any

from service.access.keys import digest_of, key_of, written


def secret_of(name: str) -> str:
    return f"vt_{name}"


def file_of(path: Path, **keys: dict[str, Any]) -> Path:
    """A file of keys: limits by name."""
    made = [key_of(name, {"sha256": digest_of(secret_of(name)).hex(), **limits}) for name, limits in keys.items()]
    path.write_text("\n".join(map(written, made)))
    return path


def bearer(name: str) -> dict[str, str]:
    """The header that presents the key."""
    return {"authorization": f"Bearer {secret_of(name)}"}
