"""Batch norms folded into convolutions: the same values, in every library's ResNets, and nothing guessed."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import weight_norm

from encoders.adapters.registry import blueprint, load
from encoders.contract.encoder import Placement
from encoders.runtime.block import silu_, unify
from encoders.runtime.folding import fold, fold_batch_norms
from encoders.runtime.torch_encoder import TorchEncoder
from tests.encoders.runtime.test_block import BLOCKS, WIDTH, made
from tests.support.batch_norms import trained


class Hf(nn.Module):
    """transformers' ResNet, whose last feature map it gives."""

    def __init__(self, layer_type: str) -> None:
        super().__init__()
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], layer_type=layer_type
        )
        self.model = transformers.ResNetModel(config)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model(pixels).last_hidden_state
        return features


def timms(name: str, **options: object) -> nn.Module:
    model: nn.Module = timm.create_model(name, num_classes=0, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), **options)
    return model


RESNETS: dict[str, Callable[[], nn.Module]] = {
    "open_clip": lambda: ModifiedResNet([1, 1, 1, 2], output_dim=8, heads=2, image_size=64, width=8),
    "timm": lambda: timms("resnet50"),
    "timm's basic": lambda: timms("resnet18"),
    "timm's deep stem": lambda: timms("resnet50d"),
    "hf": lambda: Hf("bottleneck"),
    "hf's basic": lambda: Hf("basic"),
}


@pytest.mark.parametrize("name", RESNETS)
@torch.inference_mode()
def test_a_resnet_without_batch_norms_gives_what_it_gave(name: str) -> None:
    model = trained(RESNETS[name]())
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = model(pixels)
    norms = [module for module in model.modules() if type(module) is nn.BatchNorm2d]
    assert fold_batch_norms(model) == len(norms) > 4
    assert not [module for module in model.modules() if type(module) is nn.BatchNorm2d]
    torch.testing.assert_close(model(pixels), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


class Beside(nn.Module):
    """Lists a convolution and a norm in turn, and runs them side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) + self.bn(x)
        return out


def test_what_is_not_known_stays() -> None:
    assert fold_batch_norms(Beside()) == 0
    assert fold_batch_norms(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))) == 0
    assert fold_batch_norms(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False))) == 0
    assert fold_batch_norms(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))) == 0


def doubled(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output * 2


def hooked(place: int) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model[place].register_forward_hook(doubled)
    return model


def in_turn(*, convs: int, norms: int, apart: bool = False) -> nn.Module:
    """A convolution and a norm, and both again: of so many, in one nn.Sequential or in two."""
    first, second = [nn.Conv2d(3, 3, 1) for _ in range(convs)], [nn.BatchNorm2d(3) for _ in range(norms)]
    if apart:
        return nn.Sequential(nn.Sequential(first[0], second[0]), nn.ReLU(), nn.Sequential(first[-1], second[-1]))
    return nn.Sequential(first[0], second[0], nn.ReLU(), first[-1], second[-1])


def around_a_shared_relu() -> nn.Module:
    relu = nn.ReLU()
    return nn.Sequential(relu, nn.Conv2d(3, 3, 1), relu, nn.BatchNorm2d(3))


UNSAFE: dict[str, Callable[[], nn.Module]] = {
    "hook on the convolution": lambda: hooked(0),
    "hook on the norm": lambda: hooked(1),
    "one convolution, two norms": lambda: in_turn(convs=1, norms=2),
    "two convolutions, one norm": lambda: in_turn(convs=2, norms=1),
    "a pair twice": lambda: in_turn(convs=1, norms=1),
    "a pair in two places": lambda: in_turn(convs=1, norms=1, apart=True),
    "something known before in between": around_a_shared_relu,
    "nothing before the norm": lambda: nn.Sequential(nn.Sequential(), nn.BatchNorm2d(3)),
    "spectral_norm": lambda: nn.Sequential(spectral_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)),
    "parametrised": lambda: nn.Sequential(weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)),
}


@pytest.mark.parametrize("name", UNSAFE)
def test_what_one_weight_cannot_hold_stays(name: str) -> None:
    torch.manual_seed(0)
    model = trained(UNSAFE[name]())
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        expected = model(x)
    assert fold_batch_norms(model.requires_grad_(False)) == 0
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


def test_float32_is_computed_as_its_library_does() -> None:
    def norms(dtype: str) -> int:
        encoder = load("demo:resnet", Placement(dtype=dtype))
        assert isinstance(encoder, TorchEncoder)
        return sum(isinstance(module, nn.BatchNorm2d) for module in encoder.tower.modules())

    assert norms("bfloat16") == 0 < norms("float32")


def test_parameters_are_the_models_and_bytes_those_that_are_left() -> None:
    whole, half = (blueprint("demo:resnet", dtype=dtype).spec for dtype in ("float32", "bfloat16"))
    assert whole.parameters == half.parameters
    assert half.weights_bytes < whole.weights_bytes / 2
    assert load("demo:resnet", Placement(dtype="bfloat16")).spec.weights_bytes == half.weights_bytes


def test_the_factors_of_openais_gelu_lie_in_the_weights() -> None:
    model = made(BLOCKS["clip-quick"])
    unify(model)
    x = torch.randn(2, 5, WIDTH)
    expected = model(x)
    fold(model)
    block: Any = model[0]
    assert block.activate is silu_
    torch.testing.assert_close(model(x), expected)
    fold(model)
    torch.testing.assert_close(model(x), expected)
