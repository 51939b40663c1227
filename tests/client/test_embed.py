"""Images and texts through the client: the numbers are those of /embed, each at its place, whatever the form."""

import asyncio
import io
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from encoders.adapters.fake import FakeEncoder, fake_spec
from service.engine.backend import real_backend
from service.http.app import create_app
from service.settings import Settings
from tests.client.support import client, client_of
from tests.support.photographs import photograph
from tests.support.serving import Gate, app_of, image_bytes, noise
from tests.support.waiting import until
from visiontower_client import AsyncClient, BadImage, InvalidRequest, Text, UnknownModel

pytestmark = pytest.mark.anyio
PICTURES = [noise(seed) for seed in range(11)]


async def expected(app: Any, pictures: list[bytes], **options: Any) -> dict[str, Any]:
    """What the service answers when it is asked without this client; as lists of arrays."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as plain:
        answers = [await plain.post("/embed", params=options, files={"image": picture}) for picture in pictures]
    entries = [answer.json()["data"][0] for answer in answers]
    names = entries[0].keys() & {"pooled", "tokens"}
    return {name: np.array([entry[name]["data"] for entry in entries], np.float32) for name in names}


@pytest.mark.parametrize("batch", [1, 4, 64])
async def test_vectors_are_those_of_embed_in_order(batch: int) -> None:
    app = app_of()
    async with client_of(app) as own:
        found = await own.embed(PICTURES, batch=batch, normalize=True)
        theirs = await expected(app, PICTURES, output="pooled", normalize="true")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, theirs["pooled"])


async def test_tokens_and_both_have_an_axis_of_tokens() -> None:
    app = app_of()
    async with client_of(app) as own:
        tokens = await own.embed(PICTURES[:3], output="tokens", layer=-2, prefix=True, resolution=(32, 64))
        both = await own.embed(PICTURES[:3], output="both")
        layers = await expected(app, PICTURES[:3], layer=-2, prefix="true", resolution="32x64")
        theirs = await expected(app, PICTURES[:3], output="both")
    assert tokens.shape == (3, 33, 12)
    np.testing.assert_array_equal(tokens, layers["tokens"])
    np.testing.assert_array_equal(both.tokens, theirs["tokens"])
    np.testing.assert_array_equal(both.pooled, theirs["pooled"])


async def test_every_form_of_an_image_gives_the_same_vector(tmp_path: Path) -> None:
    png = noise(3, (40, 30))
    path = tmp_path / "a.png"
    path.write_bytes(png)
    image = Image.open(io.BytesIO(png))
    pixels = np.asarray(image)
    forms: list[Any] = [png, bytearray(png), memoryview(png), path, io.BytesIO(png), image, pixels]
    async with client() as own:
        found = await own.embed(forms)
        one = [await own.embed(form) for form in (png, path, image, pixels)]
        stacked = await own.embed(np.stack([pixels, pixels]))
        with tempfile.NamedTemporaryFile() as file:  # derives from no class of io
            file.write(png)
            file.seek(0)
            one.append(await own.embed(file))
    assert found.shape == (7, 6)
    assert np.all(found == found[0])
    assert all(np.array_equal(each, found[:1]) for each in one)
    np.testing.assert_array_equal(stacked, found[:2])


async def test_a_pillow_image_is_turned_as_its_file_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.open(io.BytesIO(noise(1, (40, 24)))).save(buffer, "PNG", exif=exif)
    async with client() as own:
        file, opened, lying = await own.embed([buffer.getvalue(), Image.open(buffer), noise(1, (40, 24))])
    np.testing.assert_array_equal(file, opened)
    assert not np.array_equal(file, lying)


async def test_wide_samples_of_a_pillow_image_are_those_of_its_file() -> None:
    """A conversion to 8 bits would clip them: to white, floats to black."""
    wide = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    files = [b"P5 40 30 65535\n" + wide.astype(">u2").tobytes()]
    for image in (
        Image.fromarray(wide),
        Image.fromarray(wide).convert("I;16B"),
        Image.fromarray(wide / np.float32(65535)),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
        files.append(buffer.getvalue())
    opened = [Image.open(io.BytesIO(file)) for file in files]
    assert [image.mode for image in opened] == ["I", "I;16", "I;16B", "F"]
    async with client() as own:
        np.testing.assert_array_equal(await own.embed(opened), await own.embed(files))
        with pytest.raises(BadImage, match="does not say which is black"):
            await own.embed(Image.new("I", (8, 8)))


async def test_texts_stand_beside_images_in_the_order_given() -> None:
    async with client() as own:
        mixed = await own.embed(["a cat", PICTURES[0], "a dog", PICTURES[1]], batch=3)
        texts = await own.embed(["a cat", "a dog"])
        images = await own.embed(PICTURES[:2])
        one = await own.embed("a cat")
    np.testing.assert_array_equal(mixed[[0, 2]], texts)
    np.testing.assert_array_equal(mixed[[1, 3]], images)
    np.testing.assert_array_equal(one, texts[:1])


async def test_a_text_that_was_cut_says_so() -> None:
    async with client() as own:
        items = [item async for item in own.embed_iter(["short", "word " * 100, PICTURES[0]])]
        with pytest.raises(InvalidRequest) as refused:
            await own.embed(["short", "word " * 100], truncate=False)
    assert [item.was_cut for item in items] == [False, True, False]
    assert refused.value.slug == "text-too-long"
    assert refused.value.__notes__ == ["The request had the inputs 0 to 1."]


@pytest.mark.parametrize(
    ("dtype", "given", "width"),
    [
        ("float16", "float16", 6),
        ("bfloat16", "float32", 6),
        ("int8", "int8", 6),
        ("uint8", "uint8", 6),
        ("binary", "uint8", 1),
    ],
)
async def test_dtypes(dtype: Any, given: str, width: int) -> None:
    async with client() as own:
        whole = await own.embed(PICTURES, normalize=True)
        found = await own.embed(PICTURES, normalize=True, dtype=dtype)
    assert (found.dtype, found.shape) == (np.dtype(given), (11, width))
    if "float" in dtype:
        np.testing.assert_allclose(found, whole, atol=1e-2)
    if dtype == "binary":
        np.testing.assert_array_equal(np.unpackbits(found, axis=1)[:, :6], whole > 0)
    found += 0  # can be written to


async def asynchronously(pictures: list[bytes]) -> AsyncIterator[bytes]:
    for picture in pictures:
        await asyncio.sleep(0)
        yield picture


@pytest.mark.parametrize("make", [iter, tuple, asynchronously])
async def test_inputs_may_come_from_anywhere(make: Callable[[list[bytes]], Any]) -> None:
    async with client() as own:
        found = await own.embed(make(PICTURES), batch=2)
        np.testing.assert_array_equal(found, await own.embed(PICTURES))


async def test_a_generator_runs_on_one_thread_beside_the_loop() -> None:
    threads = set()

    def pictures() -> Iterator[bytes]:
        for picture in PICTURES:
            threads.add(threading.get_ident())
            yield picture

    async with client() as own:
        await own.embed(pictures(), batch=2)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_a_generator_is_taken_no_further_than_a_window() -> None:
    taken = 0

    def pictures() -> Iterator[bytes]:
        nonlocal taken
        for index in range(1000):
            taken = index + 1
            yield PICTURES[index % 11]

    async with client_of(app_of(), in_flight=2) as own:
        running = own.embed_iter(pictures(), batch=2)
        first = await anext(running)
        assert first.index == 0
        assert taken <= 2 * (2 * 2 + 1)
        await running.aclose()


async def test_a_slow_source_holds_no_result_back() -> None:
    go_on = threading.Event()

    def pictures() -> Iterator[bytes]:
        yield PICTURES[0]
        assert go_on.wait(30)
        yield PICTURES[1]

    async with client() as own:
        running = own.embed_iter(pictures(), batch=1)
        assert (await anext(running)).index == 0
        go_on.set()
        assert [item.index async for item in running] == [1]


async def test_results_come_in_order_or_as_they_come() -> None:
    class Slow(httpx.AsyncBaseTransport):
        """Holds the first request until the second has been answered."""

        def __init__(self, app: Any) -> None:
            self.inner, self.number, self.second = httpx.ASGITransport(app), 0, asyncio.Event()

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            self.number += 1
            mine = self.number
            if mine == 1:
                await self.second.wait()
            response = await self.inner.handle_async_request(request)
            if mine == 2:
                self.second.set()
            return response

    async def order(ordered: bool) -> list[int]:
        app = app_of()
        async with app.router.lifespan_context(app), AsyncClient("http://service", transport=Slow(app)) as own:
            return [item.index async for item in own.embed_iter(PICTURES[:3], batch=1, ordered=ordered)]

    assert await order(True) == [0, 1, 2]
    as_they_come = await order(False)
    assert sorted(as_they_come) == [0, 1, 2]
    assert as_they_come[0] != 0


async def test_a_bad_image_is_raised_with_its_place_and_facts() -> None:
    async with client() as own:
        with pytest.raises(BadImage) as among:
            await own.embed([*PICTURES[:6], b"no image", *PICTURES[:2]], batch=4)
        with pytest.raises(BadImage) as alone:
            await own.embed([*PICTURES[:6], b"no image"], batch=1)
    for raised in (among, alone):
        error = raised.value
        assert (error.index, error.status, error.slug) == (6, 415, "not-an-image")
        assert "JPEG" in error.facts["formats"]
        assert str(error).startswith("input 6: ")


@pytest.mark.parametrize("batch", [1, 2, 16])
async def test_those_before_a_bad_image_are_given(batch: int) -> None:
    seen = []
    async with client() as own:
        running = own.embed_iter([*PICTURES[:5], b"no image", PICTURES[6]], batch=batch)
        for _ in range(5):
            seen.append((await anext(running)).index)
        with pytest.raises(BadImage, match="input 5"):
            await anext(running)
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("batch", [1, 2, 16])
async def test_or_returned_at_its_place(batch: int, tmp_path: Path) -> None:
    inputs = [PICTURES[0], b"no image", PICTURES[1], tmp_path / "gone.jpg", b"", "a text", PICTURES[2]]
    async with client() as own:
        items = await own.embed(inputs, errors="return", batch=batch)
        good = await own.embed([PICTURES[0], PICTURES[1], "a text", PICTURES[2]])
    assert [item.index for item in items] == list(range(7))
    slugs = [item.error.slug if item.error else "" for item in items]
    assert slugs == ["", "not-an-image", "", "image-unreadable", "empty-image", "", ""]
    assert all(item.error.index == item.index for item in items if item.error)
    vectors = [item.pooled for item in items if item.pooled is not None]
    np.testing.assert_array_equal(np.stack(vectors), good)


async def test_if_all_of_a_request_are_bad_each_is_its_own_error() -> None:
    async with client() as own:
        items = await own.embed([b"one", b"two"], errors="return")
    assert [(item.index, type(item.error)) for item in items] == [(0, BadImage), (1, BadImage)]


async def test_what_is_wrong_with_all_is_raised_whatever_errors_says() -> None:
    async with client() as own:
        with pytest.raises(UnknownModel, match="fake:vit"):
            await own.embed(PICTURES, model="nobody", errors="return")
        with pytest.raises(InvalidRequest) as error:
            await own.embed(PICTURES[0], layer="top", errors="return")  # type: ignore[call-overload]  # as nobody should
    assert error.value.slug == "invalid-option"


class OfText:
    """A file of somebody's own class."""

    def read(self) -> str:
        return "words"


@pytest.mark.parametrize(
    ("inputs", "kind", "words"),
    [
        (["cat.jpg"], ValueError, "input 0: 'cat.jpg' is a str.*pathlib.Path"),
        (["fine", "https://example.org/cat"], ValueError, "input 1: .*looks like an address"),
        ([np.zeros((4, 4, 3), np.float32)], ValueError, r"uint8 \[height, width, 3\].*float32 \[4, 4, 3\]"),
        ([np.zeros((4, 4), np.uint8)], ValueError, r"uint8 \[4, 4\]"),
        (OfText(), TypeError, r"input 0: OfText\.read\(\) gives str"),
        ([io.StringIO("words")], TypeError, "opened for reading bytes"),
        ([3], TypeError, "input 0: int is no image"),
        (3, TypeError, "int is neither"),
        (["fine", "lone \ud800"], ValueError, "input 1: .*surrogates"),
        ([Path("lone \ud800")], ValueError, "input 0: .*surrogates"),
        ([], ValueError, "nothing to embed"),
    ],
)
async def test_what_is_no_input_is_refused_here(inputs: Any, kind: type[Exception], words: str) -> None:
    async with client() as own:
        with pytest.raises(kind, match=words):
            await own.embed(inputs)


async def test_a_broken_image_of_pillow_s_or_a_file_is_an_error_of_its_own() -> None:
    cut = Image.open(io.BytesIO(noise(3, (40, 30))[:-200]))

    class Gone(io.RawIOBase):
        def readall(self) -> bytes:
            raise OSError(5, "Input/output error")

    async with client() as own:
        items = await own.embed([PICTURES[0], cut, Gone()], errors="return")
        shrunk = await own.embed([cut], errors="return", shrink=True)
    errors = [item.error for item in items]
    assert [error and (type(error), error.index, error.slug) for error in errors] == [
        None,
        (BadImage, 1, "undecodable-image"),
        (BadImage, 2, "image-unreadable"),
    ]
    assert isinstance(shrunk[0].error, BadImage)


async def test_another_word_for_errors_or_output_is_an_error_of_the_call() -> None:
    """And leaves no rows out."""
    async with client() as own:
        with pytest.raises(ValueError, match=r"'ignore'.*'raise', 'return'"):
            await own.embed([PICTURES[0], b"no image"], errors="ignore")  # type: ignore[call-overload]  # as nobody should
        with pytest.raises(ValueError, match=r"None.*'pooled', 'tokens', 'both'"):
            await own.embed(PICTURES[0], output=None)  # type: ignore[call-overload]  # as nobody should


async def test_words_that_look_like_a_file_can_be_meant() -> None:
    async with client() as own:
        assert (await own.embed(Text("cat.jpg"))).shape == (1, 6)


async def test_a_size_that_is_none_is_an_error_here_too() -> None:
    async with client() as own:
        with pytest.raises(ValueError, match="resolution is N"):
            await own.embed(PICTURES, shrink=True, resolution="large")
        with pytest.raises(InvalidRequest, match="resolution"):
            await own.embed(PICTURES, resolution="large")


async def test_texts_have_no_tokens() -> None:
    async with client() as own:
        with pytest.raises(TypeError, match=r"input 1: 'a cat' is a str"):
            await own.embed([PICTURES[0], "a cat"], output="tokens")


async def test_a_misspelt_option_is_an_error_of_the_call() -> None:
    async with client() as own:
        with pytest.raises(TypeError, match=r"'normalise'.*normalize"):
            await own.embed(PICTURES, normalise=True)  # type: ignore[call-overload]  # as nobody should


async def test_an_error_of_the_caller_s_generator_comes_through() -> None:
    def pictures() -> Iterator[bytes]:
        yield PICTURES[0]
        raise LookupError("the disk is gone")

    async with client() as own:
        running = own.embed_iter(pictures(), batch=1)
        assert (await anext(running)).index == 0
        with pytest.raises(LookupError, match="the disk is gone"):
            await anext(running)


async def test_progress_is_told_to_a_function() -> None:
    told: list[tuple[int, int | None]] = []
    async with client() as own:
        await own.embed(PICTURES, batch=5, progress=lambda done, total: told.append((done, total)))
        assert told == [(5, 11), (10, 11), (11, 11)]
        told.clear()
        await own.embed(iter(PICTURES), batch=8, progress=lambda done, total: told.append((done, total)))
    assert told == [(8, None), (11, None)]


async def test_progress_may_be_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    async with client() as own:
        await own.embed(PICTURES, progress=True)
    assert "11/11" in capsys.readouterr().err


async def test_no_more_requests_than_in_flight_are_under_way() -> None:
    most = now = 0

    class Counting(httpx.ASGITransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal most, now
            now += 1
            most = max(most, now)
            try:
                return await super().handle_async_request(request)
            finally:
                now -= 1

    app = app_of()
    async with (
        app.router.lifespan_context(app),
        AsyncClient("http://service", transport=Counting(app), in_flight=3) as own,
    ):
        await asyncio.gather(*(own.embed(PICTURES, batch=1) for _ in range(3)))
    assert most == 3


async def test_who_stops_listening_stops_the_requests() -> None:
    gate = Gate()
    app = app_of(FakeEncoder(before=gate))
    async with client_of(app) as own:
        gate.close()
        task = asyncio.create_task(own.embed(PICTURES))
        await gate.someone_inside()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.is_open.set()
        await until(lambda: app.state.engine.admission.inside("images") == 0)
        assert (await own.embed(PICTURES)).shape == (11, 6)


async def test_tiles_differ_in_number_and_come_one_by_one() -> None:
    class Cutting(FakeEncoder):
        def cut(self, image: Image.Image, *, exact: bool = False) -> Any:
            views = super().cut(image, exact=exact)
            return views[:2] if image.width == image.height else views

    pictures = [noise(1, (30, 90)), noise(2, (60, 60))]
    app = app_of(Cutting(fake_spec(most_views=3, most_joined=48)))
    async with client_of(app) as own:
        items = [item async for item in own.embed_iter(pictures, output="tokens", tiles=True, project=True)]
        wide, square = (item.tokens for item in items)
        assert wide is not None
        assert square is not None
        assert wide.shape != square.shape
        with pytest.raises(ValueError, match="differ in shape"):
            await own.embed(pictures, output="tokens", tiles=True, project=True)
        theirs = await expected(app, pictures[:1], tiles="true", project="true")
    np.testing.assert_array_equal(wide, theirs["tokens"][0])


async def test_large_images_are_spread_over_requests() -> None:
    """A server takes 64 MiB in a request by default."""
    sizes: list[int] = []

    class Weighing(httpx.ASGITransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            sizes.append(int(request.headers["content-length"]))
            return await super().handle_async_request(request)

    pixels = np.zeros((2400, 2400, 3), np.uint8)
    app = app_of()
    async with app.router.lifespan_context(app), AsyncClient("http://service", transport=Weighing(app)) as own:
        found = await own.embed([pixels] * 5)
    assert found.shape == (5, 6)
    assert [size // 2**20 for size in sizes] == [32, 32, 16] or [size // 2**20 for size in sizes] == [49, 32]


async def test_shrinking_sends_what_the_encoder_sees() -> None:
    sent: list[bytes] = []

    class Reading(httpx.ASGITransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            sent.append(request.content)
            return await super().handle_async_request(request)

    photograph = image_bytes(size=(400, 300), image_format="JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = image_bytes(size=(300, 400), image_format="JPEG", exif=exif)
    clear = image_bytes(size=(400, 300), mode="RGBA", colour=(1, 2, 3, 4))
    small = noise(1, (24, 24))
    app = app_of()
    async with app.router.lifespan_context(app), AsyncClient("http://service", transport=Reading(app)) as own:
        await own.embed(photograph, shrink=True)
        await own.embed(photograph, shrink=True, resolution="64x128")
        await own.embed(lying, shrink=True, resolution=(32, 64))
        kept = await own.embed([clear, small], shrink=True)
        np.testing.assert_array_equal(kept, await own.embed([clear, small]))
        await own.embed([Image.open(io.BytesIO(photograph)), np.zeros((99, 99, 3), np.uint8)], shrink=True)
    posted = [content for content in sent if content]
    shapes = [[Image.open(io.BytesIO(part)).size for part in images_in(content)] for content in posted]
    assert shapes == [
        [(43, 32)],
        [(128, 96)],
        [(48, 64)],
        [(400, 300), (24, 24)],
        [(400, 300), (24, 24)],
        [(43, 32), (32, 32)],
    ]
    (turned,) = (Image.open(io.BytesIO(part)) for part in images_in(posted[2]))
    assert turned.getexif() == {0x0112: 6}


def images_in(content: bytes) -> list[bytes]:
    boundary = content.partition(b"\r\n")[0]
    return [part.partition(b"\r\n\r\n")[2][:-2] for part in content.split(boundary)[1:-1]]


async def test_shrinking_changes_a_vector_in_the_fourth_digit() -> None:
    """As docs/client.md has it, of a demo encoder and a photograph."""
    settings = Settings(model=("demo:vit",))
    app = create_app(settings, backend=real_backend(settings))
    buffer = io.BytesIO()
    photograph("astronaut").save(buffer, "JPEG", quality=90)
    async with client_of(app) as own:
        whole = await own.embed(buffer.getvalue(), normalize=True)
        small = await own.embed(buffer.getvalue(), normalize=True, shrink=True)
    assert 0.9995 <= float(whole[0] @ small[0]) < 1.0
    assert not np.array_equal(whole, small)
