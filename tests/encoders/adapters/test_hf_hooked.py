"""Outputs of a model's blocks, caught on the way through its own forward."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from encoders.adapters.hf import hooked


class Counting(nn.Module):
    """Adds one. Says how often it has run."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        self.runs += 1
        return x + 1, None


class Chain(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Counting() for _ in range(depth))
        hooked.watch(self.blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x, _ = block(x)
        return x


def test_a_forward_hands_over_the_blocks_asked_for_and_nothing_else() -> None:
    chain = Chain(4)
    output, caught = hooked.run(lambda: chain(torch.zeros(2)), [1, 3], stops=False)
    assert output.tolist() == [4, 4]
    assert {index: given[0].tolist() for index, given in caught.items()} == {1: [2, 2], 3: [4, 4]}


def test_nothing_runs_behind_the_last_block_wanted() -> None:
    chain = Chain(4)
    output, caught = hooked.run(lambda: chain(torch.zeros(1)), [0, 2], stops=True)
    assert output is None
    assert sorted(caught) == [0, 2]
    assert [block.runs for block in chain.blocks] == [1, 1, 1, 0]
    assert chain(torch.zeros(1)).item() == 4  # and later forwards are whole


def test_a_forward_that_wants_no_block_runs_to_its_end() -> None:
    output, caught = hooked.run(lambda: Chain(2)(torch.zeros(1)), [], stops=True)
    assert output.item() == 2
    assert caught == {}


def test_an_error_of_the_model_is_its_own() -> None:
    chain = Chain(1)
    with pytest.raises(TypeError):
        hooked.run(lambda: chain("no tensor"), [0], stops=True)
    assert hooked.run(lambda: chain(torch.zeros(1)), [0], stops=True)[1][0][0].item() == 1


def test_threads_that_share_a_model_get_their_own_blocks() -> None:
    chain = Chain(6)

    def layer(index: int) -> float:
        start = torch.full((256, 256), float(10 * index))
        _, caught = hooked.run(lambda: chain(start), [index], stops=bool(index % 2))
        return float(caught[index][0][0, 0]) - 10 * index

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(layer, list(range(6)) * 20)) == [1, 2, 3, 4, 5, 6] * 20
