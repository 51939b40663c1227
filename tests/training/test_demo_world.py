"""The drawn world keeps its promises, and a stopped training goes on as if it had not stopped."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.adapters.demo.vocabulary import CONTEXT_LENGTH, MERGES, tokenizer
from training.demo import language, objective, train
from training.demo.pool import TEST_STREAM, PoolSpec, draw
from training.demo.sketches import COLOURS
from training.demo.vocabulary import words, write_merges
from training.demo.world import (
    COLOUR_NAMES,
    HELD_OUT,
    PAIRS,
    SHAPE_NAMES,
    SUBJECTS,
    caption,
    cell_cover,
    on_object,
    render,
    sample_scene,
)


def test_a_seed_gives_the_same_scene_and_the_same_pixels() -> None:
    first, second = (sample_scene(np.random.default_rng(3)) for _ in range(2))
    assert first == second
    assert np.array_equal(render(first, 96), render(second, 96))


def test_a_pool_does_not_depend_on_where_the_drawing_started() -> None:
    spec = PoolSpec(size=48, count=6, seed=5)
    whole, part = draw(spec), draw(spec, 4, 6)
    assert np.array_equal(whole.images[4:], part.images)
    assert np.array_equal(whole.subjects[4:], part.subjects)
    assert np.array_equal(whole.boxes[4:], part.boxes, equal_nan=True)


def test_training_and_test_scenes_differ_under_the_same_seed() -> None:
    training = PoolSpec(size=48, count=4, seed=5)
    assert not np.array_equal(draw(training).images, draw(replace(training, stream=TEST_STREAM)).images)


def test_the_held_out_pairs_take_each_shape_and_each_colour_once() -> None:
    assert sorted(pair.name for pair in HELD_OUT) == sorted(SHAPE_NAMES)
    assert sorted(str(pair.colour) for pair in HELD_OUT) == sorted(COLOUR_NAMES)
    assert set(PAIRS) > HELD_OUT


def test_held_out_pairs_are_never_drawn_in_training() -> None:
    rng = np.random.default_rng(0)
    shown = {subject for _ in range(3000) for subject in sample_scene(rng).subjects}
    assert shown == set(SUBJECTS) - HELD_OUT


def test_held_out_pairs_are_never_named_in_training() -> None:
    rng = np.random.default_rng(0)
    banned = {pair.words for pair in HELD_OUT} | {f"{pair.words}s" for pair in HELD_OUT}
    said = [language.sample_caption(rng)[0] for _ in range(8000)]
    said += [text for wording in objective.all_captions().wordings for text in wording] + objective.cell_names()
    assert not [text for text in said if any(f" {phrase} " in f" {text.replace(',', ' ')} " for phrase in banned)]


def test_only_held_out_pairs_are_drawn_when_asked() -> None:
    rng = np.random.default_rng(0)
    shown = {subject for _ in range(100) for subject in sample_scene(rng, which="held-out").subjects}
    assert shown == HELD_OUT


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.words)
def test_a_box_holds_all_that_was_drawn_and_fits(subject: object) -> None:
    size = 96
    chosen = next(known for known in SUBJECTS if known == subject)
    scene = sample_scene(np.random.default_rng(1), subjects=[chosen])
    # The same scene without its object: what differs, beyond the noise of each, is the object.
    drawn, empty = (render(one, size).astype(int) for one in (scene, replace(scene, objects=())))
    rows, columns = np.nonzero(np.abs(drawn - empty).max(axis=2) > 16)
    left, top, right, bottom = (edge * size for edge in scene.objects[0].box)
    # Pillow's outlines may take one more pixel of the doubled canvas, and a pixel has a width.
    assert left - 1 <= columns.min()
    assert columns.max() <= right + 1
    assert top - 1 <= rows.min()
    assert rows.max() <= bottom + 1
    assert columns.max() + 1 - columns.min() > 0.8 * (right - left)
    assert rows.max() + 1 - rows.min() > 0.8 * (bottom - top)


def test_two_boxes_do_not_touch_and_stay_inside() -> None:
    boxes = draw(PoolSpec(size=32, count=200, seed=1, objects=2)).boxes
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    overlap = np.minimum(boxes[:, 0, 2:], boxes[:, 1, 2:]) - np.maximum(boxes[:, 0, :2], boxes[:, 1, :2])
    assert (overlap.min(axis=1) < 0).all()


def test_three_boxes_do_not_touch_either() -> None:
    for seed in range(50):
        drawn = sample_scene(np.random.default_rng(seed), subjects=SUBJECTS[:3])
        boxes = np.array([placed.box for placed in drawn.objects])
        assert (boxes >= 0).all()
        assert (boxes <= 1).all()
        for a, b in combinations(boxes, 2):
            assert (np.minimum(a[2:], b[2:]) < np.maximum(a[:2], b[:2])).any()


def test_the_noise_is_slight_and_can_be_left_out() -> None:
    drawn = sample_scene(np.random.default_rng(1))
    smooth, noisy = (render(drawn, 96, noise=noise).astype(int) for noise in (False, True))
    assert 0 < np.abs(smooth - noisy).max() < 40
    assert np.array_equal(render(drawn, 96), noisy)


def test_cells_are_covered_by_what_lies_on_them() -> None:
    boxes = np.array([[[0.0, 0.0, 0.5, 0.5], [0.75, 0.5, 1.0, 0.75]], [[0.0, 0.0, 1.0, 1.0], [np.nan] * 4]])
    cover = cell_cover(boxes, (2, 2))
    assert np.allclose(cover[0], np.array([[[1, 0], [0, 0]], [[0, 0], [0, 0.25]]]))
    assert np.allclose(cover[1], np.stack([np.ones((2, 2)), np.zeros((2, 2))]))
    assert np.array_equal(on_object(cover)[0], [[[True, False], [False, False]], [[False, False], [False, True]]])


def test_every_scene_has_its_row_among_all_captions() -> None:
    captions = objective.all_captions()
    pool = draw(PoolSpec(size=32, count=300, seed=1))
    rows = captions.rows[pool.subjects[:, 0], pool.subjects[:, 1]]
    assert (rows >= 0).all()
    for row, numbers in zip(rows, pool.subjects, strict=True):
        said = set(captions.wordings[0][row].replace(" and ", " ").split()) - {"a", "an"}
        assert said == {word for number in numbers if number >= 0 for word in SUBJECTS[number].attributes}


def test_recolouring_never_gives_a_shape_its_held_out_colour() -> None:
    rng = np.random.default_rng(0)
    for number, subject in enumerate(SUBJECTS):
        if subject.colour is None or subject in HELD_OUT:
            continue
        banned = next(str(pair.colour) for pair in HELD_OUT if pair.name == subject.name)
        flat = np.full((1, 1, 3), COLOURS[subject.colour], np.float32)
        for _ in range(20):
            paint = train.recolour(flat, np.array([number, -1]), rng)[0, 0]
            is_grey = np.ptp(paint) < 1 and 60 <= paint.mean() <= 190  # a dull grey may be nearest to any of them
            nearest = min(COLOURS, key=lambda name: float(np.linalg.norm(paint - np.array(COLOURS[name]))))
            assert is_grey or nearest != banned


def test_the_merges_file_is_what_the_module_writes(tmp_path: Path) -> None:
    write_merges(tmp_path / "merges.txt.gz")
    assert (tmp_path / "merges.txt.gz").read_bytes() == MERGES.read_bytes()


def test_the_reduced_vocabulary_splits_words_as_clip_does() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    reduced, full = tokenizer(), SimpleTokenizer()
    for word in words():
        assert [reduced.decoder[n] for n in reduced.encode(word)] == [full.decoder[n] for n in full.encode(word)]


def test_the_longest_caption_fits_the_context() -> None:
    longest = max((text for wording in objective.all_captions().wordings for text in wording), key=len)
    assert len(tokenizer().encode(longest)) + 2 <= CONTEXT_LENGTH
    assert caption(SUBJECTS[:1]) == "a red circle"


@pytest.mark.slow
def test_a_stopped_and_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    plan = train.Plan("convnext", steps=4, batch=4, scenes=12, text_steps=2, warmup=1)
    straight = train.train_image(plan, tmp_path / "a", tmp_path / "a", keep_every=10)
    train.train_image(plan, tmp_path / "b", tmp_path / "b", stop=2, keep_every=10)
    resumed = train.train_image(plan, tmp_path / "b", tmp_path / "b", resume=True, keep_every=10)
    assert resumed.done == straight.done == 4
    expected = straight.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert (tmp_path / "a/convnext.safetensors").read_bytes() == (tmp_path / "b/convnext.safetensors").read_bytes()
