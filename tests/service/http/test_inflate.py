"""Compressed bodies: taken apart within the limit, or refused by name."""

import base64
import contextlib
import gzip
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.errors import BodyTooLarge, InvalidBody, UnsupportedContentEncoding
from service.http.inflate import inflated as inflated_of
from service.memory.account import Account
from tests.support.serving import PNG, assert_problem, noise, serving

pytestmark = pytest.mark.anyio
PICTURE = noise(1)
inflated = partial(inflated_of, account=Account(2**30))


def bare(body: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return deflater.compress(body) + deflater.flush()


WRITERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "X-GZip": gzip.compress,
    "deflate": zlib.compress,
    " Deflate ": bare,
}


@pytest.mark.parametrize("encoding", WRITERS)
@given(body=st.binary(max_size=400) | st.integers(0, 100_000).map(bytes))
def test_what_was_compressed_is_read_back(encoding: str, body: bytes) -> None:
    assert inflated(WRITERS[encoding](body), encoding, max_bytes=len(body)) == body


@pytest.mark.parametrize("encoding", WRITERS)
def test_a_bomb_is_not_inflated_past_the_limit(encoding: str) -> None:
    with pytest.raises(BodyTooLarge, match=r"over the limit of 1,000 bytes once it is inflated") as caught:
        inflated(WRITERS[encoding](bytes(50_000_000)), encoding, max_bytes=1000)
    assert caught.value.facts == {"limit": 1000}


@pytest.mark.parametrize("encoding", WRITERS)
@pytest.mark.parametrize("break_it", [lambda body: body[:-3], lambda body: body[:5], lambda body: b""])
def test_a_body_cut_short_is_named(encoding: str, break_it: Callable[[bytes], bytes]) -> None:
    with pytest.raises(InvalidBody, match="ends too early"):
        inflated(break_it(WRITERS[encoding](PICTURE)), encoding, max_bytes=10_000)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", PICTURE),
        ("gzip", gzip.compress(PICTURE)[:-5] + b"\0\0\0\0\0"),
        ("gzip", gzip.compress(PICTURE) + b"more"),
        ("gzip", zlib.compress(PICTURE)),
        ("deflate", gzip.compress(PICTURE)),
        ("deflate", zlib.compress(PICTURE) + b"more"),
    ],
)
def test_broken_data_is_named(encoding: str, body: bytes) -> None:
    with pytest.raises(InvalidBody):
        inflated(body, encoding, max_bytes=10_000)


def test_a_gzip_file_may_have_several_members() -> None:
    body = b"".join(gzip.compress(part) for part in (b"one", b"", b"two" * 30_000))
    assert inflated(body, "gzip", max_bytes=100_000) == b"one" + b"two" * 30_000


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate"]))
def test_no_body_is_worse_than_a_problem(body: bytes, encoding: str) -> None:
    with contextlib.suppress(InvalidBody, BodyTooLarge):
        assert len(inflated(body, encoding, max_bytes=1000)) <= 1000


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "aes128gcm", "x" * 5000])
def test_another_encoding_is_named_with_those_that_are_read(encoding: str) -> None:
    with pytest.raises(UnsupportedContentEncoding, match=r"or one of gzip, deflate\.") as caught:
        inflated(PICTURE, encoding, max_bytes=1000)
    assert encoding[:100] in str(caught.value)


async def test_every_route_takes_compressed_bodies() -> None:
    async with serving() as client:
        plain = await client.post("/embed?output=pooled", content=PICTURE, headers=PNG)
        raw = await client.post(
            "/embed?output=pooled", content=gzip.compress(PICTURE), headers={**PNG, "content-encoding": "gzip"}
        )
        identity = await client.post("/embed", content=PICTURE, headers={**PNG, "content-encoding": "identity"})
        body = b'{"texts": ["a"], "images": ["' + base64.b64encode(PICTURE) + b'"]}'
        scores = await client.post(
            "/similarity",
            content=zlib.compress(body),
            headers={"content-type": "application/json", "content-encoding": "deflate"},
        )
    assert raw.json()["data"] == plain.json()["data"]
    assert identity.status_code == scores.status_code == 200


async def test_refusals_have_their_problem() -> None:
    async with serving(max_body_bytes=20_000) as client:
        bomb = await client.post(
            "/embed", content=gzip.compress(bytes(10_000_000)), headers={**PNG, "content-encoding": "gzip"}
        )
        broken = await client.post("/embed", content=PICTURE, headers={**PNG, "content-encoding": "gzip"})
        brotli = await client.post("/embed", content=PICTURE, headers={**PNG, "content-encoding": "br"})
    assert assert_problem(bomb, 413, "body-too-large")["limit"] == 20_000
    assert "gzip" in assert_problem(broken, 400, "invalid-body")["detail"]
    problem = assert_problem(brotli, 415, "unsupported-content-encoding")
    assert (problem["content_encoding"], problem["accepted"]) == ("br", ["gzip", "deflate"])
    assert brotli.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"") * 10_000),
        ("deflate", b"\x00\x00\x00\xff\xff" * 50_000 + bare(b"x")),
    ],
    ids=["empty members", "empty blocks"],
)
def test_what_holds_nearly_nothing_is_not_read_to_its_end(encoding: str, body: bytes) -> None:
    with pytest.raises(InvalidBody, match="nearly empty"):
        inflated(body, encoding, max_bytes=1000)


@pytest.mark.parametrize("encoding", WRITERS)
def test_what_does_not_compress_is_no_trouble(encoding: str) -> None:
    body = np.random.default_rng(0).bytes(1_000_000)
    assert inflated(WRITERS[encoding](body), encoding, max_bytes=len(body)) == body
    members = b"".join(gzip.compress(body[start : start + 50]) for start in range(0, 40_000, 50))
    assert inflated(members, "gzip", max_bytes=len(body)) == body[:40_000]
