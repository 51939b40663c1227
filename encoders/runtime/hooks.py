"""Whether something listens to a module: then nothing may be put in its place. Knows torch's hooks; knows no model."""

from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Whether its forward runs hooks. torch's older weight_norm and spectral_norm are such: they make its weights."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
