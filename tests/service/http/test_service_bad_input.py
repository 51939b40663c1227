"""Each bad input has a status and a problem type, and touches no other request: the issue's list, and more."""

import asyncio
import base64
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import numpy as np
import pytest

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.values import Encoded, Outputs, Pixels
from service.engine.scoring import Prompts
from tests.encoders.images.files import CASES
from tests.support.serving import PNG, assert_problem, image_bytes, noise, serving

pytestmark = pytest.mark.anyio
GOOD = noise(1)
ENCODED = base64.b64encode(GOOD).decode()


def png_bomb(side: int) -> bytes:
    """A PNG whose header announces side x side pixels and that has none of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Bad:
    """A request and the problem it should be."""

    name: str
    status: int
    slug: str
    query: str = ""
    request: dict[str, Any] = field(default_factory=lambda: {"content": GOOD, "headers": PNG})
    settings: dict[str, Any] = field(default_factory=dict)


def raw(content: bytes, content_type: str = "image/jpeg") -> dict[str, Any]:
    return {"content": content, "headers": {"content-type": content_type}}


JSON = {"content-type": "application/json"}
LONG_LAYER = f'{{"images": ["{ENCODED}"], "layer": {"9" * 30}}}'.encode()
DEEP = f'{{"images": ["{ENCODED}"], "model": {"[" * 1000}{"]" * 1000}}}'.encode()
DEEP_IMAGES = b'{"images": ' + b"[" * 1000 + b"]" * 1000 + b"}"
DEEPEST = b'{"images": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
JPEG = image_bytes(image_format="JPEG", size=(200, 200))
AVIF = image_bytes(image_format="AVIF", size=(64, 64))
PICTURE_DATA = AVIF.index(b"mdat") + 4
BROKEN_AVIF = AVIF[:PICTURE_DATA] + bytes(len(AVIF) - PICTURE_DATA)
LONG = "x" * 1_000_000
BAD = [
    Bad("empty body", 422, "empty-image", request=raw(b"")),
    Bad("empty body without a type", 422, "empty-image", request={"content": b""}),
    Bad("text named jpg", 415, "not-an-image", request={"files": {"image": ("cat.jpg", b"hello " * 99, "image/jpeg")}}),
    Bad("truncated JPEG", 422, "undecodable-image", request=raw(JPEG[: len(JPEG) // 2])),
    Bad("PNG bomb", 413, "image-too-large", request=raw(png_bomb(20_000), "image/png")),
    Bad("pixels over the setting", 413, "image-too-large", settings={"max_image_pixels": 1023}),
    Bad("wrong base64", 422, "invalid-base64", request={"json": {"images": ["not base64!"]}}),
    Bad("base64 cut short", 422, "invalid-base64", request={"json": {"images": [ENCODED[:-3]]}}),
    Bad("1000 images", 413, "too-many-images", request={"json": {"images": [ENCODED] * 1000}}),
    Bad("1000 parts", 413, "too-many-images", request={"files": [("image", GOOD)] * 1000}),
    Bad("unknown model", 404, "unknown-model", "model=demo:vti"),
    Bad("a model's name of a megabyte", 404, "unknown-model", request={"json": {"images": [ENCODED], "model": LONG}}),
    Bad("an option's name of a megabyte", 422, "invalid-option", request={"json": {"images": [ENCODED], LONG: 1}}),
    Bad(
        "values of a megabyte that differ",
        422,
        "invalid-option",
        "model=x",
        request={"json": {"images": [ENCODED], "model": LONG}},
    ),
    Bad("a URL of a megabyte", 422, "image-url-refused", request={"json": {"images": [f"http://x/{LONG}"]}}),
    Bad("a broken AVIF", 422, "undecodable-image", request=raw(BROKEN_AVIF, "image/avif")),
    Bad("a PDF", 415, "not-an-image", request=raw(b"%PDF-1.7", "application/octet-stream")),
    Bad("a JPEG of 12 bits", 422, "unsupported-image", request=raw((CASES / "jpeg_12bit.jpg").read_bytes())),
    Bad(
        "a TIFF of floats to 65535",
        422,
        "unsupported-image",
        request=raw((CASES / "tiff_f32_0_65535.tif").read_bytes()),
    ),
    Bad("layer out of range", 422, "layer-not-found", "layer=4"),
    Bad("layer below range", 422, "layer-not-found", "layer=-5"),
    Bad("resolution not divisible", 422, "unsupported-resolution", "resolution=100"),
    Bad("resolution too large", 422, "unsupported-resolution", "resolution=4096"),
    Bad("resolution zero", 422, "unsupported-resolution", "resolution=0"),
    Bad("resolution no number", 422, "invalid-option", "resolution=big"),
    Bad("unknown option", 422, "invalid-option", "normalise=true"),
    Bad("unknown value", 422, "invalid-option", "output=everything"),
    Bad("layer no number", 422, "invalid-option", "layer=last"),
    Bad("layer without tokens", 422, "invalid-option", "layer=0&output=pooled"),
    Bad("layer a boolean", 422, "invalid-option", request={"json": {"images": [ENCODED], "layer": True}}),
    Bad("a layer of 30 digits", 422, "invalid-option", "layer=" + "9" * 30),
    Bad("a layer of 30 digits in JSON", 422, "invalid-option", request={"content": LONG_LAYER, "headers": JSON}),
    Bad("a layer that is an empty string", 422, "invalid-option", "layer="),
    Bad("an option nested a thousand deep", 422, "invalid-option", request={"content": DEEP, "headers": JSON}),
    Bad("images nested a thousand deep", 400, "invalid-body", request={"content": DEEP_IMAGES, "headers": JSON}),
    Bad("JSON nested a hundred thousand deep", 400, "invalid-body", request={"content": DEEPEST, "headers": JSON}),
    Bad("an unknown option with an object", 422, "invalid-option", request={"json": {"images": [], "x": {"y": 1}}}),
    Bad(
        "a boundary of 300 characters",
        400,
        "invalid-body",
        request=raw(b"x", f"multipart/form-data; boundary={'b' * 300}"),
    ),
    Bad(
        "options that differ",
        422,
        "invalid-option",
        "output=pooled",
        request={"json": {"images": [ENCODED], "output": "tokens"}},
    ),
    Bad("no images in JSON", 422, "no-images", request={"json": {"images": []}}),
    Bad("no image parts", 422, "no-images", request={"files": {"output": (None, "pooled")}}),
    Bad("images no list", 400, "invalid-body", request={"json": {"images": ENCODED}}),
    Bad("JSON no object", 400, "invalid-body", request={"json": [ENCODED]}),
    Bad("broken JSON", 400, "invalid-body", request=raw(b'{"images": [', "application/json")),
    Bad("form without boundary", 400, "invalid-body", request=raw(b"--x", "multipart/form-data")),
    Bad("form cut short", 400, "invalid-body", request=raw(b"--x\r\nContent-Dis", "multipart/form-data; boundary=x")),
    Bad("form not as announced", 400, "invalid-body", request=raw(GOOD, "multipart/form-data; boundary=x")),
    Bad("other media type", 415, "unsupported-media-type", request=raw(GOOD, "text/plain")),
    Bad("curl's default type", 415, "unsupported-media-type", request=raw(GOOD, "application/x-www-form-urlencoded")),
    Bad("body over the limit", 413, "body-too-large", settings={"max_body_bytes": 1000}),
    Bad(
        "URL where none is fetched", 422, "image-url-refused", request={"json": {"images": ["http://localhost/a.png"]}}
    ),
    Bad("data URI without comma", 422, "invalid-base64", request={"json": {"images": ["data:image/png;base64"]}}),
]


class Gated(FakeEncoder):
    """Its first forward after `arm` waits until the gate opens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gate = threading.Event()
        self.gate.set()
        self.inside = threading.Event()

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        self.inside.set()
        assert self.gate.wait(30)
        return super().encode(pixels, outputs)

    def arm(self) -> None:
        self.gate.clear()
        self.inside.clear()


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
async def test_bad_input_has_its_problem_and_leaves_others_alone(bad: Bad) -> None:
    """A good request is held inside the model while the bad one comes and goes; then it is answered as if alone."""
    encoder = Gated()
    async with serving(encoder, **bad.settings) as client:
        encoder.arm()
        small = image_bytes(size=(8, 8))
        neighbour = asyncio.create_task(client.post("/embed?output=pooled", content=small, headers=PNG))
        assert await asyncio.to_thread(encoder.inside.wait, 30)
        response = await client.post(f"/embed?{bad.query}", **bad.request)
        encoder.gate.set()
        assert (await neighbour).status_code == 200
    problem = assert_problem(response, bad.status, bad.slug)
    assert problem["detail"]
    assert len(response.content) < 2_000, "however long the caller's words"


async def test_an_unknown_model_lists_the_served_ones() -> None:
    async with serving(FakeEncoder(), FakeEncoder(fake_spec("fake:b"))) as client:
        response = await client.post("/embed?model=fake:vti", content=GOOD, headers=PNG)
    problem = assert_problem(response, 404, "unknown-model")
    assert problem["served"] == ["fake:vit", "fake:b"]
    assert "Did you mean 'fake:vit'?" in problem["detail"]


async def test_an_impossible_resolution_names_the_nearest() -> None:
    async with serving() as client:
        response = await client.post("/embed?resolution=100", content=GOOD, headers=PNG)
    assert assert_problem(response, 422, "unsupported-resolution")["nearest"] == [[96, 96], [104, 104]]


async def test_an_unknown_option_suggests_the_known_one() -> None:
    async with serving() as client:
        response = await client.post("/embed?normalise=true", content=GOOD, headers=PNG)
    assert "Did you mean 'normalize'?" in assert_problem(response, 422, "invalid-option")["detail"]


@pytest.mark.parametrize(
    "picture",
    [
        image_bytes(size=(1, 1)),
        image_bytes(mode="CMYK", image_format="JPEG", colour=(1, 2, 3, 4)),
        image_bytes(mode="I;16", colour=40_000),
        image_bytes(mode="P", colour=3, transparency=3),
        image_bytes(image_format="GIF", save_all=True, append_images=[]),
        image_bytes(image_format="WEBP"),
        image_bytes(mode="LA", colour=(3, 100)),
        image_bytes(size=(1, 3000)),
    ],
    ids=["1x1", "CMYK", "16-bit", "palette with transparency", "GIF", "WebP", "grey with alpha", "thread"],
)
async def test_unusual_but_sound_images_are_answered(picture: bytes) -> None:
    async with serving() as client:
        response = await client.post("/embed?output=pooled", content=picture, headers=PNG)
    assert response.status_code == 200, response.text


class NanForBlack(FakeEncoder):
    """Gives NaN for a black image, as a model in float16 might for an unlucky one."""

    def encode(self, pixels: Pixels, outputs: Outputs) -> Encoded:
        encoded = super().encode(pixels, outputs)
        black = pixels.reshape(len(pixels), -1).max(axis=1) == 0
        assert encoded.pooled is not None
        return replace(encoded, pooled=np.where(black[:, None], np.nan, encoded.pooled))


async def test_a_nan_is_a_problem_of_its_image_alone() -> None:
    black = base64.b64encode(image_bytes(colour=(0, 0, 0))).decode()
    async with serving(NanForBlack()) as client:
        both = await client.post("/embed", json={"images": [ENCODED, black], "output": "pooled"})
        alone = await client.post("/embed", json={"images": [black], "output": "pooled"})
        scores = await client.post("/similarity", json={"images": [black, ENCODED], "texts": ["a", "b"]})
        ready = await client.get("/health/ready")
    assert both.status_code == 207
    assert "pooled" in both.json()["data"][0]
    assert both.json()["data"][1]["error"]["type"] == "/problems/non-finite-output"
    assert_problem(alone, 500, "non-finite-output")
    assert scores.json()["errors"][0]["index"] == 0
    assert scores.json()["cosine"][0] is None
    assert ready.status_code == 200


async def test_a_body_over_the_limit_is_not_read_to_its_end() -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 1000

    async with serving(max_body_bytes=10_000) as client:
        response = await client.post("/embed", content=endless(), headers=PNG)
    assert_problem(response, 413, "body-too-large")
    assert sent <= 12


async def test_a_preprocessing_that_breaks_fails_its_image_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Fragile(FakeEncoder):
        def preprocess(self, image: Any, size: Any, *, exact: bool = True) -> Pixels:
            if image.width == 7:
                raise MemoryError
            return super().preprocess(image, size)

    odd = base64.b64encode(image_bytes(size=(7, 7))).decode()
    async with serving(Fragile()) as client:
        response = await client.post("/embed", json={"images": [odd, ENCODED]})
    assert response.json()["data"][0]["error"]["type"] == "/problems/encoder-failed"
    assert "tokens" in response.json()["data"][1]


@pytest.mark.parametrize(
    "act",
    [lambda pixels: None, lambda pixels: pixels[:-1], lambda pixels: pixels.astype(np.float32)],
    ids=["nothing", "size", "dtype"],
)
async def test_a_preprocessing_that_gives_no_pixels_is_answered(act: Callable[[Pixels], Any]) -> None:
    """Nobody would come for the image otherwise."""

    class Faulty(FakeEncoder):
        def preprocess(self, image: Any, size: Any, *, exact: bool = True) -> Pixels:
            return act(super().preprocess(image, size))  # type: ignore[no-any-return]

    async with serving(Faulty()) as client:
        problem = assert_problem(await client.post("/embed", content=image_bytes(), headers=PNG), 500, "encoder-failed")
    assert problem["detail"] == "fake:vit did not make the image into uint8 pixels of 32x32 in 3 channels."


async def test_an_unforeseen_error_shows_no_internals(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object, **__: object) -> None:
        raise RuntimeError("secret path /etc")

    async with serving() as client:
        monkeypatch.setattr(Prompts, "vectors", surprise)
        response = await client.post("/similarity?text=boom", content=GOOD, headers=PNG)
    problem = assert_problem(response, 500, "internal")
    assert "secret" not in response.text
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "secret path" in caplog.text


async def test_the_framework_s_refusals_are_problems_too() -> None:
    async with serving() as client:
        responses: list[httpx.Response] = [await client.get("/nowhere"), await client.get("/embed")]
    for response, status in zip(responses, (404, 405), strict=True):
        assert response.status_code == response.json()["status"] == status
        assert response.headers["content-type"] == "application/problem+json"
