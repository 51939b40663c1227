"""One part of a transformers model, under the name that whole checkpoints have for it; the rest is not read."""

from typing import Any

import transformers
from torch import nn


def part_of(whole: str, name: str, architecture: str, config_name: str) -> type[nn.Module]:
    """An architecture with one part of `whole`'s.

    whole: transformers' class of checkpoints. name: the part's. architecture: its class. config_name: of its own
    configuration within the whole's. Further arguments of the architecture are arguments of the class that is given.
    """
    base: Any = getattr(transformers, whole)

    class Part(base):  # type: ignore[misc]  # transformers is Any here
        def __init__(self, config: Any, **options: Any) -> None:
            super().__init__(config)
            setattr(self, name, getattr(transformers, architecture)(getattr(config, config_name), **options))
            self.post_init()

    return Part


def all_but(name: str) -> str:
    """The pattern of all keys that are not of this part."""
    return rf"(?!{name}\.)"
