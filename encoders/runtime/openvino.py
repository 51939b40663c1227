"""Final tokens and pooled vectors at native size, run by OpenVINO on CPUs; whatever else is asked for, by PyTorch.

Each size, layer or projection would be a graph of its own: seconds to make, and its own copy of the weights. Knows
OpenVINO, which the extra `openvino` installs.
"""

import copy
import logging
import threading
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import openvino
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from PIL import Image
from torch import Tensor, nn

from encoders.contract.encoder import Encoder, Finished, Forward
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Encoded, Floats, ImageSize, Outputs, Pixels, TokenIds, Tokenized
from encoders.memory.machine import available_cores
from encoders.runtime.block import only_first
from encoders.runtime.blueprint import is_in_graph
from encoders.runtime.failures import running
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.tower import FINAL, Tower

_log = logging.getLogger(__name__)

_PRECISION = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_ALIKE = 0.999
"""Least cosine to PyTorch's values in float32 with which a graph is used; bfloat16 gives 0.9999."""


def accelerated(encoder: TorchEncoder, *, lanes: int) -> Encoder:
    """The encoder with OpenVINO in it. If OpenVINO does not take its tower, the encoder as it was; the log says so.

    lanes: as Placement's.
    """
    try:
        return OpenVinoEncoder(encoder, lanes=lanes)
    except Exception as error:  # its converters raise their own
        said = str(error).strip().partition("\n")[0]
        _log.warning("%s is run by PyTorch: OpenVINO does not take it: %s", encoder.spec.id, said)
        return encoder
    finally:
        encoder.pack()  # not before: a graph is made of plain weights


class OpenVinoEncoder:
    """A TorchEncoder and an OpenVINO graph, which runs final tokens and pooled vectors of native size."""

    def __init__(self, encoder: TorchEncoder, *, lanes: int) -> None:
        """Takes seconds. Raises whatever OpenVINO does not take, and ValueError if the graph gives other values."""
        self._torch = encoder
        self._graph = Graph(
            copy.deepcopy(encoder.tower).float(),
            encoder.spec,
            lanes=lanes,
        )
        self.spec: EncoderSpec = replace(
            encoder.spec,
            runtime="openvino",
            weights_bytes=encoder.spec.weights_bytes + sum(weight.nbytes for weight in encoder.tower.parameters()),
        )

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        """As Encoder.encode. Rows of the graph are float32, whatever it computes in."""
        if not is_in_graph(self.spec, ImageSize(*pixels.shape[1:3]), outputs):
            return self._torch.encode(pixels, outputs)
        with running(self.spec.id):
            return self._graph.encode(pixels, outputs)

    def begin(self, pixels: Pixels, outputs: Outputs) -> Forward:
        """As Encoder.begin. A CPU has done it all when this returns."""
        return Finished(self.encode(pixels, outputs))

    def preprocess(self, image: Image.Image, size: ImageSize, *, exact: bool = False) -> Pixels:
        """As Encoder.preprocess."""
        return self._torch.preprocess(image, size, exact=exact)

    def cut(self, image: Image.Image, *, exact: bool = False) -> list[Pixels]:
        """As Encoder.cut."""
        return self._torch.cut(image, exact=exact)

    def join(self, views: Sequence[Floats], image: ImageSize) -> Floats:
        """As Encoder.join."""
        return self._torch.join(views, image)

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """As Encoder.tokenize."""
        return self._torch.tokenize(texts)

    def encode_text(self, ids: TokenIds) -> Floats:
        """As Encoder.encode_text."""
        return self._torch.encode_text(ids)


class Graph:
    """The final tokens and pooled vectors of one tower at one size.

    One graph for both, that is told how many tokens are wanted: a graph for each would hold the weights twice.
    """

    def __init__(self, tower: Tower, spec: EncoderSpec, *, lanes: int) -> None:
        """Takes torch's threads for forwards, at most as many as there are cores, and divides them among the lanes.

        tower: in float32; not needed afterwards. spec: of its encoder. lanes: threads that may `encode` at once
        without waiting for each other.
        """
        final, size = _Final(tower, spec), spec.image_size
        self._least = max(spec.prefix_tokens, 1)
        # Traced with two images and few tokens, tried with others: a number that was taken for a constant shows.
        noise = torch.randint(256, (3, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            features = tower(final.normalised(noise), FINAL)  # not of the trace: there even a grid is made of tensors
            wanted = [tensor.numpy() for tensor in (features.tokens, features.pooled) if tensor is not None]
            model = _converted(final, (noise[:2], torch.tensor(self._least)))
        model.reshape({model.inputs[0]: (-1, *size, 3)})
        self._grid = features.grid
        self._prefix_tokens = features.prefix_tokens
        options = {
            "INFERENCE_PRECISION_HINT": _PRECISION[spec.dtype],
            "INFERENCE_NUM_THREADS": min(torch.get_num_threads(), available_cores()),
            "NUM_STREAMS": lanes,
            "ENABLE_CPU_PINNING": False,  # pinned, two processes share one core and leave the other idle
        }
        self._compiled = openvino.Core().compile_model(model, "CPU", options)
        self._requests = threading.local()  # each thread's: a request runs one forward at a time
        for name, ours, theirs in zip(("tokens", "pooled"), self._run(noise.numpy(), tokens=True), wanted, strict=True):
            _require_alike(name, ours, theirs)
        _require_alike("pooled", self._run(noise.numpy(), tokens=False)[1], wanted[1])

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        """As Encoder.encode, of what is_in_graph; float32."""
        tokens, pooled = self._run(pixels, tokens=outputs.tokens is not None)
        return Encoded(
            grid=self._grid,
            prefix_tokens=self._prefix_tokens if outputs.tokens else 0,
            tokens=tokens.copy() if outputs.tokens else None,
            pooled=pooled.copy() if outputs.pooled else None,
        )

    def _run(self, pixels: Pixels, *, tokens: bool) -> tuple[Floats, Floats]:
        """All tokens or the fewest, and pooled, in memory that this thread's next run writes to."""
        count = self._prefix_tokens + self._grid.rows * self._grid.cols if tokens else self._least
        if not hasattr(self._requests, "own"):
            self._requests.own = self._compiled.create_infer_request()
        results = self._requests.own.infer({0: pixels, 1: np.array(count)}, share_inputs=True, share_outputs=True)
        return results[0], results[1]


class _Final(nn.Module):
    """uint8 [B, H, W, 3], N -> the first N final tokens [B, N, C] and pooled vectors [B, E], normalised on the way."""

    def __init__(self, tower: Tower, spec: EncoderSpec) -> None:
        super().__init__()
        self.tower = tower
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (spec.preprocessing.mean, spec.preprocessing.std))

    def normalised(self, pixels: Tensor) -> Tensor:
        """As TorchEncoder.normalise, in float32."""
        return pixels.permute(0, 3, 1, 2).float().div(255).sub(self.mean).div(self.std)

    def forward(self, pixels: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Tensors only, as a graph must give them."""
        with only_first(self.tower.class_block, count):
            features = self.tower(self.normalised(pixels), FINAL)
        return features.tokens[:, :count], features.pooled


def _converted(module: nn.Module, example: tuple[Tensor, ...]) -> openvino.Model:
    """By the frontend itself: openvino.convert_model, which wraps it, reports every use to its makers."""
    frontend = FrontEndManager().load_by_framework("pytorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape that is looked at; `_require_alike` checks them
        decoder = TorchScriptPythonDecoder(module, example_input=example)
    return frontend.convert(frontend.load(decoder))


def _require_alike(name: str, ours: Floats, theirs: Floats) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(f"its {name} are {list(ours.shape)}, not {list(theirs.shape)}")
    cosine = min(_cosine(a.ravel(), b.ravel()) for a, b in zip(ours, theirs, strict=True))
    if not cosine >= _ALIKE:  # nor NaN
        raise ValueError(f"its {name} are at cosine {cosine:.4f} to PyTorch's")


def _cosine(a: Floats, b: Floats) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
