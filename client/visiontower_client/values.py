"""What the client gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from visiontower_client.errors import VisiontowerError

Array: TypeAlias = NDArray[Any]
"""float32 (asked for as float32 or bfloat16), float16, int8, or uint8 (uint8, and binary: eight dimensions a byte)."""
Output: TypeAlias = Literal["pooled", "tokens", "both"]
Errors: TypeAlias = Literal["raise", "return"]
Resolution: TypeAlias = int | str | tuple[int, int]
"""N, "HxW" or (H, W)."""


class Text(str):
    """Words that look like the name of a file or an address, and are meant as words: Text("cat.jpg")."""


class Options(TypedDict, total=False):
    """Options of /embed. None is the server's default.

    model: id of a served encoder; the first served. layer: block whose raw output to give as tokens, from the end if
    negative. resolution: run the model at that size. prefix: keep class and register tokens. project: tokens through
    the model's own projection. tiles: cut images into views, as LLaVA-NeXT does. normalize: vectors of length 1.
    dtype: on the wire, and of the arrays; bfloat16 arrives as float32. truncate: cut long texts; False refuses them.
    """

    model: str | None
    layer: int | None
    resolution: Resolution | None
    prefix: bool
    project: bool
    tiles: bool
    normalize: bool
    dtype: Literal["float32", "float16", "bfloat16", "int8", "uint8", "binary"]
    truncate: bool


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Embedding:
    """One image or text.

    index: among the inputs. pooled: [width]. tokens: [tokens, width], row-major over `grid` (rows, columns), behind
    `prefix_tokens` class and register tokens. was_cut: the text was longer than the model reads. error: in place of
    the arrays.
    """

    index: int
    pooled: Array | None = None
    tokens: Array | None = None
    grid: tuple[int, int] | None = None
    prefix_tokens: int = 0
    was_cut: bool = False
    error: VisiontowerError | None = None


class Both(NamedTuple):
    """pooled: [n, width]. tokens: [n, tokens, width]."""

    pooled: Array
    tokens: Array


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Similarity:
    """Images against texts: float32 [images, texts] each.

    heatmaps: one an image, [texts, rows, columns], if asked for. truncated: indices of texts that were cut.
    errors: by index of the image, whose rows are NaN and whose heat map is None; empty unless errors="return".
    """

    model: str
    cosine: NDArray[np.float32]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    activation: str
    logit_scale: float
    logit_bias: float | None
    heatmaps: Sequence[NDArray[np.float32] | None] = ()
    truncated: Sequence[int] = ()
    errors: Mapping[int, VisiontowerError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Label:
    """A label of an image. index: among the labels."""

    label: str
    index: int
    probability: float
    cosine: float


@dataclass(frozen=True)
class Ready:
    """Whether the server can answer: true or false in an `if`. models: the state of each."""

    is_ready: bool
    reason: str | None
    models: Mapping[str, Mapping[str, Any]]

    def __bool__(self) -> bool:
        return self.is_ready
