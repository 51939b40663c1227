"""The path of a request as the app knows it, wherever the app is mounted."""

from starlette.types import Scope


def own_path(scope: Scope) -> str:
    """Without the prefix under which a proxy serves the app (ASGI's root_path), which `path` has in front."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "").rstrip("/")
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path
