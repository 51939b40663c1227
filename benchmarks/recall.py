"""What vectors in fewer bits cost: of the ten nearest by float32, how many are still found. On the demo encoders.

    python -m benchmarks.recall --gallery 5000 --queries 500

Gallery and queries are drawn scenes that training did not see. Nothing here is timed.
"""

import argparse
import asyncio
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from encoders.contract.values import Floats
from service.engine import EmbedRequest, Engine
from service.engine.postprocess import l2_normalize, quantized
from service.engine.values import DTYPES, Embedding, Numbers, VectorDtype
from service.settings import Settings
from training.demo.saving import IMAGE_SIZE
from training.demo.world import Scene, caption, render, sample_scene

_SEED = 20_261_129
_NEAREST = 10
_AGAIN = 4
"""So many times the wanted number are found by binary vectors, to be ranked again."""
_TOGETHER = 64

Ranks = NDArray[np.int64]
"""[queries, k]: places in the gallery, the nearest first."""


@dataclass(frozen=True)
class Way:
    """How the gallery is kept and searched. bytes_of: of a vector of this width."""

    name: str
    bytes_of: Callable[[int], int]
    nearest: Callable[[Floats, Floats], Ranks]


def by_cosine(queries: Numbers, gallery: Numbers, k: int = _NEAREST) -> Ranks:
    """Of vectors [N, D] of any length. Of equal ones the first."""
    cosines = l2_normalize(queries.astype(np.float32)) @ l2_normalize(gallery.astype(np.float32)).T
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def by_bits(queries: Numbers, gallery: Numbers, k: int = _NEAREST) -> Ranks:
    """Of bits, eight to a uint8 [N, D / 8]: by how many differ. Of equal ones the first."""
    differing = [np.bitwise_count(gallery ^ query).sum(axis=1, dtype=np.int64) for query in queries]
    return np.argsort(np.stack(differing), axis=1, kind="stable")[:, :k]


def in_eight_bits(queries: Floats, gallery: Floats) -> Ranks:
    """Both in int8, by their cosines."""
    return by_cosine(quantized(queries, "int8"), quantized(gallery, "int8"))


def in_shifted_bits(queries: Floats, gallery: Floats) -> Ranks:
    """Both in uint8, as a store that does not take 128 off again compares them."""
    return by_cosine(quantized(queries, "uint8"), quantized(gallery, "uint8"))


def in_shifted_bits_put_back(queries: Floats, gallery: Floats) -> Ranks:
    """Both in uint8, less 128."""
    asked, kept = (quantized(vectors, "uint8").astype(np.int16) - 128 for vectors in (queries, gallery))
    return by_cosine(asked, kept)


def in_one_bit(queries: Floats, gallery: Floats) -> Ranks:
    """Both in single bits."""
    return by_bits(quantized(queries, "binary"), quantized(gallery, "binary"))


def in_one_bit_ranked_again(queries: Floats, gallery: Floats) -> Ranks:
    """The nearest forty by single bits, ranked again by int8."""
    many = by_bits(quantized(queries, "binary"), quantized(gallery, "binary"), _AGAIN * _NEAREST)
    small = quantized(gallery, "int8")
    again = [by_cosine(query[None], small[places])[0] for query, places in zip(queries, many, strict=True)]
    return np.stack([places[order] for places, order in zip(many, again, strict=True)])


WAYS = (
    Way("float32", lambda width: 4 * width, by_cosine),
    Way("int8", lambda width: width, in_eight_bits),
    Way("uint8, less 128", lambda width: width, in_shifted_bits_put_back),
    Way("uint8 as it is", lambda width: width, in_shifted_bits),
    Way("binary", lambda width: -(-width // 8), in_one_bit),
    Way("binary, 40 ranked again by int8", lambda width: width + -(-width // 8), in_one_bit_ranked_again),
)
assert {way.name.split(",")[0].split()[0] for way in WAYS} == {"float32", *set(get_args(VectorDtype)) - set(DTYPES)}


def recall(found: Ranks, exact: Ranks) -> float:
    """The mean share of the exact ones that were found."""
    return float(np.mean([np.isin(right, got).mean() for right, got in zip(exact, found, strict=True)]))


@dataclass(frozen=True)
class Vectors:
    """Of one model. gallery, images: of pictures. texts: of captions."""

    gallery: Floats
    images: Floats
    texts: Floats


def scenes(number: int, *, seed: int) -> list[Scene]:
    """The same for the same seed."""
    rng = np.random.default_rng([_SEED, seed])
    return [sample_scene(rng, which="all") for _ in range(number)]


def _png(scene: Scene) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render(scene, IMAGE_SIZE)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


async def _pooled(engine: Engine, pictures: Sequence[bytes]) -> Floats:
    rows = []
    for start in range(0, len(pictures), _TOGETHER):
        result = await engine.embed(EmbedRequest(pictures[start : start + _TOGETHER], output="pooled"))
        for item in result.items:
            assert isinstance(item, Embedding), item
            rows.append(item.pooled)
    return np.stack([row for row in rows if row is not None])


async def vectors_of(model: str, gallery: Sequence[Scene], queries: Sequence[Scene]) -> Vectors:
    """As the server gives them, in float32. Captions are as many as there are different ones of the queries."""
    captions = list(dict.fromkeys(caption(scene.subjects) for scene in queries))
    async with Engine(Settings(model=(model,), exact_pixels=True)) as engine:
        texts = [
            (await engine.embed(EmbedRequest(texts=captions[start : start + _TOGETHER]))).texts
            for start in range(0, len(captions), _TOGETHER)
        ]
        return Vectors(
            gallery=await _pooled(engine, [_png(scene) for scene in gallery]),
            images=await _pooled(engine, [_png(scene) for scene in queries]),
            texts=np.concatenate(texts),
        )


def recalls(vectors: Vectors) -> Mapping[str, tuple[float, float]]:
    """By the way's name: from images, from texts."""
    found = {}
    exact = [by_cosine(queries, vectors.gallery) for queries in (vectors.images, vectors.texts)]
    for way in WAYS:
        nearest = [way.nearest(queries, vectors.gallery) for queries in (vectors.images, vectors.texts)]
        found[way.name] = (recall(nearest[0], exact[0]), recall(nearest[1], exact[1]))
    return found


def table(model: str, vectors: Vectors) -> Table:
    """A way a row."""
    width = vectors.gallery.shape[1]
    title = f"{model}: {len(vectors.gallery):,} pictures, {len(vectors.images)} as queries, {len(vectors.texts)} texts"
    shown = Table("kept as", "bytes", "image to image", "text to image", title=title)
    found = recalls(vectors)
    for way in WAYS:
        of_images, of_texts = found[way.name]
        shown.add_row(way.name, f"{way.bytes_of(width)}", f"{of_images:.3f}", f"{of_texts:.3f}")
    return shown


def main() -> None:
    """Draw, embed, search, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="demo encoders [all three]")
    parser.add_argument("--gallery", type=int, default=5000, help="pictures to search [5000]")
    parser.add_argument("--queries", type=int, default=500, help="pictures to search with; their captions too [500]")
    arguments = parser.parse_args()
    gallery, queries = scenes(arguments.gallery, seed=1), scenes(arguments.queries, seed=2)
    for model in arguments.model or Settings.model_fields["model"].default:
        Console().print(table(model, asyncio.run(vectors_of(model, gallery, queries))))


if __name__ == "__main__":
    main()
