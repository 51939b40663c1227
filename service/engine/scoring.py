"""Images against texts: prompts, cosine, logits, probabilities, heat maps. Arithmetic; runs no model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from encoders.contract.errors import VisiontowerError
from encoders.contract.spec import Scoring
from encoders.contract.values import Encoded, Floats
from service.engine.images import EncodedImages
from service.engine.postprocess import l2_normalize, require_finite
from service.engine.values import Scores, SimilarityResult
from service.errors import InvalidOption, NoTexts, PromptTooLong, TooManyTexts, TooMuchText, shown

_SLOT = "{}"


_PROMPT_BYTES = 200
"""Of a prompt's own objects, beside its characters and ids: about."""


@dataclass(frozen=True)
class PromptLimits:
    """Of one request. prompts: texts x templates. chars: of one text, template or prompt. all_chars: of all prompts."""

    prompts: int
    chars: int
    all_chars: int


@dataclass(frozen=True)
class Unfilled:
    """Texts and the templates that they go into, within the limits, before any prompt is written out.

    chars: of all the prompts.
    """

    texts: Sequence[str]
    templates: Sequence[str]
    chars: int

    @classmethod
    def of(cls, texts: Sequence[str], templates: Sequence[str], limits: PromptLimits) -> "Unfilled":
        """Raises NoTexts, TooManyTexts, InvalidOption, PromptTooLong or TooMuchText."""
        if not texts:
            raise NoTexts
        if not templates:
            raise InvalidOption("templates", "There is no template: leave 'templates' out, or give at least one.")
        if len(texts) * len(templates) > limits.prompts:
            raise TooManyTexts(actual=len(texts) * len(templates), limit=limits.prompts)
        for name, values in (("texts", texts), ("templates", templates)):
            for value in values:
                if len(value) > limits.chars:
                    raise InvalidOption(name, f"An entry of '{name}' has {len(value)} characters, over {limits.chars}.")
        longest = max(range(len(texts)), key=lambda index: len(texts[index]))
        all_chars, chars = 0, sum(map(len, texts))
        for index, template in enumerate(templates):
            slots = template.count(_SLOT)
            if not slots:
                raise InvalidOption("templates", f"The template {shown(repr(template))} has no {_SLOT} for the text.")
            around = len(template) - slots * len(_SLOT)
            most = around + slots * len(texts[longest])
            if most > limits.chars:
                raise PromptTooLong(text=longest, template=index, actual=most, limit=limits.chars)
            all_chars += len(texts) * around + slots * chars
        if all_chars > limits.all_chars:
            raise TooMuchText(actual=all_chars, limit=limits.all_chars)
        return cls(texts, templates, all_chars)

    def __len__(self) -> int:
        """How many prompts there will be, equal ones counted apart."""
        return len(self.texts) * len(self.templates)

    def nbytes(self, context_length: int) -> int:
        """Bytes that the prompts and their ids will take, at most. context_length: ids of a prompt."""
        return 4 * self.chars + len(self) * (_PROMPT_BYTES + 2 * 8 * context_length)

    def fill(self) -> "Prompts":
        """Write the prompts out."""
        places: dict[str, int] = {}
        place = tuple(
            tuple(places.setdefault(template.replace(_SLOT, text), len(places)) for template in self.templates)
            for text in self.texts
        )
        return Prompts(tuple(places), place)


@dataclass(frozen=True)
class Prompts:
    """Texts put into templates. unique: each distinct prompt once. place[t][k]: index in it of text t in template k."""

    unique: tuple[str, ...]
    place: tuple[tuple[int, ...], ...]

    def tokens(self, lengths: NDArray[np.int64]) -> list[int]:
        """Of each text the tokens of its longest prompt, out of those of the unique prompts [unique]."""
        return [int(lengths[list(places)].max()) for places in self.place]

    def vectors(self, embedded: Floats) -> Floats:
        """Vectors float32 [texts, D] out of the unique prompts' embeddings [unique, D]. Not normalised.

        With one template a text's vector is its prompt's embedding; with several the mean of its prompts' unit vectors:
        normalised, it is that of open_clip's build_zero_shot_classifier.
        """
        if len(self.place[0]) == 1:
            return embedded[[places[0] for places in self.place]]
        unit = l2_normalize(embedded)
        return np.stack([unit[list(places)].mean(axis=0) for places in self.place])


@dataclass(frozen=True)
class TextVectors:
    """vectors: float32 [texts, embed_dim], not normalised (see Prompts.vectors) unless is_unit.

    tokens: of each text, in the template where it has most, before any cut. truncated: indices of the texts that were
    cut in any of their templates.
    """

    vectors: Floats
    tokens: Sequence[int]
    truncated: Sequence[int]
    is_unit: bool = False


def similarities(
    images: EncodedImages,
    texts: Sequence[str],
    found: TextVectors,
    scoring: Scoring,
    *,
    model: str,
    has_heatmaps: bool = False,
) -> SimilarityResult:
    """The images' scores; found: of the texts. An image without finite scores is an error at its place."""
    unit = found.vectors if found.is_unit else l2_normalize(found.vectors)
    items: list[Scores | VisiontowerError] = []
    for outcome in images.outcomes:
        try:
            if isinstance(outcome, VisiontowerError):
                raise outcome
            items.append(score(outcome, unit, scoring, model=model))
        except VisiontowerError as error:
            items.append(error)
    values = sum(item.values for item in items if isinstance(item, Scores))
    return SimilarityResult(
        model, texts, items, found.truncated, scoring, images.timing, values, has_heatmaps, images.cached
    )


def score(row: Encoded, texts: Floats, scoring: Scoring, *, model: str) -> Scores:
    """Scores of one image. texts: unit vectors [texts, D]. Raises NonFiniteOutput."""
    assert row.pooled is not None, "similarity asks for pooled"
    for array in (row.pooled, row.tokens):
        if array is not None:
            require_finite(array, model=model)
    cosine: Floats = texts @ l2_normalize(row.pooled)  # [texts]
    logits: Floats = np.float32(scoring.logit_scale) * cosine + np.float32(scoring.logit_bias)
    heatmap = None
    if row.tokens is not None:  # dense: patch tokens only, [rows * cols, D]
        heatmap = (texts @ l2_normalize(row.tokens).T).reshape(len(texts), row.grid.rows, row.grid.cols)
    return Scores(cosine, logits, probabilities(logits, scoring), row.grid, heatmap)


def probabilities(logits: Floats, scoring: Scoring) -> Floats:
    """Softmax over the texts, or the sigmoid of each; float32 [texts]."""
    with np.errstate(over="ignore", under="ignore"):
        if scoring.activation == "softmax":
            powers = np.exp(logits - logits.max())
            return np.asarray(powers / powers.sum(), dtype=np.float32)
        return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)
