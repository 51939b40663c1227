"""What a model computes beside its weights: its modules and their settings, as a fingerprint."""

import hashlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import partial

from torch import nn

_OF_ALL_MODULES = frozenset(vars(nn.Module()))
"""What torch keeps in each: parameters, hooks and the like."""


def architecture(model: nn.Module) -> str:
    """Twelve hex digits of the SHA-256 over all modules by name: their classes and settings, however they hold them.

    A checkpoint may change an activation or an epsilon in its configuration, and no weight.
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        kind = type(module)
        digest.update(f"{name} {kind.__module__}.{kind.__qualname__} {module.extra_repr()}\n".encode())
        for key in sorted(vars(module).keys() - _OF_ALL_MODULES):
            digest.update(f"{key}={''.join(_described(vars(module)[key]))}\n".encode())
    return digest.hexdigest()[:12]


def _described(value: object) -> Iterator[str]:
    """The setting in words that are the same in every process; nothing of what is no setting."""
    if isinstance(value, bool | int | float | str | None):
        yield f"{value!r},"
    elif isinstance(value, dict):
        for key, each in value.items():
            yield f"{key!r}:"
            yield from _described(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _described(each)
    elif isinstance(value, partial):
        yield from _described([value.func, value.args, value.keywords])
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _described(getattr(value, field.name))
    elif hasattr(value, "to_json_string"):  # a configuration of transformers
        yield value.to_json_string(use_diff=False)
    elif hasattr(value, "__qualname__"):  # a function or class
        yield f"{value.__module__}.{value.__qualname__},"
