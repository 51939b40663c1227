"""The engine by itself: request values in, result values out, no server."""

import asyncio
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from encoders import TokenKind, load, pixels_of
from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.errors import EmptyImage, ImageError, OutputNotOffered, VisiontowerError
from encoders.contract.values import ImageSize
from service.bulk.embedding import EngineEmbedder
from service.bulk.run import Job, run
from service.bulk.sources import inputs_of
from service.engine import EmbedRequest, Engine, PlanRequest, SimilarityRequest
from service.engine.values import Embedding, ImageUrl, Scores, Source
from service.errors import (
    DeadlineExceeded,
    ImageUnreadable,
    ImageUrlRefused,
    InvalidOption,
    NoImages,
    NoTexts,
    Overloaded,
    ShuttingDown,
    TextTooLong,
    TooManyTexts,
    UnknownModel,
)
from service.http.app import create_app
from service.settings import Settings
from tests.encoders.images.files import CASES
from tests.support import openclip_folders
from tests.support.photographs import photograph
from tests.support.serving import PNG, Gate, backend_of, client_of, noise

pytestmark = pytest.mark.anyio
PICTURE = noise(1)
_HIDDEN = fake_spec().outputs(tokens=TokenKind.HIDDEN)


@asynccontextmanager
async def engine_of(*encoders: FakeEncoder, **settings: Any) -> AsyncIterator[Engine]:
    models = tuple(encoder.spec.id for encoder in encoders) or ("fake:vit",)
    async with Engine(Settings(model=models, **settings), backend=backend_of(*encoders)) as engine:
        yield engine


def embedding(item: Embedding | VisiontowerError) -> Embedding:
    assert isinstance(item, Embedding), item
    return item


async def test_images_come_as_bytes_or_files_and_a_bad_one_is_an_error_at_its_place(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(PICTURE)
    sources: list[Source] = [
        PICTURE,
        b"",
        file,
        tmp_path / "none.png",
        ImageUrl("http://example.org/a.png"),
        EmptyImage(),
    ]
    async with engine_of() as engine:
        result = await engine.embed(EmbedRequest(sources, output="both"))
    same, empty, read, missing, url, given = result.items
    np.testing.assert_array_equal(embedding(same).tokens, embedding(read).tokens)
    assert embedding(same).tokens is not None
    assert (type(empty), type(missing), type(url)) == (EmptyImage, ImageUnreadable, ImageUrlRefused)
    assert given is sources[-1]
    assert (result.model, result.tokens) == ("fake:vit", 2 * 16)
    assert result.timing.total >= result.timing.forward > 0


@pytest.mark.parametrize("is_set", [False, True])
async def test_files_that_cannot_be_read_are_errors_at_their_places(tmp_path: Path, is_set: bool) -> None:
    """A device may have no end, and to a pipe nobody may ever write."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    names = ["pipe.png", "zero.png", "loop.png", "nul\0.png", f"{'x' * 300}.png"]
    async with engine_of() as engine:
        request = EmbedRequest([tmp_path / name for name in names], output="pooled", is_set=is_set)
        pipe, *items = (await engine.embed(request)).items
    assert isinstance(pipe, EmptyImage)
    assert [item.reason for item in items if isinstance(item, ImageUnreadable)] == [
        "It is a device",
        "Too many levels of symbolic links",
        "No file can have this name",
        "File name too long",
    ]


@pytest.mark.parametrize("is_set", [False, True])
async def test_every_odd_image_is_an_error_or_an_answer_at_its_place_and_its_neighbours_are_answered(
    is_set: bool,
) -> None:
    odd = sorted(CASES.iterdir())
    sources: list[Source] = [source for path in odd for source in (path, PICTURE)]
    async with engine_of() as engine:
        result = await engine.embed(EmbedRequest(sources, output="pooled", is_set=is_set))
    assert all(isinstance(item, Embedding) for item in result.items[1::2])
    refused = {path.name for path, item in zip(odd, result.items[::2], strict=True) if isinstance(item, ImageError)}
    assert refused == {"avif_av1_damaged.avif", "jpeg_12bit.jpg", "tiff_f32_0_65535.tif", "tiff_u16_planar.tif"}


async def test_an_option_about_tokens_needs_tokens() -> None:
    async with engine_of() as engine:
        for wrong in ({"layer": 1}, {"prefix": True}, {"project": True}):
            with pytest.raises(InvalidOption, match=next(iter(wrong))):
                await engine.embed(EmbedRequest([PICTURE], output="pooled", **wrong))
        with pytest.raises(InvalidOption):
            await engine.plan(PlanRequest(output="pooled", layer=1))


async def test_equal_questions_are_resolved_once_and_different_ones_are_kept_apart() -> None:
    async with engine_of() as engine:
        for _ in range(2):
            widths = [
                embedding((await engine.embed(EmbedRequest([PICTURE], **options))).items[0]).tokens.shape  # type: ignore[union-attr]
                for options in ({}, {"prefix": True}, {"project": True}, {"resolution": ImageSize(64, 32)})
            ]
            assert widths == [(16, 12), (17, 12), (16, 6), (32, 12)]


async def test_texts_alone_become_vectors() -> None:
    encoder = FakeEncoder()
    async with engine_of(encoder) as engine:
        encoder.batches.clear()
        result = await engine.embed(EmbedRequest(texts=["a", "b", "a"], normalize=True, dtype="float16"))
        scores = await engine.similarity(SimilarityRequest([PICTURE], ["a", "b"]))
    vectors = encoder.encode_text(encoder.tokenize(["a", "b"]).ids)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (result.texts.dtype.name, result.texts.shape, result.model) == ("float16", (3, 6), "fake:vit")
    np.testing.assert_allclose(result.texts, unit[[0, 1, 0]], atol=1e-3)
    assert not isinstance(scores.items[0], VisiontowerError)
    assert sum(encoder.batches) >= 2, "equal texts are embedded once"


async def test_texts_past_the_context_length_are_named_or_refused() -> None:
    texts = ["a", "seventeen bytes !", "a", "seventeen bytes ?"]
    async with engine_of() as engine:
        vectors = await engine.embed(EmbedRequest(texts=texts))
        scores = await engine.similarity(SimilarityRequest([PICTURE], texts))
        assert list(vectors.truncated) == list(scores.truncated) == [1, 3]
        np.testing.assert_array_equal(vectors.texts[1], vectors.texts[3])
        for request in (
            EmbedRequest(texts=texts, truncate=False),
            SimilarityRequest([PICTURE], texts, truncate=False),
        ):
            with pytest.raises(TextTooLong) as caught:
                await engine.run(request)
            assert caught.value.facts["texts"] == [1, 3]
        assert not (await engine.embed(EmbedRequest(texts=["a"], truncate=False))).truncated


async def test_a_text_tower_of_transformers_is_served(tmp_path: Path) -> None:
    """With real encoders: its forwards are planned, and its texts are scored."""
    openclip_folders.write("roberta", tmp_path)
    texts = ["w1 w2", " ".join(["w3"] * 75), " ".join(["w3"] * 76), "w3"]
    async with Engine(Settings(model=(f"openclip:{tmp_path}",), device="cpu")) as engine:
        result = await engine.similarity(SimilarityRequest([PICTURE], texts))
    (scores,) = result.items
    assert not isinstance(scores, VisiontowerError)
    assert (len(scores.cosine), list(result.truncated)) == (4, [2])
    assert scores.cosine[1] == scores.cosine[2]


async def test_what_texts_cannot_be_is_said() -> None:
    images_only = FakeEncoder(fake_spec("fake:images", scoring=None, context_length=None))
    async with engine_of(FakeEncoder(), images_only, max_texts=2) as engine:
        for request, error in (
            (SimilarityRequest([PICTURE], []), NoTexts),
            (EmbedRequest(texts=["a", "b", "c"]), TooManyTexts),
            (EmbedRequest(texts=["a"], model="fake:images"), OutputNotOffered),
            (EmbedRequest(texts=["a"], model="fake:none"), UnknownModel),
            (SimilarityRequest([PICTURE], ["a"], templates=()), InvalidOption),
            (SimilarityRequest([], ["a"]), NoImages),
            (EmbedRequest([]), NoImages),
        ):
            with pytest.raises(error):
                await engine.run(request)


async def test_run_answers_every_kind_of_request() -> None:
    async with engine_of() as engine:
        for request in (
            EmbedRequest([PICTURE]),
            EmbedRequest(texts=["a"]),
            SimilarityRequest([PICTURE], ["a"]),
            PlanRequest(),
        ):
            assert (await engine.run(request)).model == "fake:vit"


async def test_an_answer_says_how_many_numbers_it_holds() -> None:
    """Large ones are worked on and written on a thread, so that the event loop goes on."""
    async with engine_of() as engine:
        scores = await engine.similarity(SimilarityRequest([PICTURE, b"bad", noise(2)], ["a", "b", "c"], heatmap=True))
        vectors = await engine.embed(EmbedRequest([PICTURE], output="pooled"))
    (first, bad, _) = scores.items
    assert isinstance(first, Scores)
    assert isinstance(bad, VisiontowerError)
    assert first.heatmap is not None
    assert scores.values == 2 * (3 * 3 + first.heatmap.size)
    assert vectors.values == fake_spec().pooled_size


async def test_a_plan_is_of_the_size_asked_and_runs_nothing() -> None:
    encoder = FakeEncoder()
    async with engine_of(encoder) as engine:
        encoder.batches.clear()
        result = await engine.plan(PlanRequest(resolutions=[ImageSize(64, 64)], batches=[1, 8]))
    assert [(each.row.size, each.row.prediction.batch) for each in result.rows] == [((64, 64), 1), ((64, 64), 8)]
    assert encoder.batches == []


async def test_a_request_ends_at_its_own_deadline_and_its_images_leave_the_queue() -> None:
    gate = Gate()
    encoder = FakeEncoder(before=gate)
    async with engine_of(encoder) as engine:
        gate.close()
        held = asyncio.create_task(engine.embed(EmbedRequest([PICTURE], timeout_s=math.inf)))
        await gate.someone_inside()
        with pytest.raises(DeadlineExceeded):
            await engine.embed(EmbedRequest([PICTURE], timeout_s=0.01))
        assert engine.threads.waiting("fake:vit")[0] == 0
        gate.is_open.set()
        assert isinstance((await held).items[0], Embedding)


async def test_overload_and_shutdown_are_refused_at_once() -> None:
    gate = Gate()
    encoder = FakeEncoder(before=gate)
    async with engine_of(encoder, queue_images=1, max_images=1) as engine:
        gate.close()
        held = asyncio.create_task(engine.embed(EmbedRequest([PICTURE])))
        await gate.someone_inside()
        with pytest.raises(Overloaded):
            await engine.embed(EmbedRequest([PICTURE]))
        gate.is_open.set()
        await held
        await engine.drain()
        with pytest.raises(ShuttingDown):
            await engine.embed(EmbedRequest([PICTURE]))


async def test_a_set_shares_its_forwards_with_nobody() -> None:
    gate = Gate()
    encoder = FakeEncoder(before=gate)
    async with engine_of(encoder, max_batch=4) as engine:
        await engine.embed(EmbedRequest([PICTURE]))
        encoder.batches.clear()
        gate.close()
        held = asyncio.create_task(engine.embed(EmbedRequest([PICTURE])))
        await gate.someone_inside()
        others = [asyncio.create_task(engine.embed(EmbedRequest([noise(seed)]))) for seed in range(2)]
        group = asyncio.create_task(engine.embed(EmbedRequest([noise(7), b"bad", *map(noise, range(5))], is_set=True)))
        async with asyncio.timeout(30):
            while engine.threads.waiting("fake:vit")[0] < 2 + 6:
                await asyncio.sleep(0)
        gate.is_open.set()
        result = await group
        await asyncio.gather(held, *others)
    assert sorted(encoder.batches) == [1, 2, 2, 4]
    alone = encoder.encode(pixels_of(encoder, noise(4))[None], _HIDDEN).tokens
    assert alone is not None
    np.testing.assert_allclose(embedding(result.items[6]).tokens, alone[0, 1:], rtol=1e-6)  # type: ignore[arg-type]
    assert isinstance(result.items[1], VisiontowerError)


async def test_a_rehearsal_that_fails_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    backend = backend_of(FakeEncoder())

    class Broken:
        spec = fake_spec()

        def cost(self, size: ImageSize, outputs: Any, *, device: str) -> Any:
            if outputs.tokens:
                raise RuntimeError("no such operator on meta")
            return FakeEncoder().blueprint.cost(size, outputs, device=device)

        def text_cost(self, *, device: str) -> Any:
            return FakeEncoder().blueprint.text_cost(device=device)

    broken = replace(backend, blueprint=lambda model, dtype: Broken())
    async with Engine(Settings(model=("fake:vit",)), backend=broken) as engine:
        async with asyncio.timeout(30):
            while "could not be planned ahead" not in caplog.text:
                await asyncio.sleep(0)
        assert isinstance((await engine.embed(EmbedRequest([PICTURE], output="pooled"))).items[0], Embedding)
    assert "no such operator on meta" in caplog.text


async def test_an_encoder_that_answers_in_other_widths_than_its_spec_fails() -> None:
    encoder = FakeEncoder()
    async with engine_of(encoder) as engine:
        for wider in (
            lambda encoded: replace(encoded, tokens=np.concatenate([encoded.tokens] * 2, axis=2)),
            lambda encoded: replace(encoded, tokens=encoded.tokens[:, :-1]),
            lambda encoded: replace(encoded, prefix_tokens=0),
        ):
            encoder.after = wider
            (item,) = (await engine.embed(EmbedRequest([PICTURE]))).items
            assert isinstance(item, VisiontowerError)
            assert "spec" in str(item)


@pytest.mark.parametrize("exact", [False, True])
async def test_one_photograph_gives_one_vector_whichever_way_it_comes(exact: bool, tmp_path: Path) -> None:
    """Over HTTP, through the engine, in a bulk run, and by the library; with the same settings, in float32."""
    path = tmp_path / "photograph.jpg"
    photograph("coffee").save(path, quality=90)
    settings = Settings(model=("demo:vit",), device="cpu", dtype="float32", exact_pixels=exact)
    async with client_of(create_app(settings)) as client:
        answer = await client.post("/embed?output=pooled", content=path.read_bytes(), headers=PNG)
    async with Engine(settings) as engine:
        (item,) = (await engine.embed(EmbedRequest([path], output="pooled"))).items
        await run(
            Job(tmp_path / "out.npy", inputs_of([str(path)]), EmbedRequest((), output="pooled")), EngineEmbedder(engine)
        )
    encoder = load("demo:vit")
    pixels = pixels_of(encoder, path.read_bytes(), exact=exact)
    library = encoder.encode(pixels[None], encoder.spec.outputs(pooled=True)).pooled
    assert library is not None
    over_http = np.array(answer.json()["data"][0]["pooled"]["data"], np.float32)
    for vector in (over_http, embedding(item).pooled, np.load(tmp_path / "out.npy")[0]):
        assert vector is not None
        np.testing.assert_allclose(vector, library[0], rtol=1e-5, atol=1e-6)
    other = encoder.encode(
        pixels_of(encoder, path.read_bytes(), exact=not exact)[None], encoder.spec.outputs(pooled=True)
    ).pooled
    assert other is not None
    assert np.abs(other[0] - library[0]).max() > 1e-4, "the two ways of making pixels can be told apart here"


def _pooled(encoder: Any) -> Any:
    return encoder.spec.outputs(pooled=True)
