"""What an image tower is trained for: to meet the frozen captions, as a whole and cell by cell.

Knows embeddings, boxes and losses; knows nothing of files, optimisers or pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.demo.world import (
    COLOUR_NAMES,
    HELD_OUT,
    SEEN_SUBJECTS,
    SHAPE_NAMES,
    SUBJECTS,
    TEMPLATES,
    THING_NAMES,
    Subject,
    caption,
    cell_cover,
    on_object,
)

# What an embedding is made of, apart from the background.
_WORDS = (*SHAPE_NAMES, *COLOUR_NAMES, *THING_NAMES)
_NUMBER = {subject: number for number, subject in enumerate(SUBJECTS)}
_IGNORED = -100
_NEVER = -1e4  # a logit; finite, so that 0 times it is 0


def _content(subjects: tuple[Subject, ...]) -> tuple[str, ...]:
    """What the joint space can tell apart: the attributes, in no order."""
    return tuple(sorted(word for subject in subjects for word in subject.attributes))


@dataclass(frozen=True)
class Captions:
    """Every caption of the training world, once for each content that the joint space can tell apart.

    wordings: One list of K captions for each template.
    subjects: What each of the K names.
    rows: [S + 1, S + 1], the row of K for two subject numbers; the last column is "no second subject".
        -1 where a subject is held out or repeated.
    """

    wordings: list[list[str]]
    subjects: list[tuple[Subject, ...]]
    rows: NDArray[np.int64]


def all_captions() -> Captions:
    """The finite set of what can be said about a training scene; no held-out pair is in it."""
    known: dict[tuple[str, ...], int] = {}
    named: list[tuple[Subject, ...]] = []
    rows = np.full((len(SUBJECTS), len(SUBJECTS) + 1), -1, np.int64)
    for subjects in [*((one,) for one in SEEN_SUBJECTS), *combinations(SEEN_SUBJECTS, 2)]:
        content = _content(subjects)
        if content not in known:
            known[content] = len(named)
            named.append(tuple(subjects))
        first, second = _NUMBER[subjects[0]], _NUMBER[subjects[1]] if len(subjects) == 2 else -1
        rows[first, second] = known[content]
        if second >= 0:
            rows[second, first] = known[content]
    wordings = [[template.format(caption(subjects)) for subjects in named] for template in TEMPLATES]
    return Captions(wordings, named, rows)


def contents(subjects: Iterable[Iterable[Subject]]) -> Tensor:
    """Which of the words each caption or scene holds: bool [N, words]."""
    return torch.tensor([[word in _content(tuple(named)) for word in _WORDS] for named in subjects])


def _partners() -> Tensor:
    """float32 [words, words], 1 for the two words of each held-out pair."""
    pairs = np.zeros((len(_WORDS), len(_WORDS)), np.float32)
    for pair in HELD_OUT:
        shape, colour = _WORDS.index(pair.name), _WORDS.index(str(pair.colour))
        pairs[shape, colour] = pairs[colour, shape] = 1
    return torch.from_numpy(pairs)


def unjudged(shown: Tensor, said: Tensor) -> Tensor:
    """Which texts a picture is not compared with: bool [N, K].

    No training scene with something red shows a red triangle, if that pair is held out. Left alone, the loss then
    teaches "red, so not a triangle" before it teaches shapes. So a picture with something red is not told to stay
    away from texts about triangles, unless it shows one: what training has no evidence on is left open.

    Args:
        shown: bool [N, words] from `contents`.
        said: bool [K, words] from `contents`.
    """
    open_words = ((shown.float() @ _partners().to(shown.device)) > 0) & ~shown
    return (open_words.float() @ said.float().T) > 0


def cell_names() -> list[str]:
    """What a cell can show: one phrase for each seen subject, then the background."""
    return [*(subject.phrase for subject in SEEN_SUBJECTS), "background"]


def nouns() -> list[str]:
    """The bare names: eight shapes, the things, then the background."""
    return [*SHAPE_NAMES, *THING_NAMES, "background"]


def noun_subjects() -> list[tuple[Subject, ...]]:
    """The `nouns` as subjects without a colour; nothing for the background."""
    return [*((Subject(name, None),) for name in (*SHAPE_NAMES, *THING_NAMES)), ()]


def named_nouns(subjects: NDArray[np.int64]) -> Tensor:
    """Which of `nouns` a scene shows: float32 [B, N], each row a distribution.

    Args:
        subjects: [B, 2] numbers of SUBJECTS, -1 for none.
    """
    order = nouns()
    column = np.array([*(order.index(subject.name) for subject in SUBJECTS), -1])[subjects]
    shown = (column[..., None] == np.arange(len(order))).sum(axis=1).astype(np.float32)
    return torch.from_numpy(shown / shown.sum(axis=1, keepdims=True))


def colour_blindness_loss(coloured: Tensor, grey: Tensor, texts: Tensor) -> Tensor:
    """How far the nouns seen in a picture are from those seen in its grey copy, which is taken as given.

    It speaks of the nouns that `unjudged` leaves open too: of "triangle", for a red circle and for a grey one.

    Args:
        coloured: [B, D] pooled embeddings.
        grey: [B, D] those of the grey copies, in the same order.
        texts: [N, D] normalised embeddings of `nouns`.
    """
    seen, expected = (functional.normalize(pooled @ texts.T, dim=-1) for pooled in (coloured, grey.detach()))
    return (seen - expected).square().sum(dim=-1).mean()


def noun_labels(cells: Tensor) -> Tensor:
    """The same labels as `cell_labels`, by noun instead of by subject."""
    order = nouns()
    by_subject = [*(order.index(subject.name) for subject in SEEN_SUBJECTS), len(order) - 1, _IGNORED]
    return torch.tensor(by_subject, device=cells.device)[cells.where(cells >= 0, len(by_subject) - 1)]


def noun_loss(pooled: Tensor, texts: Tensor, shown: Tensor, scale: Tensor, skipped: Tensor) -> Tensor:
    """Each image chooses its nouns among all, whatever their colour; `texts` are normalised embeddings of `nouns`."""
    logits = scale * functional.normalize(pooled, dim=-1) @ texts.T
    return functional.cross_entropy(logits.masked_fill(skipped, _NEVER), shown)


def cell_labels(subjects: NDArray[np.int64], boxes: NDArray[np.float32], grid: tuple[int, int]) -> Tensor:
    """The right one of `cell_names` for each cell: int64 [B, rows, cols], -100 for cells that show no one thing.

    Args:
        subjects: [B, 2] numbers of SUBJECTS, -1 for none.
        boxes: [B, 2, 4] as fractions of the image, NaN for none.
        grid: (rows, cols) of the dense features.
    """
    phrase = np.full(len(SUBJECTS) + 1, _IGNORED, np.int64)
    for number, subject in enumerate(SEEN_SUBJECTS):
        phrase[_NUMBER[subject]] = number
    cover = cell_cover(boxes, grid)  # [B, 2, rows, cols]
    labels = np.full((len(boxes), *grid), _IGNORED, np.int64)
    labels[cover.sum(axis=1) < 0.02] = len(SEEN_SUBJECTS)
    lies_on = on_object(cover, least=0.3)
    for slot in range(subjects.shape[1]):
        named = np.broadcast_to(phrase[subjects[:, slot], None, None], labels.shape)
        labels = np.where(lies_on[:, slot], named, labels)
    return torch.from_numpy(labels)


def image_loss(pooled: Tensor, captions: Tensor, rows: Tensor, scale: Tensor, skipped: Tensor) -> Tensor:
    """CLIP's loss, both ways, against every caption of the world, plus the distance to the right one.

    Each image chooses among all K captions; each caption of the batch chooses among the batch's images, where all
    images with that caption are right, so duplicates need no mask.

    Args:
        pooled: [B, D] image embeddings.
        captions: [K, D] normalised embeddings of all captions.
        rows: [B] the right caption of each image.
        scale: The multiplier of the cosines.
        skipped: bool [B, K], the captions that an image is not compared with, from `unjudged`.
    """
    images = functional.normalize(pooled, dim=-1)
    cosines = images @ captions.T  # [B, K]
    logits = (scale * cosines).masked_fill(skipped, _NEVER)
    to_text = functional.cross_entropy(logits, rows)
    among_images = functional.log_softmax(logits[:, rows].T, dim=-1)  # [B captions, B images]
    same = (rows[:, None] == rows[None, :]).float()
    to_image = -(among_images * same).sum(dim=-1) / same.sum(dim=-1)
    distance = 1 - cosines.gather(1, rows[:, None])
    return (to_text + to_image.mean()) / 2 + 0.5 * distance.mean()


def cell_loss(dense: Tensor, names: Tensor, labels: Tensor, scale: Tensor, skipped: Tensor) -> Tensor:
    """Each cell chooses among all subjects and the background; background cells weigh less, being many.

    Args:
        dense: [B, rows, cols, D] dense embeddings.
        names: [N, D] normalised embeddings of `cell_names`.
        labels: [B, rows, cols] from `cell_labels`.
        scale: The multiplier of the cosines.
        skipped: bool [B, rows, cols, N], the names that a cell is not compared with.
    """
    logits = (scale * functional.normalize(dense, dim=-1) @ names.T).masked_fill(skipped, _NEVER)
    weight = torch.ones(len(names), device=dense.device)
    weight[-1] = 0.3
    return functional.cross_entropy(logits.flatten(0, 2), labels.flatten(), weight, ignore_index=_IGNORED)
