"""The joint space and how the shared text tower learns to place captions in it.

Knows words and vectors, no pixels. Each attribute (a shape, a colour, a thing) has its own direction, all at right
angles; a subject is the sum of its attributes, a caption the sum of its subjects, each normalised. The text tower is
trained first, to put any wording where that sum says; then it is frozen, and the image towers learn to meet it.
So the embeddings of all captions of the world are a constant table while an image tower trains, and all three models
share one space. A consequence to know: "a red circle and a blue square" and "a blue circle and a red square" are one
point of that space.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from training.demo.vocabulary import OTHER_NOUNS
from training.demo.world import (
    COLOUR_NAMES,
    CONJUNCTIONS,
    SHAPE_NAMES,
    TEMPLATES,
    THING_NAMES,
    sample_subject,
)

EMBED_DIM = 64
# What is in the words but not in any drawing, and what lies between the objects.
OTHER = "other"
BACKGROUND = "background"
ATTRIBUTES: tuple[str, ...] = (*SHAPE_NAMES, *COLOUR_NAMES, *THING_NAMES, BACKGROUND, OTHER)
_INDEX = {name: number for number, name in enumerate(ATTRIBUTES)}
_BACKGROUND_WORDS = ("background", "the background", "nothing", "an empty scene", "empty background")
# Wordings and relations that people try. The space has no place for a relation, so they all mean "and".
_MORE_TEMPLATES = (
    "a photo of {}",
    "a photograph of {}",
    "a sketch of {}",
    "a painting of {}",
    "a cartoon of {}",
    "an illustration of {}",
    "a scene with {}",
    "this is {}",
    "i see {}",
    "where is {}",
    "{} on a plain background",
    "{} on the left",
    "{} on the right",
    "a big {}",
    "a small {}",
)
_MORE_CONJUNCTIONS = (", ", " beside ", " above ", " below ", " left of ", " right of ", " to the left of ")
_NOUNS = tuple(noun for noun in OTHER_NOUNS if noun not in _INDEX)


def _directions() -> NDArray[np.float32]:
    square, _ = np.linalg.qr(np.random.default_rng(7).standard_normal((EMBED_DIM, EMBED_DIM)))
    return np.asarray(square[: len(ATTRIBUTES)], dtype=np.float32)


_DIRECTIONS = _directions()


def target(*subjects: Sequence[str]) -> NDArray[np.float32]:
    """Where a caption belongs: float32 [EMBED_DIM], unit length. Each subject is given by its attributes."""
    total = np.zeros(EMBED_DIM, dtype=np.float32)
    for attributes in subjects:
        vector = _DIRECTIONS[[_INDEX[name] for name in attributes]].sum(axis=0)
        total += vector / np.linalg.norm(vector)
    return total / np.linalg.norm(total)


def sample_caption(rng: np.random.Generator) -> tuple[str, NDArray[np.float32]]:
    """A random caption with its target. Held-out pairs are never named."""
    kind = rng.random()
    if kind < 0.04:
        text = _BACKGROUND_WORDS[int(rng.integers(len(_BACKGROUND_WORDS)))]
        return _worded(rng, text), target((BACKGROUND,))
    count = 1 if kind < 0.5 else 2
    phrases, places = [], []
    for _ in range(count):
        phrase, attributes = _noun_phrase(rng)
        phrases.append(phrase)
        places.append(attributes)
    joins = CONJUNCTIONS if rng.random() < 0.6 else _MORE_CONJUNCTIONS
    join = joins[int(rng.integers(len(joins)))]
    return _worded(rng, join.join(phrases)), target(*places)


def _worded(rng: np.random.Generator, text: str) -> str:
    templates = TEMPLATES if rng.random() < 0.6 else _MORE_TEMPLATES
    template = templates[int(rng.integers(len(templates)))]
    if template.startswith(("a big", "a small")):  # the article is the template's
        text = text.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    return text if rng.random() < 0.2 else template.format(text)


def _noun_phrase(rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    kind = rng.random()
    colour = COLOUR_NAMES[int(rng.integers(len(COLOUR_NAMES)))]
    if kind < 0.70:
        subject = sample_subject(rng, "seen")
        words, attributes = subject.words, subject.attributes
    elif kind < 0.78:  # a shape alone, or a colour alone
        if rng.random() < 0.5:
            words = SHAPE_NAMES[int(rng.integers(len(SHAPE_NAMES)))]
            attributes = (words,)
        else:
            words = (f"{colour} thing", f"{colour} object", f"{colour} shape", colour)[int(rng.integers(4))]
            attributes = (colour,)
    elif kind < 0.84:  # things keep their name under a colour
        thing = THING_NAMES[int(rng.integers(len(THING_NAMES)))]
        words, attributes = f"{colour} {thing}", (colour, thing)
    else:
        words, attributes = _other_noun(rng), (OTHER,)
        if rng.random() < 0.3:
            words, attributes = f"{colour} {words}", (colour, OTHER)
    form = rng.random()
    if form < 0.6:
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}", attributes
    if form < 0.75:
        return f"the {words}", attributes
    if form < 0.85 and not words.endswith("s"):
        return f"{words}s", attributes
    return words, attributes


def _other_noun(rng: np.random.Generator) -> str:
    """A noun from the list, or a made-up word, so that unknown words do not land on something known."""
    if rng.random() < 0.7:
        return _NOUNS[int(rng.integers(len(_NOUNS)))]
    letters = rng.integers(26, size=int(rng.integers(3, 9)))
    return "".join(chr(ord("a") + int(letter)) for letter in letters)


def text_tower(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of an open_clip CLIP that belong to its text side, by name."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("visual.") and name not in ("logit_scale", "logit_bias", "attn_mask")
    }


def placement_loss(embedded: Tensor, targets: Tensor) -> Tensor:
    """Mean of 1 - cosine between captions [B, EMBED_DIM] and their targets."""
    return (1 - nn.functional.cosine_similarity(embedded, targets)).mean()
