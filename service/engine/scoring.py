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
from service.errors import InvalidOption, NoTexts, TooManyTexts, shown_value

_SLOT = "{}"


@dataclass(frozen=True)
class Prompts:
    """Texts put into templates. unique: each distinct prompt once. place[t][k]: index in it of text t in template k."""

    unique: tuple[str, ...]
    place: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, texts: Sequence[str], templates: Sequence[str], *, max_texts: int, max_chars: int) -> "Prompts":
        """Raises NoTexts, TooManyTexts or InvalidOption."""
        if not texts:
            raise NoTexts
        if not templates:
            raise InvalidOption("templates", "There is no template: leave 'templates' out, or give at least one.")
        if len(texts) * len(templates) > max_texts:
            raise TooManyTexts(actual=len(texts) * len(templates), limit=max_texts)
        for name, values in (("texts", texts), ("templates", templates)):
            for value in values:
                if len(value) > max_chars:
                    raise InvalidOption(name, f"An entry of '{name}' has {len(value)} characters, over {max_chars}.")
        for template in templates:
            if _SLOT not in template:
                raise InvalidOption("templates", f"The template {shown_value(template)} has no {_SLOT} for the text.")
        places: dict[str, int] = {}
        place = tuple(
            tuple(places.setdefault(template.replace(_SLOT, text), len(places)) for template in templates)
            for text in texts
        )
        return cls(tuple(places), place)

    def tokens(self, lengths: NDArray[np.int64]) -> list[int]:
        """Of each text the tokens of its longest prompt, out of those of the unique prompts [unique]."""
        return [int(lengths[list(places)].max()) for places in self.place]

    def vectors(self, embedded: Floats) -> Floats:
        """Unit vectors float32 [texts, D] out of the unique prompts' embeddings [unique, D].

        Normalised, averaged over templates, normalised: open_clip's build_zero_shot_classifier.
        """
        unit = l2_normalize(embedded)
        return l2_normalize(np.stack([unit[list(places)].mean(axis=0) for places in self.place]))


def similarities(
    images: EncodedImages,
    texts: Floats,
    scoring: Scoring,
    *,
    model: str,
    truncated: Sequence[int] = (),
    has_heatmaps: bool = False,
) -> SimilarityResult:
    """The images' scores; texts: unit vectors [texts, D]. An image without finite scores is an error at its place."""
    items: list[Scores | VisiontowerError] = []
    for outcome in images.outcomes:
        try:
            if isinstance(outcome, VisiontowerError):
                raise outcome
            items.append(score(outcome, texts, scoring, model=model))
        except VisiontowerError as error:
            items.append(error)
    values = sum(item.values for item in items if isinstance(item, Scores))
    return SimilarityResult(model, items, truncated, scoring, images.timing, values, has_heatmaps=has_heatmaps)


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
