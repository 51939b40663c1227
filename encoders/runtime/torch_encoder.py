"""A Tower and its TextTower as an Encoder: owns device and dtype; pixels in, NumPy arrays out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import overload

import ml_dtypes
import torch
from PIL import Image
from torch import Tensor, nn

from encoders.contract.cost import Cost, Curve
from encoders.contract.encoder import Finished, Forward, Placement
from encoders.contract.errors import EncoderFailed, OutOfMemory, OutputNotOffered
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Encoded, Floats, ImageSize, Outputs, Pixels, TokenIds
from encoders.images.preprocess import preprocess, resize_exactly
from encoders.images.resample import resize
from encoders.runtime.attention import pin, straighten
from encoders.runtime.packed_linear import is_packable
from encoders.runtime.tower import Features, TextTower, Tower
from encoders.runtime.trace import Trace
from encoders.runtime.weights import fingerprint


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
        revision = "" if self._device.type == "meta" else fingerprint(parts.state_dict())
        parts.to(dtype=self._dtype).to(device=self._device)  # cast first: in one step the device would hold both
        pin()
        straighten(parts)
        every = (*parts.parameters(), *parts.buffers())
        unique = {tensor.untyped_storage()._cdata: tensor for tensor in every}.values()
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
        if placement.runtime == "torch":
            self.pack()
        self._uploads = _upload_stream(self._device) if self._device.type == "cuda" else None
        self._mean = torch.tensor(spec.preprocessing.mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(spec.preprocessing.std, device=self._device).view(3, 1, 1)

    def pack(self) -> None:
        """Lay the weights out for the CPU, if that is where they are; what they were is let go of."""
        if self._device.type == "cpu" and is_packable(self._dtype):
            for part in (self.tower, self.text):
                if part is not None:
                    part.pack()

    def preprocess(self, image: Image.Image, size: ImageSize, *, exact: bool = False) -> Pixels:
        """As Encoder.preprocess."""
        return preprocess(image, self.spec.preprocessing, size, resize=resize_exactly if exact else resize)

    def tokenize(self, texts: Sequence[str]) -> TokenIds:
        """As Encoder.tokenize."""
        ids: TokenIds = self._require_text().tokenize(texts).numpy()
        return ids

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        """As Encoder.encode."""
        return self.begin(pixels, outputs).wait()

    def begin(self, pixels: Pixels, outputs: Outputs) -> Forward:
        """As Encoder.begin: a CPU has done it all when this returns, CUDA has been told all of it.

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

        return _OnDevice(self.spec.id, host, done)

    def encode_text(self, ids: TokenIds) -> Floats:
        """As Encoder.encode_text."""
        with running(self.spec.id):
            return to_host(self.run_text(torch.from_numpy(ids)))

    def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
        """As Encoder.cost."""
        rows, cols = self.spec.grid(size)

        def run(pixels: Tensor) -> list[Tensor]:
            features = self.run(pixels, outputs)
            return [tensor for tensor in (features.tokens, features.pooled) if tensor is not None]

        pixels = torch.empty(1, dtype=torch.uint8).expand(1, *size, 3)
        return self._cost(run, pixels, device=device, itemsize=self._dtype.itemsize, tokens=rows * cols)

    def text_cost(self, *, device: str) -> Cost:
        """As Encoder.text_cost."""
        length = self.spec.context_length or 0
        ids = torch.empty(1, dtype=torch.int64).expand(1, length)
        return self._cost(lambda ids: [self.run_text(ids)], ids, device=device, itemsize=ids.itemsize, tokens=length)

    def _cost(
        self, run: Callable[[Tensor], list[Tensor]], item: Tensor, *, device: str, itemsize: int, tokens: int
    ) -> Cost:
        """By running it on one, two and four items that hold no bytes.

        item: [1, ...] on the host, for its shape. itemsize: bytes of each of its values as the tower reads them.
        """
        assert self._device.type == "meta", "costs are asked of an encoder placed on meta"
        traces = []
        for batch in (1, 2, 4):
            given = item.expand(batch, *item.shape[1:])
            if device == "cpu":
                given = given.to("meta")  # there already; what is left on the host is copied as part of the forward
            with running(self.spec.id), Trace(runs_on=device) as trace:
                output_bytes = sum(tensor.nbytes for tensor in run(given)) // batch
            traces.append(trace)
        return Cost(
            requested=Curve.through(*(trace.live for trace in traces)),
            during_products=Curve.through(*(trace.during_products for trace in traces)),
            input_bytes=item.numel() * itemsize,
            output_bytes=output_bytes,
            flops=traces[0].flops,
            tokens=tokens,
        )

    def run(self, pixels: Tensor, outputs: Outputs) -> Features:
        """What `encode` does on the device: uint8 [B, H, W, 3] -> features, each compact, as they go to the host."""
        features: Features = self.tower(self.normalise(pixels), outputs)
        return replace(features, tokens=_compact(features.tokens), pooled=_compact(features.pooled))

    def run_text(self, ids: Tensor) -> Tensor:
        """What `encode_text` does on the device: int64 [N, context_length] -> [N, embed_dim], compact."""
        embedded: Tensor = self._require_text()(ids.to(self._device))
        return _compact(embedded)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> [B, 3, H, W] in the tower's dtype on its device.

        In the order of torchvision's ToTensor and Normalize, in float32, so that values are equal to theirs.
        """
        batch, height, width, channels = pixels.shape
        # What lives through the forward is made first: made last it would lie behind the hole the others leave.
        given = torch.empty(batch, channels, height, width, dtype=self._dtype, device=self._device)
        values = given if self._dtype == torch.float32 else torch.empty_like(given, dtype=torch.float32)
        values.copy_(self._upload(pixels).permute(0, 3, 1, 2))
        values.div_(255).sub_(self._mean).div_(self._std)
        return given.copy_(values) if values is not given else given

    def _upload(self, pixels: Tensor) -> Tensor:
        """The pixels on the device; on CUDA they travel on a stream of their own, beside the forward that runs."""
        if self._uploads is None:
            return pixels.to(self._device)
        forwards = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._uploads):
            uploaded = pixels.contiguous().pin_memory().to(self._device, non_blocking=True)
        forwards.wait_stream(self._uploads)
        uploaded.record_stream(forwards)  # no later upload is given its memory before it has been read
        return uploaded

    def _require_text(self) -> TextTower:
        if self.text is None:
            raise OutputNotOffered(encoder=self.spec.id, output="text embeddings", reason="it has no text tower")
        return self.text


@dataclass
class _OnDevice:
    """A forward that a card works on."""

    encoder_id: str
    host: Features
    done: "torch.cuda.Event"
    is_done: bool = False

    def wait(self) -> Encoded:
        """As Forward.wait."""
        with running(self.encoder_id):
            self.done.synchronize()
            return _encoded(self.host)


@contextmanager
def running(encoder_id: str) -> Iterator[None]:
    """Around a forward: in inference mode, and what it raises translated into EncoderFailed or OutOfMemory."""
    try:
        with torch.inference_mode():
            yield
    except (MemoryError, RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
        if _is_out_of_memory(error):
            raise OutOfMemory(encoder=encoder_id) from error
        raise EncoderFailed(f"The forward of {encoder_id} failed.", model=encoder_id) from error


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: torch's own on the device or the host, or one within cuBLAS or cuDNN.

    cuDNN without room for the workspace of any of its convolutions says that it found none.
    """
    said = (
        "ALLOC_FAILED",
        "can't allocate memory",
        "Unable to find a valid cuDNN algorithm",
        "unable to find an engine",
    )
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in said)


@cache
def _upload_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which pixels travel to a card: one for all encoders, as torch keeps memory for each stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch does not type it


def _download(values: Tensor | None) -> Tensor | None:
    """On the host; from a card, the values are there when its stream has come so far, in pinned memory."""
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
