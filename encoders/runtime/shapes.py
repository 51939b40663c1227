"""A model without its bytes, whose forwards give shapes; and whether a tower gives the outputs that its spec offers."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from encoders.contract.errors import in_brief
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import ImageSize, Outputs, TokenKind
from encoders.runtime.parts import TorchParts
from encoders.runtime.tower import FINAL, Features, Tower


def hollow(model: Any) -> Any:
    """The model with weights that hold no bytes: itself if it has no others."""
    if all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        return model
    without = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    without |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, without)


def tried(parts: TorchParts) -> TorchParts:
    """The parts, with their own size alone where their tower does not run at another that they offer.

    A forward on device meta, and one as far as the first layer, where positions have met the grid: a twentieth of a
    ViT-L's load. Raises what the tower raises at its own size, of another number of channels, for one.
    """
    spec, tower = parts.spec, hollow(parts.tower).eval()
    _run(tower, spec.image_size, FINAL)
    other = _another(spec)
    if other is None:
        return parts
    try:
        _run(tower, other, Outputs(tokens=TokenKind.HIDDEN, layer=0))
    except Exception:  # every library refuses in its own way
        return replace(parts, spec=replace(spec, resolutions=replace(spec.resolutions, only=spec.image_size)))
    return parts


def tried_projection(parts: TorchParts) -> TorchParts:
    """The parts. Raises ValueError if their tower cannot project its own size, or gives other tokens than it says.

    A forward on device meta.
    """
    spec, outputs = parts.spec, parts.spec.outputs(tokens=TokenKind.PROJECTED)
    try:
        tokens = _run(hollow(parts.tower).eval(), spec.image_size, outputs).tokens
    except Exception as error:
        raise ValueError(f"with its settings nothing can be projected ({in_brief(error)})") from error
    given = None if tokens is None else list(tokens.shape)
    if given != (said := [1, spec.token_count(spec.image_size, outputs), spec.projected_size]):
        raise ValueError(f"with its settings projected tokens are {given}, not {said}")
    return parts


def _run(tower: Tower, size: ImageSize, outputs: Outputs) -> Features:
    with torch.inference_mode(), torch.device("cpu"):  # as in a forward that is planned: some ask the host for numbers
        features: Features = tower(torch.empty(1, 3, *size, device="meta"), outputs)
    return features


def _another(spec: EncoderSpec) -> ImageSize | None:
    """A size of other proportions that it offers; None if it offers none."""
    (height, width), step = spec.image_size, spec.patch_size
    for size in (ImageSize(height + 2 * step.height, width + step.width), ImageSize(step.height, 2 * step.width)):
        if spec.resolutions.problem(size) is None:
            return size
    return None
