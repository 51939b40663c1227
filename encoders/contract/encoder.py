"""A model as callers see it: an Encoder runs it, a Blueprint knows what a run costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from encoders.contract.cost import Cost
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Encoded, Floats, ImageSize, Outputs, Pixels, TokenIds, Tokenized


class Forward(Protocol):
    """A forward that has begun."""

    @property
    def is_done(self) -> bool:
        """Whether the rows were on the host when `begin` returned. Then no forward can begin behind this one."""

    def wait(self) -> Encoded:
        """The rows, in the order of the pixels, on the host. To be called once. Raises EncoderFailed."""


@dataclass(frozen=True)
class Finished:
    """A Forward whose rows are there already."""

    encoded: Encoded
    is_done = True

    def wait(self) -> Encoded:
        """As Forward.wait; it does not wait."""
        return self.encoded


class Encoder(Protocol):
    """A model that runs. On a CPU several threads may call it at once; on a GPU, one thread."""

    @property
    def spec(self) -> EncoderSpec:
        """What this encoder is."""

    def preprocess(self, image: Image.Image, size: ImageSize, *, exact: bool = False) -> Pixels:
        """RGB image -> pixels, uint8 [H, W, 3] at `size`. Thread-safe, CPU only.

        exact: the pixels equal those of the model's own transforms. By default a faster resize is taken, and a value
            may be off by 2 of 255.
        """

    def cut(self, image: Image.Image, *, exact: bool = False) -> list[Pixels]:
        """RGB image -> the views that the model cuts it into, each of native size: the whole image first, then tiles.

        exact: as of `preprocess`. Thread-safe, CPU only. Raises OutputNotOffered if it cuts no images.
        """

    def join(self, views: Sequence[Floats], image: ImageSize) -> Floats:
        """Projected patch tokens [N, width] of each view, in order -> [M, width] as the language model reads them.

        image: the size of the image that was cut. Thread-safe, CPU only. Raises OutputNotOffered if it cuts no images.
        """

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """Texts -> ids of context_length each, and which texts were cut to it. Thread-safe, CPU only.

        Raises OutputNotOffered or InvalidText.
        """

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        """uint8 [B, H, W, 3] -> rows in the order given, on the host. Raises EncoderFailed."""

    def begin(self, pixels: Pixels, outputs: Outputs) -> Forward:
        """Begin `encode`.

        The device works until the Forward is waited for, and another forward may be begun behind it. Forwards end in
        the order in which they were begun. All memory that `Blueprint.cost` counts is taken, and given back for the
        next forward, before this returns. Raises EncoderFailed.
        """

    def encode_text(self, ids: TokenIds) -> Floats:
        """int64 [N, context_length] -> [N, embed_dim], not normalised, on the host.

        Raises OutputNotOffered or EncoderFailed.
        """


class Blueprint(Protocol):
    """The shape of a model: it has no weights and cannot run, and knows what its forwards cost."""

    @property
    def spec(self) -> EncoderSpec:
        """The encoder's spec, without what only the weights tell: revision, logit scale and logit bias."""

    def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
        """What `Encoder.encode` takes on `device` (cpu or cuda) for images of this size. Raises EncoderFailed."""

    def text_cost(self, *, device: str) -> Cost:
        """What `Encoder.encode_text` takes on `device` (cpu or cuda). Raises OutputNotOffered or EncoderFailed."""


@dataclass(frozen=True)
class Placement:
    """Where an encoder runs: `device` as torch names it; `dtype` float32, float16, bfloat16 or int8. Never auto.

    int8: linear products of the vision half in 8 bits, and the rest in the dtype that the CPU computes natively.
    calibration: a folder of pictures like those to come, from which int8 takes its ranges; None: from drawn ones.
    runtime: torch or openvino. OpenVINO runs on CPUs; what it does not take is left to torch.
    lanes: forwards that will run side by side, each on its part of a CPU's cores.
    graph_bytes: of a card, for the CUDA graphs of all encoders that name the same number; 0: there are none.
    """

    device: str = "cpu"
    dtype: str = "float32"
    runtime: str = "torch"
    lanes: int = 1
    calibration: Path | None = None
    graph_bytes: int = 0
