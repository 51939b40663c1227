"""Forwards that are recorded and replayed. The card's part is taken by a recorder that does operations anew on a CPU.

What torch's own allocator makes of it is in tests/cudastub/.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from encoders.adapters import demo
from encoders.adapters.fake import fake_spec
from encoders.adapters.registry import EncoderId
from encoders.contract.encoder import Placement
from encoders.contract.values import Encoded, Grid, Outputs, Pixels, TokenKind
from encoders.memory.prediction import CUDA, MIB
from encoders.runtime.cuda_graphs import LARGEST, Graphs
from encoders.runtime.device import resolve
from encoders.runtime.graphed_encoder import GraphedEncoder
from encoders.runtime.parts import TorchParts
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.tower import Features, Tower

T = TypeVar("T")
POOLED = Outputs(pooled=True)
KINDS = [POOLED, Outputs(tokens=TokenKind.HIDDEN, pooled=True), Outputs(tokens=TokenKind.HIDDEN, layer=1)]


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type its hooks
    """Keeps the operations that are done inside; `play` does them anew on the same tensors, as a graph does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor this
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, made))
        return made

    def play(self) -> None:
        for func, args, kwargs, made in self.steps:
            for there, anew in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(there, Tensor):
                    there.copy_(anew)


class TapeRecorder:
    """A Recorder. scratch: what a forward is said to take. failure: of the next record."""

    def __init__(self, scratch: int = MIB) -> None:
        self.scratch = scratch
        self.failure: Exception | None = None
        self.records = 0

    def measured(self, run: Callable[[], T]) -> tuple[T, int]:
        return run(), self.scratch

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        self.records += 1
        with Tape() as tape:
            run()
        if self.failure is not None:
            raise self.failure
        play: Callable[[], None] = tape.play
        return play


class Card:
    """An encoder with graphs, and the same one without."""

    def __init__(self, name: str = "toy", *, limit: int = 2**40) -> None:
        self.recorder = TapeRecorder()
        self.graphs = Graphs(self.recorder, limit=limit)
        self.eager = eager(name)
        self.encoder = self.another(name)

    def another(self, name: str = "toy") -> GraphedEncoder:
        encoder: GraphedEncoder = made(GraphedEncoder, name, graphs=self.graphs)
        return encoder

    def often(self, outputs: Outputs = POOLED, *, batch: int = 1, encoder: GraphedEncoder | None = None) -> int:
        """Come until a forward is recorded or replayed, twenty times at most; gives how many times it took."""
        before, pixels = self.graphs.forwards, noise(0, batch, self.encoder)
        for number in range(20):
            (encoder or self.encoder).encode(pixels, outputs)
            if self.graphs.forwards > before:
                return number + 1
        return 0


class Toy(Tower):
    def forward(self, pixels: Tensor, outputs: Outputs) -> Features:
        return Features(Grid(4, 4), pooled=pixels.mean(dim=(2, 3)))


def made(kind: type[TorchEncoder], name: str, **more: Any) -> Any:
    if name == "toy":
        parts = TorchParts(fake_spec(prefix_tokens=0, scoring=None, context_length=None), Toy())
    else:
        parts = demo.build(EncoderId.parse(f"demo:{name}"), with_weights=True)
    return kind(parts.spec, parts.tower, parts.text, placement=Placement(), **more)


@cache
def eager(name: str) -> TorchEncoder:
    encoder: TorchEncoder = made(TorchEncoder, name)
    return encoder


def noise(seed: int, batch: int, encoder: TorchEncoder) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (batch, *encoder.spec.image_size, 3), dtype=np.uint8)


def same(one: Encoded, other: Encoded) -> None:
    assert (one.grid, one.prefix_tokens) == (other.grid, other.prefix_tokens)
    for mine, its in ((one.tokens, other.tokens), (one.pooled, other.pooled)):
        assert (mine is None) == (its is None)
        if mine is not None and its is not None:
            np.testing.assert_array_equal(mine, its)


# What is replayed.


@pytest.mark.parametrize("name", ["vit", "resnet", "convnext"])
def test_a_replay_gives_what_the_eager_forward_gives(name: str) -> None:
    card = Card(name)
    for outputs in KINDS:
        card.often(outputs, batch=2)
    records = card.recorder.records
    assert records == len(KINDS)
    for seed in (1, 2):
        for outputs in KINDS:
            pixels = noise(seed, 2, card.eager)
            same(card.encoder.encode(pixels, outputs), card.eager.encode(pixels, outputs))
    assert card.recorder.records == records
    assert card.graphs.forwards == 3 * len(KINDS)


def test_the_forward_that_is_recorded_is_answered_as_those_before() -> None:
    card, pixels = Card("vit"), noise(1, 1, eager("vit"))
    answer = card.eager.encode(pixels, POOLED)
    while not card.recorder.records:
        same(card.encoder.encode(pixels, POOLED), answer)


def test_what_comes_seldom_or_in_many_images_and_texts_stay_eager() -> None:
    card = Card("vit")
    assert card.often() > 10
    assert card.often(batch=LARGEST + 1) == 0
    forwards, ids = card.graphs.forwards, card.encoder.tokenize(["a cat"]).ids
    for _ in range(17):
        np.testing.assert_array_equal(card.encoder.encode_text(ids), card.eager.encode_text(ids))
    assert card.graphs.forwards == forwards


# What stays.


def test_a_graph_that_has_no_room_is_not_made(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    card = Card(limit=CUDA.in_pages(MIB))
    assert card.often() > 10
    assert card.often() == 0
    assert (card.recorder.records, card.graphs.taken) == (0, 0)
    assert "stays eager: a graph of it has no room" in caplog.text


def test_the_one_used_longest_ago_makes_room_and_may_come_back() -> None:
    card = Card()
    card.often(batch=1)
    one = card.graphs.taken
    card.often(batch=2)
    two = card.graphs.taken
    assert one < two < 2 * one  # they work in the same pool
    card = Card(limit=two)
    card.often(batch=1)
    card.often(batch=2)
    assert card.often(batch=1) == 1  # so the other has waited longer
    card.often(POOLED, batch=2, encoder=card.another())
    assert card.graphs.taken <= two
    assert card.often(batch=1) == 1
    assert card.often(batch=2) > 10


def test_the_graphs_of_an_encoder_that_is_gone_make_room_first() -> None:
    card = Card()
    card.often()
    card = Card(limit=card.graphs.taken + 17 * MIB)
    card.often()
    gone = card.another()
    card.often(encoder=gone)
    del gone
    card.often(encoder=card.another())
    assert card.often() == 1


def test_a_card_without_room_for_a_graph_goes_on_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    card = Card()
    card.recorder.failure = torch.OutOfMemoryError("CUDA out of memory")
    assert card.often() > 10
    card.recorder.failure = None
    assert card.often() == 0
    assert "the card had no room to record it" in caplog.text
    assert card.often(batch=2) > 10
    assert card.often(batch=2) == 1


def test_an_encoder_that_cannot_be_recorded_stays_eager(caplog: pytest.LogCaptureFixture) -> None:
    card = Card()
    card.recorder.failure = RuntimeError("operation not permitted when stream is capturing")
    assert card.often() > 10
    card.recorder.failure = None
    assert card.often(batch=2) == 0
    assert "cannot be recorded: its encoder stays eager" in caplog.text
    assert card.often(encoder=card.another()) > 10


# Where they are refused.


def test_graphs_are_a_card_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="CUDA graphs are for CUDA devices, and the device is 'cpu'"):
        resolve("cpu", "float32", graph_bytes=1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve("cuda", "float16", graph_bytes=2**20).graph_bytes == 2**20
