"""Answers of the server -> values."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from visiontower_client import safetensors
from visiontower_client.errors import ServerFailed, VisiontowerError, of_problem
from visiontower_client.values import Array, Embedding, Label, Output, Similarity
from visiontower_client.wire import json_of, reading, unexpected

_ROWS = ("cosine", "logits", "probabilities")


@dataclass(frozen=True)
class Scores:
    """One image of /similarity. about: the answer that it stood in. rows: [texts] by name. heatmap: if asked for."""

    index: int
    about: Mapping[str, Any] | None
    rows: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    heatmap: NDArray[np.float32] | None = None
    error: VisiontowerError | None = None


@dataclass(frozen=True)
class Classes:
    """One image of /classify."""

    index: int
    labels: Sequence[Label] = ()
    error: VisiontowerError | None = None


def embeddings(
    response: httpx.Response, *, output: Output, images: Sequence[int], texts: Sequence[int]
) -> list[Embedding]:
    """Of an answer of /embed. images, texts: the index among the inputs of each that was sent, in the order sent.

    Raises ServerFailed for an answer that has not exactly one entry for each, with the arrays of the output.
    """
    if not response.headers.get("content-type", "").startswith("application/vnd.safetensors"):
        entries = _list(response, "data")
        with reading(response):  # no image could be answered
            found = [_failed(entry, images) for entry in entries if "error" in entry]
        return _complete(response, found, len(images) + len(texts))
    with reading(response):
        arrays, about = safetensors.read(response.content)
        rows = _numbers(about.get("index", ""))
        failed = json.loads(about.get("errors", "[]"))
        grid, cut = _numbers(about.get("grid", "")), set(_numbers(about.get("truncated", "")))
        prefix = int(about.get("prefix_tokens", "0"))
        none = [None] * len(rows)
        pooled = _stack(arrays, "pooled", axes=2) if rows and output != "tokens" else none
        tokens = _stack(arrays, "tokens", axes=3) if rows and output != "pooled" else none
        found = [
            Embedding(_at(images, index), vector, of_patches, (grid[0], grid[1]), prefix)
            for index, vector, of_patches in zip(rows, pooled, tokens, strict=True)
        ]
        vectors = _stack(arrays, "texts", axes=2) if texts else ()
        found += [Embedding(_at(texts, index), vector, was_cut=index in cut) for index, vector in enumerate(vectors)]
        found += [_failed(entry, images) for entry in failed]
    return _complete(response, found, len(images) + len(texts))


def scores(response: httpx.Response, *, images: Sequence[int], texts: int, has_heatmaps: bool) -> list[Scores]:
    """Of an answer of /similarity, an entry an image. Raises ServerFailed."""
    answer = json_of(response)
    with reading(response):
        about = {name: answer[name] for name in ("model", "activation", "logit_scale", "logit_bias", "truncated")}
        failed = [_failed(entry, images) for entry in answer.get("errors", ())]
        errors = {each.index: each.error for each in failed}
        found = []
        for place, index in enumerate(images):
            if index in errors:
                found.append(Scores(index, about, error=errors[index]))
                continue
            rows = {name: _floats(answer[name][place], axes=1, texts=texts) for name in _ROWS}
            heatmap = _floats(answer["heatmap"][place], axes=3, texts=texts) if has_heatmaps else None
            found.append(Scores(index, about, rows, heatmap))
    return found


def similarity(found: Sequence[Scores], *, texts: int, has_heatmaps: bool) -> Similarity:
    """All images, in order. Raises the error of the first if none could be compared."""
    about = next((each.about for each in found if each.about is not None), None)
    if about is None:
        raise found[0].error or ServerFailed("No image was compared.")
    cosine, logits, probabilities = (_rows(found, name, texts) for name in _ROWS)
    return Similarity(
        model=about["model"],
        cosine=cosine,
        logits=logits,
        probabilities=probabilities,
        activation=about["activation"],
        logit_scale=about["logit_scale"],
        logit_bias=about["logit_bias"],
        heatmaps=[each.heatmap for each in found] if has_heatmaps else (),
        truncated=tuple(about["truncated"]),
        errors={each.index: each.error for each in found if each.error is not None},
    )


def classes(response: httpx.Response, *, images: Sequence[int]) -> list[Classes]:
    """Of an answer of /classify, an entry an image. Raises ServerFailed."""
    entries = _list(response, "data")
    with reading(response):
        found = [_classes(entry, images) for entry in entries]
    if [each.index for each in found] != list(images):
        raise unexpected(response, f"{len(found)} entries for {len(images)} images")
    return found


def _classes(entry: Mapping[str, Any], images: Sequence[int]) -> Classes:
    if "error" in entry:
        failed = _failed(entry, images)
        return Classes(failed.index, error=failed.error)
    labels = [
        Label(str(one["label"]), int(one["index"]), float(one["probability"]), float(one["cosine"]))
        for one in entry["labels"]
    ]
    return Classes(_at(images, entry["index"]), labels)


def _rows(found: Sequence[Scores], name: str, texts: int) -> NDArray[np.float32]:
    """A row an image; of one that failed, NaN."""
    rows = np.full((len(found), texts), np.nan, np.float32)
    for row, each in zip(rows, found, strict=True):
        if name in each.rows:
            row[:] = each.rows[name]
    return rows


def _floats(values: object, *, axes: int, texts: int) -> NDArray[np.float32]:
    """Raises ValueError or TypeError for anything but nested lists of numbers, with a first axis of the texts."""
    array = np.array(values, np.float32)
    if array.ndim != axes or len(array) != texts:
        raise ValueError(f"it has scores of shape {list(array.shape)} for {texts} texts")
    return array


def _stack(arrays: Mapping[str, Array], name: str, *, axes: int) -> Array:
    """Raises ValueError or KeyError for an array that is not there, or has other axes."""
    array = arrays[name]
    if array.ndim != axes:
        raise ValueError(f"'{name}' has the shape {list(array.shape)}")
    return array


def _at(indices: Sequence[int], place: object) -> int:
    """The index of the input at a place in the request. Raises IndexError."""
    if type(place) is not int or not 0 <= place < len(indices):
        raise IndexError("it has an entry for what was not sent")
    return indices[place]


def _complete(response: httpx.Response, found: list[Embedding], number: int) -> list[Embedding]:
    found.sort(key=lambda each: each.index)
    if len({each.index for each in found}) != number or len(found) != number:
        raise unexpected(response, f"{len(found)} entries for {number} inputs")
    return found


def _failed(entry: Mapping[str, Any], images: Sequence[int]) -> Embedding:
    index = _at(images, entry["index"])
    return Embedding(index, error=of_problem(entry["error"], index=index))


def _list(response: httpx.Response, name: str) -> list[Any]:
    entries = json_of(response).get(name)
    if not isinstance(entries, list):
        raise unexpected(response, f"it has no '{name}'")
    return entries


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
