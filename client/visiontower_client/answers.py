"""Answers of the server -> values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from visiontower_client import safetensors
from visiontower_client.errors import ServerFailed, VisiontowerError, of_problem
from visiontower_client.values import Embedding, Label, Similarity
from visiontower_client.wire import json_of, unexpected


@dataclass(frozen=True)
class Scores:
    """One image of /similarity: a row of an answer."""

    index: int
    answer: Mapping[str, Any] | None
    row: int = 0
    error: VisiontowerError | None = None


@dataclass(frozen=True)
class Classes:
    """One image of /classify."""

    index: int
    labels: Sequence[Label] = ()
    error: VisiontowerError | None = None


def embeddings(response: httpx.Response, *, images: Sequence[int], texts: Sequence[int]) -> list[Embedding]:
    """Of an answer of /embed. images, texts: the index among the inputs of each that was sent, in the order sent.

    Raises ServerFailed for an answer that has not exactly one entry for each.
    """
    if not response.headers.get("content-type", "").startswith("application/vnd.safetensors"):
        errors = [entry for entry in _list(response, "data") if "error" in entry]  # no image could be answered
        return _complete(response, [_failed(entry, images) for entry in errors], len(images) + len(texts))
    try:
        arrays, about = safetensors.read(response.content)
        rows = _numbers(about["index"])
        failed = json.loads(about.get("errors", "[]"))
        grid, cut = _numbers(about.get("grid", "")), set(_numbers(about.get("truncated", "")))
        prefix = int(about.get("prefix_tokens", "0"))
        none = [None] * len(rows)
        found = [
            Embedding(images[index], pooled, tokens, (grid[0], grid[1]), prefix)
            for index, pooled, tokens in zip(rows, arrays.get("pooled", none), arrays.get("tokens", none), strict=True)
        ]
        vectors = arrays.get("texts", ())
        found += [Embedding(texts[index], vector, was_cut=index in cut) for index, vector in enumerate(vectors)]
        found += [_failed(entry, images) for entry in failed]
    except (ValueError, LookupError, TypeError) as error:
        raise unexpected(response, str(error)) from error
    return _complete(response, found, len(images) + len(texts))


def scores(response: httpx.Response, *, images: Sequence[int]) -> list[Scores]:
    """Of an answer of /similarity, an entry an image. Raises ServerFailed."""
    answer = json_of(response)
    try:
        errors = {entry["index"]: entry["error"] for entry in answer.get("errors", ())}
        return [
            Scores(index, answer, row, of_problem(errors[row], index=index) if row in errors else None)
            for row, index in enumerate(images)
        ]
    except (LookupError, TypeError) as error:
        raise unexpected(response, repr(error)) from error


def similarity(found: Sequence[Scores], *, texts: int) -> Similarity:
    """All images, in order. Raises the error of the first if none could be compared."""
    about = next((each.answer for each in found if each.answer is not None), None)
    if about is None:
        raise found[0].error or ServerFailed("No image was compared.")
    return Similarity(
        model=about["model"],
        cosine=_rows(found, "cosine", texts),
        logits=_rows(found, "logits", texts),
        probabilities=_rows(found, "probabilities", texts),
        activation=about["activation"],
        logit_scale=about["logit_scale"],
        logit_bias=about["logit_bias"],
        heatmaps=[_heatmap(each) for each in found] if "heatmap" in about else (),
        truncated=tuple(about["truncated"]),
        errors={each.index: each.error for each in found if each.error is not None},
    )


def classes(response: httpx.Response, *, images: Sequence[int]) -> list[Classes]:
    """Of an answer of /classify, an entry an image. Raises ServerFailed."""
    try:
        found = [_classes(entry, images) for entry in _list(response, "data")]
    except (LookupError, TypeError) as error:
        raise unexpected(response, repr(error)) from error
    if [each.index for each in found] != list(images):
        raise unexpected(response, f"{len(found)} entries for {len(images)} images")
    return found


def _classes(entry: Mapping[str, Any], images: Sequence[int]) -> Classes:
    index = images[entry["index"]]
    if "error" in entry:
        return Classes(index, error=of_problem(entry["error"], index=index))
    labels = [Label(one["label"], one["index"], one["probability"], one["cosine"]) for one in entry["labels"]]
    return Classes(index, labels)


def _rows(found: Sequence[Scores], name: str, texts: int) -> NDArray[np.float32]:
    """A row an image; of one that failed, NaN."""
    rows = np.full((len(found), texts), np.nan, np.float32)
    for row, each in zip(rows, found, strict=True):
        if each.error is None and each.answer is not None:
            row[:] = each.answer[name][each.row]
    return rows


def _heatmap(scores: Scores) -> NDArray[np.float32] | None:
    if scores.error is not None or scores.answer is None:
        return None
    return np.array(scores.answer["heatmap"][scores.row], np.float32)


def _complete(response: httpx.Response, found: list[Embedding], number: int) -> list[Embedding]:
    found.sort(key=lambda each: each.index)
    if len({each.index for each in found}) != number or len(found) != number:
        raise unexpected(response, f"{len(found)} entries for {number} inputs")
    return found


def _failed(entry: Mapping[str, Any], images: Sequence[int]) -> Embedding:
    index = images[entry["index"]]
    return Embedding(index, error=of_problem(entry["error"], index=index))


def _list(response: httpx.Response, name: str) -> list[Any]:
    entries = json_of(response).get(name)
    if not isinstance(entries, list):
        raise unexpected(response, f"it has no '{name}'")
    return entries


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
