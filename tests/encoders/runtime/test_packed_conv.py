"""Convolutions laid out for CPUs: torch's values whatever the kind, the size and the batch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from encoders.runtime.packed_conv import PackedConv, PackedWindows, pack_convolutions
from encoders.runtime.packed_linear import is_packable
from encoders.runtime.trace import Trace

pytestmark = pytest.mark.skipif(not is_packable(torch.bfloat16), reason="this CPU has no kernels for bfloat16")

KINDS: dict[str, dict[str, Any]] = {
    "1 x 1": {"kernel_size": 1},
    "1 x 1, every other pixel": {"kernel_size": 1, "stride": 2},
    "1 x 1, groups": {"kernel_size": 1, "groups": 4},
    "patches": {"kernel_size": 2, "stride": 2},
    "patches with gaps": {"kernel_size": (2, 3), "stride": (3, 4)},
    "3 x 3": {"kernel_size": 3, "padding": 1},
    "3 x 3, no bias": {"kernel_size": 3, "padding": 1, "bias": False},
    "3 x 3, every other pixel": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 4},
    "depthwise": {"kernel_size": 7, "padding": 3, "groups": 32},
    "same": {"kernel_size": 3, "padding": "same"},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}
SIZES = [(1, 5, 9), (1, 7, 7), (2, 14, 14), (3, 11, 8), (16, 9, 9)]
"""Images, rows and columns."""


def convolution(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, **options).to(torch.bfloat16).requires_grad_(False)


def noise(batch: int, channels: int, rows: int, cols: int) -> Tensor:
    return torch.randn(batch, channels, rows, cols, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_convolution_gives_what_torchs_gives(kind: str) -> None:
    conv = nn.Sequential(convolution(32, 64, **KINDS[kind]))
    seen = [noise(batch, 32, rows, cols) for batch, rows, cols in SIZES]
    with Trace() as plain:
        expected = [conv(x) for x in seen]
    pack_convolutions(conv)
    for layout in (torch.contiguous_format, torch.channels_last):
        with Trace() as packed:
            found = [conv(x.contiguous(memory_format=layout)) for x in seen]
        assert packed.flops == plain.flops
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.02, atol=0.02)


@torch.inference_mode()
def test_channels_of_a_pixel_lie_together_from_the_first_convolution_on() -> None:
    model = nn.Sequential(
        convolution(3, 64, kernel_size=7, stride=2, padding=3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        convolution(64, 64, kernel_size=1),
        convolution(64, 64, kernel_size=3, padding=1),
        convolution(64, 64, kernel_size=7, padding=3, groups=64),
        convolution(64, 32, kernel_size=2, stride=2),
    )
    pack_convolutions(model)
    x = noise(2, 3, 64, 64)
    for layer in model:
        x = layer(x)
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_settings_stay_and_weights_are_held_once() -> None:
    """Libraries ask a convolution for its kernel and for the dtype of its weight."""
    model = nn.Sequential(convolution(64, 64, kernel_size=3, padding=1), convolution(64, 32, kernel_size=2, stride=2))
    pack_convolutions(model)
    assert isinstance(model[1], PackedWindows)
    assert (model[1].kernel_size, model[1].stride, model[1].out_channels) == ((2, 2), (2, 2), 32)
    assert model[1].weight.dtype == torch.bfloat16
    assert [name for name, _ in model[1].named_parameters()] == ["bias"]


@pytest.mark.parametrize("channels", [96, 128])
def test_packed_weights_lie_as_any_size_wants_them(channels: int) -> None:
    """Else each forward would bring them from one order into another, which takes longer than the convolution."""
    conv = convolution(channels, channels, kernel_size=3, padding=1)
    plain = conv.weight.detach().clone()
    pack_convolutions(conv)
    if not isinstance(conv, PackedConv):
        pytest.skip("its order depends on the size")

    def order(batch: int, side: int) -> list[int]:
        onednn = torch.ops.mkldnn
        size = [batch, channels, side, side]
        weight = onednn._reorder_convolution_weight(plain, conv.padding, conv.stride, conv.dilation, 1, size)
        found: list[int] = onednn._get_mkldnn_serialized_md(weight).tolist()
        return found

    orders = {tuple(order(batch, side)) for batch in (1, 3, 16) for side in (9, 20, 35, 64)}
    assert orders == {tuple(torch.ops.mkldnn._get_mkldnn_serialized_md(conv.weight).tolist())}


def test_weights_that_are_made_in_each_forward_stay() -> None:
    model = nn.Sequential(spectral_norm(convolution(8, 8, kernel_size=3))).eval()
    model.requires_grad_(False)
    x = noise(2, 8, 6, 5)
    expected = model(x)
    pack_convolutions(model)
    torch.testing.assert_close(model(x), expected)
