"""What weights can hold is no operation of its own: batch norms, and the factors of OpenAI's GELU (Block.fold).

A batch norm at inference is part of the convolution before it: one product less, and no rounding in between. A module's
own code says whether a norm reads what the convolution gives and nobody else does. So classes are known by name, and of
others only nn.Sequential, which says so itself. What is not known stays as it is, and so does what occurs in two places
or has hooks.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from encoders.runtime.block import Block
from encoders.runtime.hooks import has_hooks

_NUMBERED = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
_NAMED = (("convolution", "normalization"),)
_PAIRS = {
    "open_clip.modified_resnet.ModifiedResNet": _NUMBERED,
    "open_clip.modified_resnet.Bottleneck": _NUMBERED,
    "timm.models.resnet.ResNet": _NUMBERED,
    "timm.models.resnet.BasicBlock": _NUMBERED,
    "timm.models.resnet.Bottleneck": _NUMBERED,
    "transformers.models.resnet.modeling_resnet.ResNetConvLayer": _NAMED,
    "transformers.models.resnet.modeling_resnet.ResNetShortCut": _NAMED,
}
"""Attributes of a class: a convolution, and the norm that alone reads what it gives."""


def fold(model: nn.Module) -> None:
    """All of it, in place and in float32.

    model: in evaluation mode. To be cast afterwards: then weights are rounded once.
    """
    fold_batch_norms(model)
    for module in model.modules():
        if isinstance(module, Block):
            module.fold()


def fold_batch_norms(model: nn.Module) -> int:
    """Puts every BatchNorm2d known to follow a Conv2d into its weights, in place and in float32; how many.

    model: in evaluation mode. To be cast afterwards: then weights are rounded once.
    """
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    found = [pair for module in model.modules() for pair in _pairs(module, places)]
    for parent, conv, name in found:
        norm: nn.BatchNorm2d = getattr(parent, name)
        bias = None if conv.bias is None else conv.bias.float()
        assert norm.running_mean is not None, "it has statistics"
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight.float(),
            bias,
            norm.running_mean.float(),
            norm.running_var.float(),  # type: ignore[union-attr]  # both or neither
            norm.eps,
            norm.weight.float(),
            norm.bias.float(),
        )
        setattr(parent, name, nn.Identity())
    return len(found)


def _pairs(module: nn.Module, places: Counter[nn.Module]) -> Iterator[tuple[nn.Module, nn.Conv2d, str]]:
    """(parent, convolution, the name of its norm in the parent) of the module's own children.

    places: how often each module occurs in the model.
    """
    kind, children = type(module), module._modules  # with those that occur twice, which named_children leaves out
    names = list(_PAIRS.get(f"{kind.__module__}.{kind.__qualname__}", ()))
    if kind is nn.Sequential:
        names += pairwise(children)
    for before, name in names:
        conv, norm = children.get(before), children.get(name)
        chain = [conv]
        while type(conv) is nn.Sequential and len(conv):  # timm's deep stems
            conv = conv[-1]
            chain.append(conv)
        if type(conv) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or not _has_all(norm):
            continue
        if all(places[each] == 1 and not has_hooks(each) for each in (*chain, norm) if each is not None):
            yield module, conv, name


def _has_all(norm: nn.BatchNorm2d) -> bool:
    """Whether it has statistics, a weight and a bias."""
    return norm.affine and norm.running_mean is not None
