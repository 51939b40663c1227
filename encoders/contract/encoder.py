"""What a caller sees of a model, and where it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from encoders.contract.cost import Cost
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Encoded, Floats, ImageSize, Outputs, Pixels, TokenIds


class Forward(Protocol):
    """A forward that was begun."""

    @property
    def is_done(self) -> bool:
        """Whether the rows are there already, so that nothing can be begun behind it."""

    def wait(self) -> Encoded:
        """The rows, once they are there. Called once. Raises EncoderFailed."""


@dataclass(frozen=True)
class Finished:
    """A forward whose rows are there."""

    encoded: Encoded
    is_done: bool = True

    def wait(self) -> Encoded:
        """As Forward.wait."""
        return self.encoded


class Encoder(Protocol):
    """What the service sees of a model. On a CPU it may encode on several threads at once; on a GPU, on one."""

    @property
    def spec(self) -> EncoderSpec:
        """What this encoder is."""

    def preprocess(self, image: Image.Image, size: ImageSize, *, exact: bool = False) -> Pixels:
        """RGB image -> pixels, uint8 [H, W, 3] at `size`. Thread-safe, CPU only.

        exact: equal to the pixel to the model's own transforms; else values may be off by 2 of 255 for speed.
        """

    def tokenize(self, texts: Sequence[str]) -> TokenIds:
        """Texts -> int64 [N, context_length], truncated to it. Thread-safe, CPU only. Raises OutputNotOffered."""

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        """uint8 [B, H, W, 3] -> rows in the order given, on the host. Raises EncoderFailed."""

    def begin(self, pixels: Pixels, outputs: Outputs) -> Forward:
        """Start `encode`.

        Until then the device is at work, and another may be begun behind; they end in the order they were begun. All
        that `cost` says is taken, and given back for the next, before this returns. Raises EncoderFailed, as does what
        waits.
        """

    def encode_text(self, ids: TokenIds) -> Floats:
        """int64 [N, context_length] -> [N, embed_dim], not normalised, on the host. Raises EncoderFailed."""


class Blueprint(Protocol):
    """The shape of an encoder without its weights."""

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder is."""

    def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
        """What `encode` takes on `device` (cpu or cuda) for such images; of a blueprint. Raises EncoderFailed."""

    def text_cost(self, *, device: str) -> Cost:
        """What `encode_text` takes on `device`; of a blueprint. Raises OutputNotOffered or EncoderFailed."""


@dataclass(frozen=True)
class Placement:
    """Where an encoder runs: `device` as torch names it; `dtype` float32, float16 or bfloat16. Never auto.

    runtime: torch or openvino; that runs on CPUs what it can take, and leaves the rest to torch. lanes: forwards that
    will run side by side, each on its part of a CPU's cores.

    The device `meta` holds no bytes: an encoder placed there is its own blueprint. It has no weights (none are read or
    downloaded) and cannot encode, but knows its spec and says what its forwards cost.
    """

    device: str = "cpu"
    dtype: str = "float32"
    runtime: str = "torch"
    lanes: int = 1

    @property
    def is_blueprint(self) -> bool:
        """Whether only the shape of the encoder is asked for."""
        return self.device == BLUEPRINT


BLUEPRINT = "meta"
