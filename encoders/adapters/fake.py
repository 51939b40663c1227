"""A fake encoder, its blueprint and its device's memory: no weights, no torch, for tests and demos of the service."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from encoders.adapters.registry import EncoderId
from encoders.contract.cost import Cost, Curve
from encoders.contract.encoder import Finished, Forward, Placement
from encoders.contract.errors import EncoderFailed, OutOfMemory
from encoders.contract.spec import EncoderSpec, Preprocessing, Resolutions, Scoring
from encoders.contract.values import Encoded, Floats, Grid, ImageSize, Outputs, Pixels, TokenIds, Tokenized
from encoders.images.preprocess import preprocess
from encoders.memory.device import Figures, Reading
from encoders.memory.prediction import CPU, Overhead

_PATCH = 8
_HIDDEN = 12
_EMBED = 6
_CONTEXT = 16


def fake_spec(encoder_id: str = "fake:vit", **changes: object) -> EncoderSpec:
    """A 32-pixel tower of 8-pixel patches, 4 layers, hidden size 12, embed dim 6; `changes` replace fields."""
    spec = EncoderSpec(
        id=encoder_id,
        family="fake",
        image_size=ImageSize(32, 32),
        patch_size=ImageSize(_PATCH, _PATCH),
        prefix_tokens=1,
        hidden_size=_HIDDEN,
        embed_dim=_EMBED,
        pooled_size=_EMBED,
        pooling="mean",
        layers=4,
        resolutions=Resolutions(ImageSize(_PATCH, _PATCH), ImageSize(_PATCH, _PATCH), ImageSize(512, 512)),
        preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear"),
        projected_size=_EMBED,
        dense=True,
        scoring=Scoring("softmax", logit_scale=100.0),
        context_length=_CONTEXT,
        revision="fake",
    )
    return replace(spec, **changes)  # type: ignore[arg-type]  # test factories pass field names


class FakeMemory:
    """A device of `total` bytes that holds nothing but counts, and refuses what does not fit."""

    reads_freely = True

    def __init__(self, total: int, *, device: str = "cpu", overhead: Overhead = CPU) -> None:
        self.device = device
        self.overhead = overhead
        self.total = total
        self.allocated = 0
        self.failures = 0
        self._limit = total
        self._peak = 0

    def take(self, size: int, *, by: str) -> None:
        """Allocate `size` bytes. Raises OutOfMemory."""
        if self.allocated + size > self._limit:
            self.failures += 1
            raise OutOfMemory(encoder=by)
        self.allocated += size
        self._peak = max(self._peak, self.allocated)

    def give(self, size: int) -> None:
        """Free `size` bytes."""
        self.allocated -= size

    def figures(self) -> Figures:
        """As Memory.figures."""
        return Figures(self.total, self.total - self.allocated, self.allocated, self.allocated)

    @contextmanager
    def reading(self) -> Iterator[Reading]:
        """As Memory.reading."""
        reading = Reading()
        before = self._peak = self.allocated
        yield reading
        reading.peak = self._peak - before

    def limit(self, limit: int) -> None:
        """As Memory.limit."""
        self._limit = min(limit, self.total)

    def release(self) -> None:
        """As Memory.release: nothing is kept."""


class FakeBlueprint:
    """A Blueprint whose costs are known in closed form."""

    def __init__(self, spec: EncoderSpec | None = None) -> None:
        self.spec = spec or fake_spec()

    def cost(self, size: ImageSize, outputs: Outputs, *, device: str) -> Cost:
        """As Blueprint.cost: 64 bytes a pixel, and the tokens and vectors asked for."""
        rows, cols = self.spec.grid(size)
        given = 4 * (
            rows * cols * self.spec.hidden_size * bool(outputs.tokens) + self.spec.pooled_size * outputs.pooled
        )
        pixels = size.height * size.width
        return _linear(64 * pixels + given, input_bytes=12 * pixels, output_bytes=given, tokens=rows * cols)

    def text_cost(self, *, device: str) -> Cost:
        """As Blueprint.text_cost: 256 bytes a token."""
        self.spec.require_text()
        output_bytes = 4 * (self.spec.embed_dim or 0)
        return _linear(256 * _CONTEXT, input_bytes=8 * _CONTEXT, output_bytes=output_bytes, tokens=_CONTEXT)


def _linear(item: int, *, input_bytes: int, output_bytes: int, tokens: int) -> Cost:
    return Cost(
        requested=Curve(item, ((0, item),)),
        during_products=Curve(item, ((0, item),)),
        input_bytes=input_bytes,
        output_bytes=output_bytes,
        flops=1000 * tokens,
        tokens=tokens,
    )


class FakeEncoder:
    """An Encoder whose tokens are linear in each patch's mean colour, so an image's row never depends on its batch.

    Rows have the widths of the spec.

    before: called on a device thread ahead of each forward with its batch size; may block on an event, or raise.
    after: may replace the rows of a forward (wrong length, NaN).
    memory: where forwards take their costs. true_cost: how many times its cost a forward really takes.
    """

    def __init__(
        self,
        spec: EncoderSpec | None = None,
        *,
        before: Callable[[int], None] = lambda batch: None,
        after: Callable[[Encoded], Encoded] = lambda encoded: encoded,
        memory: FakeMemory | None = None,
        true_cost: float = 1.0,
    ) -> None:
        self.spec = spec or fake_spec()
        self.before = before
        self.after = after
        self.memory = memory
        self.true_cost = true_cost
        self.batches: list[int] = []
        self.threads: set[int] = set()

    @property
    def blueprint(self) -> FakeBlueprint:
        """The blueprint by whose costs the forwards take memory."""
        return FakeBlueprint(self.spec)

    def preprocess(self, image: Image.Image, size: ImageSize, *, exact: bool = False) -> Pixels:
        """As Encoder.preprocess, and always exact."""
        return preprocess(image, self.spec.preprocessing, size)

    def cut(self, image: Image.Image, *, exact: bool = False) -> list[Pixels]:
        """As Encoder.cut: the whole image, and as many upright strips of it as the spec allows."""
        self.spec.require_tiles()
        strips = self.spec.most_views - 1
        edges = [image.width * k // strips for k in range(strips + 1)]
        parts = [image.crop((left, 0, max(right, left + 1), image.height)) for left, right in pairwise(edges)]
        return [self.preprocess(each, self.spec.image_size) for each in (image, *parts)]

    def join(self, views: Sequence[Floats], image: ImageSize) -> Floats:
        """As Encoder.join: one behind the other."""
        self.spec.require_tiles()
        return np.concatenate(list(views))

    def tokenize(self, texts: Sequence[str]) -> Tokenized:
        """One id a UTF-8 byte, cut and padded with 0 to the context length."""
        self.spec.require_text()
        ids = np.zeros((len(texts), _CONTEXT), dtype=np.int64)
        for row, text in zip(ids, texts, strict=True):
            raw = text.encode()[:_CONTEXT]
            row[: len(raw)] = list(raw)
        return Tokenized(ids, np.array([len(text.encode()) for text in texts], dtype=np.int64))

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        """As Encoder.encode."""
        self._enter(len(pixels), self.blueprint.cost(ImageSize(*pixels.shape[1:3]), outputs, device="cpu"))
        batch, height, width, _ = pixels.shape
        grid = Grid(height // _PATCH, width // _PATCH)
        patches = pixels.reshape(batch, grid.rows, _PATCH, grid.cols, _PATCH, 3).mean(axis=(2, 4))
        normal = (patches.reshape(batch, -1, 3) / 127.5 - 1).astype(np.float32)
        hidden = normal @ _stem(self.spec.hidden_size)  # [B, rows * cols, hidden]
        tokens, prefix = hidden, self.spec.tokens_prefix(outputs)
        if outputs.layer is not None:
            tokens = tokens * np.float32((outputs.layer + 1) / (self.spec.layers + 1))
        if prefix:
            classes = np.repeat(tokens.mean(axis=1, keepdims=True), prefix, axis=1)
            tokens = np.concatenate([classes, tokens], axis=1)
        width_asked = self.spec.tokens_width(outputs)
        if width_asked not in (None, self.spec.hidden_size):
            tokens = tokens @ _projection(self.spec.hidden_size, width_asked)
        return self.after(
            Encoded(
                grid=grid,
                prefix_tokens=prefix,
                tokens=tokens if outputs.tokens else None,
                pooled=hidden.mean(axis=1) @ _projection(self.spec.hidden_size, self.spec.pooled_size)
                if outputs.pooled
                else None,
            )
        )

    def begin(self, pixels: Pixels, outputs: Outputs) -> Forward:
        """As Encoder.begin; the forward is over when this returns."""
        return Finished(self.encode(pixels, outputs))

    def encode_text(self, ids: TokenIds) -> Floats:
        """As Encoder.encode_text: from the counts of each text's bytes."""
        self._enter(len(ids), self.blueprint.text_cost(device="cpu"))
        width = self.spec.embed_dim or 0
        angles = np.outer(np.arange(1, 257), np.arange(1, width + 1)).astype(np.float32)
        table = np.concatenate([np.zeros((1, width), np.float32), np.sin(angles)])[:256]
        rows: Floats = table[ids].sum(axis=1)
        return rows

    def _enter(self, batch: int, cost: Cost) -> None:
        self.batches.append(batch)
        self.threads.add(threading.get_ident())
        self.before(batch)
        if self.memory is not None:
            taken = int(cost.requested(batch) * self.true_cost)
            self.memory.take(taken, by=self.spec.id)
            self.memory.give(taken)


@cache
def _stem(hidden_size: int) -> NDArray[np.float32]:
    """[3, hidden_size]: colours -> tokens."""
    return np.random.default_rng(0).standard_normal((3, hidden_size)).astype(np.float32)


@cache
def _projection(hidden_size: int, width: int) -> NDArray[np.float32]:
    """[hidden_size, width]: tokens -> another width."""
    rng = np.random.default_rng(0)
    rng.standard_normal((3, hidden_size))  # the stem's numbers: else the projection would begin with them
    return rng.standard_normal((hidden_size, width)).astype(np.float32)


@dataclass(frozen=True)
class FakeParts:
    """As an adapter gives them."""

    encoder_id: EncoderId

    def encoder(self, placement: Placement) -> FakeEncoder:
        """As Parts.encoder. With weights `broken`, every forward fails."""

        def fail(batch: int) -> None:
            raise EncoderFailed(f"{self.encoder_id} fails on purpose.", model=str(self.encoder_id))

        spec = fake_spec(str(self.encoder_id), device=placement.device)
        return FakeEncoder(spec, before=fail) if self.encoder_id.weights == "broken" else FakeEncoder(spec)

    def blueprint(self, *, dtype: str) -> FakeBlueprint:
        """As Parts.blueprint; a fake computes in float32."""
        return FakeBlueprint(fake_spec(str(self.encoder_id), device="meta", revision=""))


def build(encoder_id: EncoderId, *, with_weights: bool) -> FakeParts:
    """`fake:NAME`; the name is free."""
    return FakeParts(encoder_id)
