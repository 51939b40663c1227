"""The fingerprint of what is computed with the weights: equal in every process, another for another setting."""

import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPVisionConfig

from encoders import load
from encoders.runtime.architecture import architecture


@dataclass(frozen=True)
class Way:
    crop: float


class Model(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4, eps=settings.pop("eps", 1e-5))
        for name, value in settings.items():
            setattr(self, name, value)


def model(**changes: Any) -> Model:
    settings: dict[str, Any] = {
        "act": functional.gelu,
        "_layer": -2,
        "way": Way(0.9),
        "quick": partial(functional.gelu, approximate="none"),
        "config": CLIPVisionConfig(hidden_act="gelu"),
        "options": {"mean": [0.5, None]},
        "inner": nn.GELU(),
    }
    return Model(**{**settings, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"eps": 1e-6},
        {"act": torch.relu},
        {"_layer": -1},
        {"way": Way(1.0)},
        {"quick": partial(functional.gelu, approximate="tanh")},
        {"config": CLIPVisionConfig(hidden_act="quick_gelu")},
        {"options": {"mean": [0.5, 0.5]}},
        {"inner": nn.SiLU()},
        {"inner": nn.GELU(approximate="tanh")},
        {"more": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_setting_is_another_architecture(change: dict[str, Any]) -> None:
    assert architecture(model()) == architecture(model())
    assert architecture(model(**change)) != architecture(model())


def test_weights_have_no_part_in_it() -> None:
    changed = model()
    nn.init.ones_(changed.norm.bias)
    assert architecture(changed.eval()) == architecture(model())


@pytest.mark.slow
def test_it_is_the_same_in_another_process() -> None:
    program = "from encoders import load; print(*(load(f'demo:{x}').spec.architecture for x in ('vit', 'resnet')))"
    there = subprocess.check_output([sys.executable, "-c", program], text=True).split()
    assert there == [load(f"demo:{name}").spec.architecture for name in ("vit", "resnet")]
