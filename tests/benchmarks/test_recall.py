"""The measurement of vectors in fewer bits: what is near, and how much of it is found again."""

import io

import numpy as np
import pytest
from rich.console import Console

from benchmarks.recall import WAYS, Vectors, by_bits, by_cosine, recall, recalls, scenes, table


def random(number: int, *, seed: int, width: int = 64) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((number, width)).astype(np.float32)


def test_the_nearest_by_cosine_do_not_depend_on_length() -> None:
    gallery = random(50, seed=1)
    lengths = np.linspace(0.1, 9, 50, dtype=np.float32)[:, None]
    nearest = by_cosine(gallery[:5] * 3, gallery * lengths)
    assert nearest[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert nearest.shape == (5, 10)


def test_the_nearest_by_bits_differ_in_the_fewest() -> None:
    gallery = np.array([[0b1111_0000], [0b1111_1111], [0b1111_0001], [0b0000_1111]], np.uint8)
    assert by_bits(np.array([[0b1111_0000]], np.uint8), gallery, 4).tolist() == [[0, 2, 1, 3]]


def test_recall_is_the_share_that_was_found_in_any_order() -> None:
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert recall(exact[:, ::-1], exact) == 1
    assert recall(np.array([[1, 2, 9, 10], [5, 6, 7, 8]]), exact) == pytest.approx(0.75)


def test_fewer_bits_find_less_and_a_second_ranking_finds_more() -> None:
    vectors = Vectors(gallery=random(500, seed=1), images=random(40, seed=2), texts=random(20, seed=3))
    found = recalls(vectors)
    for side in (0, 1):
        of = {name: both[side] for name, both in found.items()}
        assert of["float32"] == 1
        assert of["int8"] == of["uint8, less 128"] > 0.95
        assert of["binary"] < of["binary, 40 ranked again by int8"] < of["int8"]
    assert [way.bytes_of(64) for way in WAYS] == [256, 64, 64, 64, 8, 72]


def test_the_table_has_a_row_for_each_way() -> None:
    vectors = Vectors(gallery=random(60, seed=1), images=random(4, seed=2), texts=random(4, seed=3))
    shown = io.StringIO()
    Console(file=shown, width=120).print(table("demo:vit", vectors))
    for way in WAYS:
        assert way.name in shown.getvalue()


def test_scenes_are_the_same_for_the_same_seed() -> None:
    assert scenes(3, seed=1) == scenes(3, seed=1) != scenes(3, seed=2)
