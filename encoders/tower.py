"""What the torch adapters share: pixels in, features out, and the host at both ends.

A Tower wraps one library's vision model and answers Outputs with Features; TorchEncoder owns device and dtype and turns
a Tower (with a TextTower where there is one) into an Encoder. Third-party encoders subclass Tower and are done.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import ml_dtypes
import torch
from PIL import Image
from torch import Tensor, nn

from encoders.errors import EncoderFailed, OutputNotOffered, VisiontowerError, WeightsError
from encoders.preprocess import preprocess
from encoders.types import Encoded, EncoderSpec, Floats, Grid, ImageSize, Outputs, Pixels, Placement, TokenIds

MAX_GRID = 64
"""Side of the largest patch grid offered: 4096 tokens an image."""

MAX_SIDE = 2048
"""Largest side in pixels offered, whatever the patch size."""


def largest_size(patch_size: ImageSize) -> ImageSize:
    """The largest input offered for a patch size (or CNN stride): MAX_GRID patches a side, MAX_SIDE pixels at most."""
    return ImageSize(*(min(MAX_GRID * patch, MAX_SIDE // patch * patch) for patch in patch_size))


@dataclass(frozen=True)
class Features:
    """What a tower gives, on its device; the fields are those of Encoded."""

    grid: Grid
    prefix_tokens: int = 0
    tokens: Tensor | None = None
    pooled: Tensor | None = None


class Tower(nn.Module, ABC):
    """A vision tower that can answer Outputs."""

    @abstractmethod
    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        """Features of a batch.

        pixels: [B, 3, H, W], normalised as the spec's preprocessing says, in the tower's dtype and on its device; the
        size is one the spec's resolutions allow. Only what `outputs` asks for is computed.
        """


class TextTower(nn.Module, ABC):
    """A text tower with its tokenizer."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> int64 [N, context_length] on the CPU, truncated; called from any thread."""

    @abstractmethod
    def forward(self, ids: Tensor) -> Tensor:
        """int64 [N, context_length] -> [N, embed_dim], not normalised."""


def to_patches(feature_map: Tensor) -> Tensor:
    """A CNN's feature map [B, C, rows, cols] as patch tokens [B, rows * cols, C], row-major."""
    return feature_map.flatten(2).transpose(1, 2)


class TorchEncoder:
    """An Encoder over a Tower.

    spec: as the adapter knows it; dtype, device, parameters, weights_bytes and revision are filled in here.
    """

    def __init__(self, spec: EncoderSpec, tower: Tower, text: TextTower | None = None, *, placement: Placement) -> None:
        self._device = torch.device(placement.device)
        self._dtype: torch.dtype = getattr(torch, placement.dtype)
        parts = (
            nn.ModuleDict({"tower": tower} | ({"text": text} if text is not None else {})).eval().requires_grad_(False)
        )
        revision = fingerprint(parts.state_dict())
        parts.to(device=self._device, dtype=self._dtype)
        unique = {tensor.data_ptr(): tensor for tensor in (*parts.parameters(), *parts.buffers())}.values()
        self.tower = tower
        self.text = text
        self.spec = replace(
            spec,
            dtype=placement.dtype,
            device=placement.device,
            parameters=sum(parameter.numel() for parameter in parts.parameters()),
            weights_bytes=sum(tensor.numel() * tensor.element_size() for tensor in unique),
            revision=revision,
        )
        self._mean = torch.tensor(spec.preprocessing.mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(spec.preprocessing.std, device=self._device).view(3, 1, 1)

    def preprocess(self, image: Image.Image, size: ImageSize) -> Pixels:
        """As Encoder.preprocess."""
        return preprocess(image, self.spec.preprocessing, size)

    def tokenize(self, texts: Sequence[str]) -> TokenIds:
        """As Encoder.tokenize."""
        ids: TokenIds = self._require_text().tokenize(texts).numpy()
        return ids

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        """As Encoder.encode."""
        with self._running():
            features = self.tower(self.normalise(torch.from_numpy(pixels)), outputs)
            return Encoded(
                grid=features.grid,
                prefix_tokens=features.prefix_tokens,
                tokens=None if features.tokens is None else to_host(features.tokens),
                pooled=None if features.pooled is None else to_host(features.pooled),
            )

    def encode_text(self, ids: TokenIds) -> Floats:
        """As Encoder.encode_text."""
        text = self._require_text()
        with self._running():
            return to_host(text(torch.from_numpy(ids).to(self._device)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, 3, H, W] in the tower's dtype on its device.

        In the order of torchvision's ToTensor and Normalize, in float32, so that values are equal to theirs.
        """
        channels_first = pixels.to(self._device).permute(0, 3, 1, 2).contiguous()
        values = channels_first.float().div_(255).sub_(self._mean).div_(self._std)
        return values.to(self._dtype)

    def _require_text(self) -> TextTower:
        if self.text is None:
            raise OutputNotOffered(encoder=self.spec.id, output="text embeddings", reason="it has no text tower")
        return self.text

    @contextmanager
    def _running(self) -> Iterator[None]:
        try:
            with torch.inference_mode():
                yield
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            raise EncoderFailed(f"The forward of {self.spec.id} failed.", model=self.spec.id) from error


def to_host(values: Tensor) -> Floats:
    """A tensor as a NumPy array of the same dtype; bfloat16 as ml_dtypes.bfloat16."""
    host = values.detach().contiguous().cpu()
    if host.untyped_storage().nbytes() > host.nbytes:  # a view would keep all of a larger tensor alive
        host = host.clone()
    if host.dtype == torch.bfloat16:
        array: Floats = host.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return array
    plain: Floats = host.numpy()
    return plain


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Twelve hex digits of the SHA-256 over all weights, by name, as loaded: equal weights, equal fingerprint."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


@contextmanager
def seeded() -> Iterator[None]:
    """Models built inside draw the same random weights each time; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextmanager
def fitting(encoder_id: str, source: str) -> Iterator[None]:
    """Translates what libraries raise while they read weights into WeightsError, which names the keys."""
    try:
        yield
    except VisiontowerError:
        raise
    except Exception as error:  # every library and file format raises its own
        raise WeightsError(f"{source} does not load into {encoder_id}: {error}", model=encoder_id) from error


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], *, encoder_id: str, source: str) -> None:
    """Puts `weights` into `module`. Raises WeightsError that names the keys missing, left over or of another shape."""
    own = module.state_dict()
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    misshapen = [
        f"{key} is {list(weights[key].shape)}, must be {list(own[key].shape)}"
        for key in sorted(own.keys() & weights.keys())
        if own[key].shape != weights[key].shape
    ]
    problems = [
        f"{what}: {', '.join(keys[:8])}" + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("shapes", misshapen))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"{source} does not fit {encoder_id}. {'; '.join(problems)}.",
            model=encoder_id,
            missing=missing,
            unexpected=unexpected,
        )
    module.load_state_dict(weights)
