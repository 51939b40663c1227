"""How near served numbers are to a reference library's: arithmetic over one picture's rows. Runs no model."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from encoders.contract.reference import ReferenceRow
from encoders.contract.spec import Preprocessing
from encoders.contract.values import Encoded, Floats, Pixels


@dataclass(frozen=True)
class Served:
    """One picture as the server runs it. pixels: uint8 [H, W, 3]. row: of one image, without the batch axis."""

    pixels: Pixels
    row: Encoded


@dataclass(frozen=True)
class Agreement:
    """What one picture's numbers have in common with the reference's; None where the reference does not give them.

    pixels: the greatest difference of a value, in steps of 255. pooled: cosine. tokens: least cosine of a patch token.
    scores: the greatest difference of an image-text cosine. same_text: whether both find the same text nearest.
    """

    photo: str
    pixels: float | None
    pooled: float | None
    tokens: float | None
    scores: float | None = None
    same_text: bool | None = None

    def holds(self, bound: float) -> bool:
        """Whether the cosines are at `bound` or over it, and no score is off by more than 1 - bound."""
        cosines = [value for value in (self.pooled, self.tokens) if value is not None]
        return all(value >= bound for value in cosines) and (self.scores is None or self.scores <= 1 - bound)


def agreement(
    photo: str,
    served: Served,
    reference: ReferenceRow,
    *,
    preprocessing: Preprocessing,
    served_texts: Floats | None = None,
    reference_texts: Floats | None = None,
) -> Agreement:
    """Both sides of one picture compared. Texts: [N, E], not normalised.

    Raises ValueError if the two do not even have the same shape.
    """
    row = served.row
    pooled = None if reference.pooled is None else _least_cosine("pooled vector", row.pooled, reference.pooled)
    tokens = None if reference.tokens is None else _least_cosine("tokens", *_patches(row, reference.tokens))
    scores, same_text = None, None
    if served_texts is not None and reference_texts is not None:
        assert row.pooled is not None
        assert reference.pooled is not None
        ours, theirs = _cosines(served_texts, row.pooled), _cosines(reference_texts, reference.pooled)
        scores, same_text = float(np.abs(ours - theirs).max()), bool(ours.argmax() == theirs.argmax())
    return Agreement(
        photo,
        pixels=_pixel_difference(served.pixels, reference.pixels, preprocessing),
        pooled=pooled,
        tokens=tokens,
        scores=scores,
        same_text=same_text,
    )


def least(values: Iterable[float | None]) -> float | None:
    """The least of the values that are there."""
    return min((value for value in values if value is not None), default=None)


def most(values: Iterable[float | None]) -> float | None:
    """The greatest of the values that are there."""
    return max((value for value in values if value is not None), default=None)


def _pixel_difference(pixels: Pixels, reference: Floats | None, preprocessing: Preprocessing) -> float | None:
    """In steps of 255, so that a mean or a std of another kind shows as well."""
    if reference is None:
        return None
    std = np.asarray(preprocessing.std, np.float32)
    ours = (pixels.astype(np.float32) / 255 - np.asarray(preprocessing.mean, np.float32)) / std
    theirs = reference.transpose(1, 2, 0)
    _require_equal("pixels", ours.shape, theirs.shape)
    return float((np.abs(ours - theirs) * std * 255).max())


def _patches(row: Encoded, reference: Floats) -> tuple[Floats, Floats]:
    """The patch tokens of both, which stand behind any prefix tokens."""
    count = row.grid.rows * row.grid.cols
    assert row.tokens is not None, "tokens are asked for"
    return row.tokens[-count:], reference[-count:]


def _least_cosine(name: str, served: Floats | None, reference: Floats) -> float:
    assert served is not None, f"{name} are asked for"
    _require_equal(name, served.shape, reference.shape)
    return float(_cosines(served, reference).min())


def _cosines(a: Floats, b: Floats) -> Floats:
    """Along the last axis, in float64. NaN where a vector has no length or holds no numbers."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = (wide_a * wide_b).sum(-1) / (np.linalg.norm(wide_a, axis=-1) * np.linalg.norm(wide_b, axis=-1))
    return found


def _require_equal(name: str, served: tuple[int, ...], reference: tuple[int, ...]) -> None:
    if served != reference:
        raise ValueError(f"the {name} served have the shape {list(served)}, the reference's {list(reference)}")
