"""The cores that this process may use."""

import os


def available_cores() -> int:
    """At least 1."""
    return os.cpu_count() or 1
