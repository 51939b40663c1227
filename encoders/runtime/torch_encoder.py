"""A Tower and its TextTower as an Encoder: pixels in, NumPy arrays out. Knows devices and streams; knows no ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import ml_dtypes
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from encoders.contract.encoder import Finished, Forward, Placement
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Encoded, Floats, ImageSize, Outputs, Pixels, TokenIds, Tokenized
from encoders.images.preprocess import preprocess, resize_exactly
from encoders.images.resample import resize
from encoders.runtime.architecture import architecture
from encoders.runtime.block import Block
from encoders.runtime.calibration import Trial
from encoders.runtime.failures import running
from encoders.runtime.packed_conv import pack_convolutions
from encoders.runtime.packed_linear import is_packable, pack_linears
from encoders.runtime.placed_towers import PlacedTowers, as_module
from encoders.runtime.ragged import columns, only_read
from encoders.runtime.tiles import Tiles
from encoders.runtime.tower import FINAL, Features, TextTower, Tower
from encoders.runtime.weights import fingerprint


class TorchEncoder(PlacedTowers):
    """An Encoder over a Tower.

    spec: as the adapter knows it; dtype, device, parameters, weights_bytes, revision and architecture are filled in
    here.
    """

    def __init__(self, spec: EncoderSpec, tower: Tower, text: TextTower | None = None, *, placement: Placement) -> None:
        model = as_module(tower, text)
        revision = fingerprint(model.state_dict())  # of the weights as loaded, so before they are cast
        spec = replace(spec, revision=revision, architecture=architecture(model))
        trial = Trial.of(spec, tower, text, placement) if placement.dtype == "int8" else None
        observed = None if trial is None else trial.observed
        super().__init__(spec, tower, text, device=placement.device, dtype=placement.dtype, observed=observed)
        self._uploads = _upload_stream(self._device) if self._device.type == "cuda" else None
        if placement.runtime == "torch":
            self.pack()
        if trial is not None:
            self.spec = replace(self.spec, int8_cosine=trial.cosine(self), architecture=trial.architecture)

    def pack(self) -> None:
        """Lay the weights out for the CPU, if that is where they are; what they were is let go of."""
        if self._device.type == "cpu" and is_packable(self._dtype):
            parts = as_module(self.tower, self.text)
            for module in parts.modules():
                if isinstance(module, Block):
                    module.pack()
            pack_linears(parts)
            pack_convolutions(parts)
            self.keep_channels_together()
            self._run_once()

    def _run_once(self) -> None:
        """One image and one text: a library that takes packed weights back (PackedLinear.weight) does so now."""
        self.encode(np.zeros((1, *self.spec.image_size, 3), dtype=np.uint8), FINAL)
        if self.text is not None:
            self.encode_text(self.tokenize(["a"]).ids)

    def preprocess(self, image: Image.Image, size: ImageSize, *, exact: bool = False) -> Pixels:
        """As Encoder.preprocess."""
        return preprocess(image, self.spec.preprocessing, size, resize=resize_exactly if exact else resize)

    def cut(self, image: Image.Image, *, exact: bool = False) -> list[Pixels]:
        """As Encoder.cut."""
        return self._tiles.cut(image, self.spec.preprocessing, resize=resize_exactly if exact else resize)

    def join(self, views: Sequence[Floats], image: ImageSize) -> Floats:
        """As Encoder.join."""
        return to_host(self._tiles.join(views, image).to(self._dtype))

    @property
    def _tiles(self) -> Tiles:
        self.spec.require_tiles()
        assert self.tower.tiles is not None, "so the spec says"
        return self.tower.tiles

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """As Encoder.tokenize."""
        return self.require_text().tokenize(texts)

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        """As Encoder.encode."""
        return self.begin(pixels, outputs).wait()

    def begin(self, pixels: Pixels, outputs: Outputs) -> Forward:
        """As Encoder.begin. On a CPU the forward is over when this returns; a card has then been told all of it.

        Every tensor on a card is made and let go in here, in the order of its stream: forwards begun one behind the
        other share their memory. So the rows come down on the forward's own stream, though it is held up by some
        hundredths of a forward, going by their bytes: with a stream to themselves they would lie beside the next one's
        tensors.
        """
        with running(self.spec.id):
            features = self.run(torch.from_numpy(pixels), outputs)
            host = replace(features, tokens=_download(features.tokens), pooled=_download(features.pooled))
            if self._uploads is None:
                return Finished(_encoded(host))
            # blocking: whoever waits sleeps, where a core that spins is one less to decode the next images.
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch does not type it
            done.record(torch.cuda.current_stream(self._device))
            return OnCard(self.spec.id, host, done)

    def encode_text(self, ids: TokenIds) -> Floats:
        """As Encoder.encode_text."""
        lengths = self.require_text().lengths(ids)
        count = columns(lengths, at_most=ids.shape[1])
        with running(self.spec.id), only_read(lengths, count, context=ids.shape[1], device=self._device):
            return to_host(self.run_text(torch.from_numpy(ids[:, :count])))

    def upload(self, pixels: Tensor) -> Tensor:
        """The pixels on the device. To a card they travel on a stream of their own, beside the forward that runs."""
        if self._uploads is None or pixels.is_cuda:
            return pixels.to(self._device)
        forwards = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._uploads):
            uploaded = pixels.contiguous().pin_memory().to(self._device, non_blocking=True)
        forwards.wait_stream(self._uploads)
        uploaded.record_stream(forwards)  # no later upload is given its memory before it has been read
        return uploaded


@dataclass(frozen=True)
class OnCard:
    """A Forward that a card has been told of and may be working on.

    host: the rows in pinned memory; they are there once the card has come to `done`.
    """

    encoder_id: str
    host: Features
    done: torch.cuda.Event
    is_done = False

    def wait(self) -> Encoded:
        """As Forward.wait."""
        with running(self.encoder_id):
            self.done.synchronize()
            return _encoded(self.host)


@cache
def _upload_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which pixels travel to a card: one for all encoders, as torch keeps memory for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch does not type it


def _download(values: Tensor | None) -> Tensor | None:
    """The values on the host. From a card they come in its stream's turn, into pinned memory."""
    return None if values is None else values.detach().to("cpu", non_blocking=True)


def _encoded(host: Features) -> Encoded:
    return Encoded(
        grid=host.grid,
        prefix_tokens=host.prefix_tokens,
        tokens=None if host.tokens is None else to_host(host.tokens),
        pooled=None if host.pooled is None else to_host(host.pooled),
    )


def to_host(values: Tensor) -> Floats:
    """A compact tensor as a NumPy array of the same dtype; bfloat16 as ml_dtypes.bfloat16."""
    host = values.detach().cpu()
    if host.dtype == torch.bfloat16:
        array: Floats = host.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return array
    plain: Floats = host.numpy()
    return plain
