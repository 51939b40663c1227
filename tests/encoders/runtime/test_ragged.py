"""Texts of unequal lengths in one batch: padding is not computed, and no vector depends on the texts beside it."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from encoders import load
from encoders.adapters.registry import blueprint
from encoders.contract.encoder import Placement
from encoders.runtime.block import Block
from encoders.runtime.ragged import columns, gathered, lengths_to_padding, only_read, spread
from encoders.runtime.torch_encoder import TorchEncoder
from encoders.runtime.trace import Trace
from tests.support.closeness import close, cosines
from tests.support.hf_folders import one_thread, write

CPU = torch.device("cpu")
TEXTS = ["a", "a red circle beside two dogs", "a cat", "a", "a cat beside a cat beside a cat", "dog"]


@pytest.fixture(scope="module", params=["demo:vit", "clip"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchEncoder]:
    name = request.param
    if name == "clip":
        folder = tmp_path_factory.mktemp(name)
        write(name, folder)
        name = f"hf:{folder}"
    with one_thread():
        made = load(name)
        assert isinstance(made, TorchEncoder)
        yield made


@pytest.mark.parametrize(
    ("ids", "ends", "lengths"),
    [
        ([[5, 6, 9, 0, 0], [5, 9, 0, 0, 0]], False, [3, 2]),
        ([[5, 0, 9, 0, 0], [5, 9, 8, 7, 6]], False, [3, 5]),  # what is within a text is no padding
        ([[5, 6, 0, 0, 0], [5, 6, 7, 8, 0]], True, [3, 5]),  # the first of them ends the text
        ([[0, 0, 0, 0, 0]], False, [1]),
        ([[0, 0, 0, 0, 0]], True, [1]),
    ],
)
def test_a_text_ends_where_its_padding_begins(ids: list[list[int]], ends: bool, lengths: list[int]) -> None:
    assert lengths_to_padding(np.array(ids), 0, ends=ends).tolist() == lengths


def test_a_batch_has_the_columns_of_its_longest_text_in_steps_of_two() -> None:
    found = [columns(np.array(lengths), at_most=9) for lengths in ([1], [3, 2], [4], [9], [])]
    assert found == [2, 4, 4, 9, 2]


def test_tokens_that_are_read_are_gathered_and_spread_again() -> None:
    x = torch.arange(24.0).view(2, 6, 2)
    with only_read(np.array([1, 4]), 6, context=77, device=CPU):
        rows = gathered(x)
        assert rows[0, :, 0].tolist() == [0, 12, 14, 16, 18]
        back = spread(rows)
    assert back.shape == x.shape
    assert back[..., 0].tolist() == [[0, 0, 0, 0, 0, 0], [12, 14, 16, 18, 0, 0]]


@pytest.mark.parametrize(
    ("lengths", "context", "device"),
    [([6, 6], 77, "cpu"), ([6, 5], 77, "cpu"), ([1, 1], 77, "cuda"), ([6, 4], 6, "cpu")],
    ids=["nothing to spare", "little to spare", "card", "more than planned"],
)
def test_nothing_is_gathered_where_that_does_not_pay(lengths: list[int], context: int, device: str) -> None:
    x = torch.ones(2, 6, 2)
    with only_read(np.array(lengths), 6, context=context, device=torch.device(device)):
        assert gathered(x) is x
        assert spread(x) is x
    assert gathered(x) is x


def test_no_vector_depends_on_the_texts_beside_it(encoder: TorchEncoder) -> None:
    together = encoder.encode_text(encoder.tokenize(TEXTS).ids)
    alone = np.concatenate([encoder.encode_text(encoder.tokenize([text]).ids) for text in TEXTS])
    close(together, torch.from_numpy(alone))


def test_products_are_of_the_tokens_that_are_read(encoder: TorchEncoder) -> None:
    assert encoder.text is not None
    ids = encoder.tokenize(TEXTS).ids
    seen = []

    def see(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(args[0].shape[:-1].numel())

    blocks = [each for each in encoder.text.modules() if isinstance(each, Block)]
    hooks = [block.mlp_in.register_forward_pre_hook(see) for block in blocks]
    encoder.encode_text(ids)
    for hook in hooks:
        hook.remove()
    assert set(seen) == {int(encoder.text.lengths(ids).sum())}


def test_ragged_texts_take_no_more_than_was_planned(encoder: TorchEncoder) -> None:
    cost = blueprint(encoder.spec.id).text_cost(device="cpu")
    long = "a cat beside a dog " * 20
    for texts in (["a", long, long, long, long], [long, "a"], TEXTS * 9):
        with Trace() as trace:
            encoder.encode_text(encoder.tokenize(texts).ids)
        assert trace.peak <= cost.requested(len(texts))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_ragged_texts_in_half_precision(dtype: str) -> None:
    half, whole = load("demo:vit", Placement(dtype=dtype)), load("demo:vit")
    ids = whole.tokenize(TEXTS * 20).ids  # many attend by products, few in torch's kernel
    wanted = whole.encode_text(ids)
    for given, rows in ((half.encode_text(ids), slice(None)), (half.encode_text(ids[:4]), slice(4))):
        assert cosines(given, wanted[rows]).min() > 0.999
