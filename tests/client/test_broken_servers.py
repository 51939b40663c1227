"""A server that is broken, or means harm: every answer becomes a clear error in bounded time and memory."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from tests.support.serving import noise
from visiontower_client import AsyncClient, Overloaded, ServerFailed, TimedOut, Unreachable, VisiontowerError
from visiontower_client.errors import of_problem

pytestmark = pytest.mark.anyio
TENSORS = {"content-type": "application/vnd.safetensors"}
ABOUT = {"index": "0,1", "grid": "4,4", "prefix_tokens": "1"}
PAIR = [b"1", b"2"]


def client_of(response: Any, **options: Any) -> AsyncClient:
    """Of a server that always answers so. response: made anew each time."""
    transport = httpx.MockTransport(lambda request: response())
    return AsyncClient("http://service", transport=transport, retries=0, **options)


@asynccontextmanager
async def server_of(answer: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """The address of a server of sockets that answers every request so."""
    answering: list[asyncio.Task[Any] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answering.append(asyncio.current_task())
        with suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            await answer(writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for task in answering:
        if task is not None:
            await task


def file_of(header: Any, data: bytes = b"") -> bytes:
    head = json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + data


def tensor(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"__metadata__": ABOUT, "pooled": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


HEADERS: list[Any] = [
    7,
    [],
    {"pooled": None},
    {"pooled": {"dtype": "F32", "shape": [2, 1]}},
    {"__metadata__": 3, "pooled": tensor([2, 1], [0, 8])["pooled"]},
    {"__metadata__": {"index": 1}, "pooled": tensor([2, 1], [0, 8])["pooled"]},
    tensor([2, 1], [-8, 0]),
    tensor([2, 1], [8, 16]),
    tensor([2, 1], [8, 0]),
    tensor([2, 1], [0, 8, 16]),
    tensor([2, 1], "08"),
    tensor([-2, -1], [0, 8]),
    tensor([2, 1.0], [0, 8]),
    tensor(["2", 1], [0, 8]),
    tensor([0, 10**30], [0, 0]),
    tensor([10**4000] * 3000, [0, 8]),
    tensor([1] * 100, [0, 4]),
    tensor([2], [0, 8]),
    tensor([], [0, 4]),
    tensor([2, 1], [0, 8], "F99"),
    tensor([2, 1], [0, 8], ["F32"]),
    {"__metadata__": ABOUT},
    {"__metadata__": {**ABOUT, "index": "-1,-2"}, "pooled": tensor([2, 1], [0, 8])["pooled"]},
    {"__metadata__": {**ABOUT, "index": "0,5"}, "pooled": tensor([2, 1], [0, 8])["pooled"]},
    {"__metadata__": {**ABOUT, "index": "0,x"}, "pooled": tensor([2, 1], [0, 8])["pooled"]},
    {"__metadata__": {**ABOUT, "errors": "[[]]"}, "pooled": tensor([2, 1], [0, 8])["pooled"]},
    {"__metadata__": {**ABOUT, "errors": "7"}, "pooled": tensor([2, 1], [0, 8])["pooled"]},
    {"__metadata__": {**ABOUT, "grid": ""}, "pooled": tensor([2, 1], [0, 8])["pooled"]},
]


@pytest.mark.parametrize("header", HEADERS, ids=[str(header)[:60] for header in HEADERS])
async def test_a_wrong_header_of_safetensors_gives_no_array(header: Any) -> None:
    async with client_of(lambda: httpx.Response(200, content=file_of(header, bytes(8)), headers=TENSORS)) as own:
        with pytest.raises(ServerFailed, match="something else than visiontower") as raised:
            await own.embed(PAIR)
    assert len(str(raised.value)) < 500


async def test_a_nested_header_or_answer_is_an_error() -> None:
    nested = b"[" * 100_000
    async with client_of(
        lambda: httpx.Response(200, content=len(nested).to_bytes(8, "little") + nested, headers=TENSORS)
    ) as own:
        with pytest.raises(ServerFailed):
            await own.embed(PAIR)
    for status in (200, 422):
        async with client_of(lambda status=status: httpx.Response(status, content=nested)) as own:
            with pytest.raises(VisiontowerError):
                await own.models()


@pytest.mark.parametrize(("output", "arrays"), [("pooled", "tokens"), ("tokens", "pooled"), ("both", "pooled")])
async def test_arrays_other_than_those_asked_for_are_an_error(output: Any, arrays: str) -> None:
    shape = (2, 1) if arrays == "pooled" else (2, 16, 1)
    content = save({arrays: np.zeros(shape, np.float32)}, ABOUT)
    async with client_of(lambda: httpx.Response(200, content=content, headers=TENSORS)) as own:
        with pytest.raises(ServerFailed):
            await own.embed(PAIR, output=output)


JSON_ANSWERS: list[Any] = [
    {},
    {"data": 3},
    {"data": [3, None]},
    {"data": [{"index": 0, "error": None}, {"index": 1, "error": 4}]},
    {"data": [{"index": 0, "labels": None}, {"index": 1, "labels": [{"label": "a"}]}]},
    {"data": [{"index": -1, "labels": []}, {"index": -2, "labels": []}]},
    {"data": [{"index": [], "labels": []}, {"index": {}, "labels": []}]},
    {"data": [{"index": i, "labels": [{"label": "a", "index": 0, "probability": "x", "cosine": 0}]} for i in (0, 1)]},
]
SCORES = {"model": "m", "activation": "softmax", "logit_scale": 1.0, "logit_bias": None, "truncated": []}
ROWS = {"cosine": [[1, 2]] * 2, "logits": [[1, 2]] * 2, "probabilities": [[1, 2]] * 2}
SCORE_ANSWERS: list[Any] = [
    {**SCORES},
    {**SCORES, **ROWS, "cosine": 0.5},
    {**SCORES, **ROWS, "cosine": [0.5, 0.5]},
    {**SCORES, **ROWS, "cosine": [[0.5], [0.5]]},
    {**SCORES, **ROWS, "logits": [[1, 2]]},
    {**SCORES, **ROWS, "probabilities": [None, [1, 2]]},
    {**SCORES, **ROWS, "probabilities": [[1, 2], [1, [2]]]},
    {**SCORES, **ROWS, "errors": [5]},
    {**SCORES, **ROWS, "errors": [{"index": 9, "error": {}}]},
    {**ROWS},
]


@pytest.mark.parametrize("answer", JSON_ANSWERS)
async def test_json_of_another_form_is_an_error(answer: Any) -> None:
    async with client_of(lambda: httpx.Response(200, json=answer)) as own:
        for errors in ("raise", "return"):
            with pytest.raises(ServerFailed):
                await own.embed(PAIR, errors=errors)
            with pytest.raises(ServerFailed):
                await own.classify(PAIR, ["a"], errors=errors)
        with pytest.raises(ServerFailed):
            await own.ready()


@pytest.mark.parametrize("answer", [[], {}, {"data": 3}, {"data": []}, {"data": [3]}])
async def test_models_of_another_form_are_an_error(answer: Any) -> None:
    async with client_of(lambda: httpx.Response(200, json=answer)) as own:
        with pytest.raises(ServerFailed):
            await own.models()
        with pytest.raises(ServerFailed):
            await own.embed([noise(1)], shrink=True)


@pytest.mark.parametrize("answer", SCORE_ANSWERS, ids=[str(answer)[-60:] for answer in SCORE_ANSWERS])
async def test_scores_that_are_not_of_the_texts_are_an_error(answer: Any) -> None:
    async with client_of(lambda: httpx.Response(200, json=answer)) as own:
        with pytest.raises(ServerFailed):
            await own.similarity(PAIR, ["a", "b"])


async def test_scores_without_the_heat_maps_asked_for_are_an_error() -> None:
    async with client_of(lambda: httpx.Response(200, json=SCORES | ROWS)) as own:
        assert (await own.similarity(PAIR, ["a", "b"])).cosine.tolist() == [[1, 2], [1, 2]]
        with pytest.raises(ServerFailed):
            await own.similarity(PAIR, ["a", "b"], heatmap=True)


@pytest.mark.parametrize("size", [None, [], ["a", "b"], [0, 0], [-1, 5], 32, [1, 2, 3]])
async def test_a_size_that_cannot_be_is_not_shrunk_to(size: Any) -> None:
    async with client_of(lambda: httpx.Response(200, json={"data": [{"image_size": size}]})) as own:
        with pytest.raises(ServerFailed, match="image_size"):
            await own.embed([noise(1)], shrink=True)


async def _once(piece: bytes) -> AsyncIterator[bytes]:
    yield piece


async def _endless(piece: bytes) -> AsyncIterator[bytes]:
    while True:
        await asyncio.sleep(0)
        yield piece


@pytest.mark.parametrize("status", [200, 404, 503])
async def test_an_answer_without_an_end_ends(status: int) -> None:
    """Of an error the beginning is read, and of anything else as much as the caller allows."""
    pieces = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal pieces
        async for piece in _endless(bytes(10_000)):
            pieces += 1
            yield piece

    async with client_of(
        lambda: httpx.Response(status, content=counted(), headers=TENSORS), max_answer_bytes=100_000
    ) as own:
        with pytest.raises(VisiontowerError) as raised:
            await own.embed(PAIR)
    assert pieces <= 11
    assert raised.value.status == status
    if status == 200:
        assert "max_answer_bytes" in str(raised.value)
    assert len(str(raised.value)) < 500


async def test_an_answer_that_comes_drop_by_drop_ends_as_well() -> None:
    async with client_of(lambda: httpx.Response(200, content=_endless(b"")), timeout=0.02) as own:
        with pytest.raises(TimedOut, match=r"to the end within 0\.08 s"):
            await own.models()


async def test_a_compressed_answer_counts_as_it_is_inflated() -> None:
    bomb = zlib.compress(bytes(5_000_000))
    headers = {"content-encoding": "deflate"}
    async with client_of(
        lambda: httpx.Response(200, content=_once(bomb), headers=headers), max_answer_bytes=1_000_000
    ) as own:
        with pytest.raises(ServerFailed, match="over 1,000,000 bytes"):
            await own.models()


async def test_broken_compression_is_an_error_of_ours() -> None:
    def answer() -> httpx.Response:
        return httpx.Response(200, content=_once(b"no gzip"), headers={"content-encoding": "gzip"})

    async with client_of(answer) as own:
        with pytest.raises(ServerFailed, match="cannot be read"):
            await own.models()


@pytest.mark.parametrize("location", ["http://elsewhere/x", "/x" * 5000, "ü"])
async def test_a_redirect_is_said_and_not_followed(location: str) -> None:
    headers = [(b"location", location.encode())]
    async with client_of(lambda: httpx.Response(307, headers=headers)) as own:
        with pytest.raises(ServerFailed, match="elsewhere") as raised:
            await own.embed(PAIR)
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("seconds", ["abc", [], {}, None, True, 10**400, "9" * 5000, float("nan")])
def test_a_retry_after_that_is_no_number_is_none(seconds: Any) -> None:
    error = of_problem({"status": 503, "retry_after_s": seconds})
    assert isinstance(error, Overloaded)
    assert error.retry_after_s is None or error.retry_after_s > 60 or seconds is True


@pytest.mark.parametrize("odd", [None, [], {}, 5, "9" * 5000, 10**30, True, "x" * 10**6])
@pytest.mark.parametrize("member", ["status", "title", "type", "detail"])
def test_a_problem_of_odd_members_is_an_error_all_the_same(member: str, odd: Any) -> None:
    error = of_problem({"type": "/problems/undecodable-image", "title": "t", "status": 422, "detail": "d", member: odd})
    assert len(str(error)) < 2500


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\xfa", b"{", b'{"status": "\xff"}', b"\0" * 10, b'{"type": 5, "status": 1}']
)
@pytest.mark.parametrize("status", [300, 400, 404, 500, 503, 599, 999])
async def test_an_error_of_any_bytes_is_an_error_of_ours(status: int, content: bytes) -> None:
    headers = {"content-type": "application/problem+json; charset=nonsense"}
    async with client_of(lambda: httpx.Response(status, content=content, headers=headers)) as own:
        with pytest.raises(VisiontowerError):
            await own.embed(PAIR)
        with pytest.raises(VisiontowerError):
            await own.models()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000,
        b"nonsense\r\n\r\n",
        b"\0" * 1000,
        b"",
    ],
    ids=lambda said: repr(said[:70]),
)
async def test_broken_http_is_an_error_of_ours(said: bytes) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    async with server_of(answer) as url, AsyncClient(url, retries=0) as own:
        with pytest.raises(Unreachable):
            await own.models()


async def test_a_server_that_only_ever_promises_an_answer_is_left() -> None:
    async def promise(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0)

    async with server_of(promise) as url, AsyncClient(url, retries=0, timeout=0.05) as own:
        with pytest.raises(TimedOut):
            await own.models()
