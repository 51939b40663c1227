"""Batch norms as if trained."""

import torch
from torch import nn


def trained(model: nn.Module) -> nn.Module:
    """The model in evaluation mode; its batch norms have other statistics, weights and biases than new ones."""
    generator = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            with torch.no_grad():
                norm.running_mean.normal_(0, 0.2, generator=generator)
                norm.running_var.uniform_(0.3, 2, generator=generator)
                norm.weight.uniform_(0.5, 1.5, generator=generator)
                norm.bias.normal_(0, 0.2, generator=generator)
    return model.eval()
