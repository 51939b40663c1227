"""A Tower and its TextTower on one device in one dtype: what a forward computes there.

TorchEncoder runs it over real tensors and TorchBlueprint over tensors on meta, so what is planned is what is run. Knows
torch; what goes to the device and what comes back is the encoder's.
"""

from dataclasses import replace
from typing import overload

import torch
from torch import Tensor, nn

from encoders.contract.errors import OutputNotOffered
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Outputs
from encoders.runtime.attention import pin, straighten
from encoders.runtime.block import only_first, unify
from encoders.runtime.device import compute_dtype
from encoders.runtime.folding import fold
from encoders.runtime.int8 import Observed, quantized
from encoders.runtime.tower import Features, TextTower, Tower


class PlacedTowers:
    """The towers, moved and cast, with the spec that says so.

    spec: as the adapter knows it; dtype, device, parameters and weights_bytes are filled in here. Parameters are the
        model's; weights_bytes are of what is left of them where batch norms are folded.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        tower: Tower,
        text: TextTower | None,
        *,
        device: str,
        dtype: str,
        observed: Observed | None = None,
    ) -> None:
        """observed: for int8: of the same towers in float32."""
        self._device = torch.device(device)
        self._dtype = compute_dtype(dtype)
        parts = as_module(tower, text).eval().requires_grad_(False)
        unify(parts)
        parameters = sum(parameter.numel() for parameter in parts.parameters())
        if dtype != "float32":  # the reference: computed as its library does
            fold(parts)
        put = None if observed is None else quantized(tower, observed, encoder_id=spec.id, dtype=self._dtype)
        parts.to(dtype=self._dtype).to(device=self._device)  # cast first: in one step the device would hold both
        if put is not None:
            put()
        pin()
        straighten(parts)
        every = (*parts.parameters(), *parts.buffers())
        unique = {id(each) if each.is_mkldnn else each.untyped_storage()._cdata: each for each in every}.values()
        self.tower = tower
        self.text = text
        self.spec = replace(
            spec,
            dtype=dtype,
            device=device,
            parameters=parameters,
            weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in unique),
        )
        self._lines: tuple[Tensor, Tensor] | None = None
        self._mean = torch.tensor(spec.preprocessing.mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(spec.preprocessing.std, device=self._device).view(3, 1, 1)

    def run(self, pixels: Tensor, outputs: Outputs) -> Features:
        """uint8 [B, H, W, 3] -> features on the device, each compact, as they go to the host."""
        block = self.tower.class_block if self._reads_class_alone(outputs) else None
        with only_first(block, self.spec.prefix_tokens):
            features: Features = self.tower(self.normalise(pixels), outputs)
        return replace(features, tokens=_compact(features.tokens), pooled=_compact(features.pooled))

    def _reads_class_alone(self, outputs: Outputs) -> bool:
        """Whether nothing but the class token is read of the last block."""
        return not outputs.tokens or (outputs.layer is not None and outputs.layer < self.spec.layers - 1)

    def run_text(self, ids: Tensor) -> Tensor:
        """int64 [N, context_length] -> [N, embed_dim] on the device, compact. Raises OutputNotOffered."""
        embedded: Tensor = self.require_text()(ids.to(self._device))
        return _compact(embedded)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, 3, H, W] in the tower's dtype on its device.

        In the order of torchvision's ToTensor and Normalize, in float32, so that values are equal to theirs.
        """
        batch, height, width, channels = pixels.shape
        shape: tuple[int, ...] = batch, channels, height, width
        mean, std = self._mean, self._std
        if self._lines is not None:
            shape = batch, height, width * channels
            mean, std = (line[: width * channels] for line in self._lines)
        # What lives through the forward is made first: made last it would lie behind the hole the others leave.
        given = torch.empty(shape, dtype=self._dtype, device=self._device)
        values = given if self._dtype == torch.float32 else torch.empty_like(given, dtype=torch.float32)
        uploaded = self.upload(pixels)
        values.copy_(uploaded.permute(0, 3, 1, 2) if self._lines is None else uploaded.reshape(shape))
        values.div_(255).sub_(mean).div_(std)
        given = given.copy_(values) if values is not given else given
        return given if self._lines is None else given.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def keep_channels_together(self) -> None:
        """From now on `normalise` gives tensors whose channels come last in memory: packed convolutions read them so.

        Then nothing is turned round. Whole lines are normalised in one go, so there is a mean and a std for each number
        of the widest.
        """
        widest = max(self.spec.image_size.width, self.spec.resolutions.maximum.width)
        self._lines = self._mean.flatten().repeat(widest), self._std.flatten().repeat(widest)

    def upload(self, pixels: Tensor) -> Tensor:
        """The pixels on the device."""
        return pixels.to(self._device)

    def require_text(self) -> TextTower:
        """The text tower. Raises OutputNotOffered if there is none."""
        if self.text is None:
            raise OutputNotOffered(encoder=self.spec.id, output="text embeddings", reason="it has no text tower")
        return self.text


def as_module(tower: Tower, text: TextTower | None) -> nn.ModuleDict:
    """Both as one module, whose weights are named tower.... and text....."""
    return nn.ModuleDict({"tower": tower} | ({"text": text} if text is not None else {}))


@overload
def _compact(values: Tensor) -> Tensor: ...


@overload
def _compact(values: None) -> None: ...


def _compact(values: Tensor | None) -> Tensor | None:
    """The values contiguous, in a storage of their own: a view would keep all of a larger tensor alive."""
    if values is None:
        return None
    packed = values.contiguous()
    return packed.clone() if packed.untyped_storage().nbytes() > packed.nbytes else packed
