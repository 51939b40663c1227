"""Requests that are nearly right: the problem says what to change."""

import base64
import gzip
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.serving import PNG, assert_problem, image_bytes, noise, serving

pytestmark = pytest.mark.anyio
PICTURE = noise(1)
ENCODED = base64.b64encode(PICTURE).decode()
DATA_URI = f"data:image/png;base64,{ENCODED}"
BODY = json.dumps({"images": [ENCODED]}).encode()
PARTS = "Images go in parts named 'image' of a form"
JPEG = image_bytes(image_format="JPEG", size=(40, 40))


@dataclass(frozen=True)
class Nearly:
    """A request, and words of its problem."""

    name: str
    status: int
    slug: str
    says: str
    request: dict[str, Any]
    query: str = ""
    route: str = "/embed"


def in_json(**fields: Any) -> dict[str, Any]:
    return {"json": fields}


def raw(content: bytes, content_type: str | None) -> dict[str, Any]:
    return {"content": content, "headers": {} if content_type is None else {"content-type": content_type}}


NEARLY = [
    *(
        Nearly(f"a file in a part named {name}", 422, "invalid-option", PARTS, {"files": [(name, ("a.png", PICTURE))]})
        for name in ("file", "files", "images", "image[]", "images[]", "image0", "img", "photo", "upload", "x", "model")
    ),
    Nearly("a part of bytes without a file's name", 422, "invalid-option", PARTS, {"files": {"y": (None, PICTURE)}}),
    Nearly(
        "an image that is text, in a part of another name",
        422,
        "invalid-option",
        PARTS,
        {"files": {"y": ("a.svg", b"<svg/>", "image/svg+xml")}},
    ),
    Nearly("a field named images", 422, "invalid-option", PARTS, {"files": {"images": (None, ENCODED)}}),
    Nearly("a field in Latin-1", 400, "invalid-body", "not UTF-8", {"files": {"model": (None, "ü".encode("latin-1"))}}),
    *(
        Nearly(f"JSON {name}", 422, "invalid-option", "Did you mean 'images'?", in_json(**{name: value}))
        for name, value in (
            ("image", ENCODED),
            ("Images", [ENCODED]),
            ("input", [ENCODED]),
            ("inputs", ENCODED),
            ("img", ENCODED),
            ("image_url", {"url": "http://x/y"}),
            ("imageUrls", ["http://x/y"]),
            ("image_base64", ENCODED),
            ("data", [{"b64": ENCODED}]),
            ("files", [ENCODED]),
            ("imges", [ENCODED]),
        )
    ),
    Nearly("images in the query", 422, "invalid-option", PARTS, {"content": b"", "headers": PNG}, "image=http://x/y"),
    *(
        Nearly(
            f"{name} for texts",
            422,
            "invalid-option",
            "Did you mean 'texts'?",
            in_json(images=[ENCODED], **{name: ["a", "b"]}),
            route="/similarity",
        )
        for name in ("labels", "candidate_labels", "Texts", "queries", "prompts", "classes", "txts")
    ),
    *(
        Nearly(
            f"the option {name}",
            422,
            "invalid-option",
            f"Did you mean '{meant}'?",
            in_json(images=[ENCODED], **{name: value}),
        )
        for name, value, meant in (
            ("Model", "fake:vit", "model"),
            ("LAYER", 1, "layer"),
            ("model_id", "fake:vit", "model"),
            ("normalise", True, "normalize"),
            ("encoding-format", "float", "encoding_format"),
            ("encodingFormat", "float", "encoding_format"),
            ("resolutions", 64, "resolution"),
            ("image_size", 64, "resolution"),
            ("output_", "pooled", "output"),
            ("pooling", "mean", "output"),
        )
    ),
    Nearly("a misspelt option in the query", 422, "invalid-option", "'prefix'", raw(PICTURE, "image/png"), "Prefx=1"),
    Nearly("a boolean that is none", 422, "invalid-option", "valid boolean", raw(PICTURE, "image/png"), "prefix=maybe"),
    Nearly("images as one string", 400, "invalid-body", "a list, of one image too", in_json(images=ENCODED)),
    *(
        Nearly(
            f"an image that is {shown}", 400, "invalid-body", f"Entry 1 is {shown}.", in_json(images=[ENCODED, each])
        )
        for each, shown in (
            ({"url": "http://x/y"}, "an object with the keys url"),
            ({"b64": ENCODED, "type": "png"}, "an object with the keys b64, type"),
            ({"type": "image_url", "image_url": {"url": DATA_URI}}, "an object with the keys type, image_url"),
            ([1, 2], "a list"),
            (None, "null"),
            (7, "a number"),
            (True, "a boolean"),
        )
    ),
    Nearly(
        "an object of long keys", 400, "invalid-body", "an object", in_json(images=[{"k" * 9999: 1, "l" * 9999: 2}])
    ),
    Nearly("JSON that is a list", 400, "invalid-body", '{"images": [...]}, and is a list', {"json": [ENCODED]}),
    Nearly("JSON encoded twice", 400, "invalid-body", "and is a string", {"json": BODY.decode()}),
    Nearly(
        "texts as one string", 422, "invalid-option", "list", in_json(images=[ENCODED], texts="a"), "", "/similarity"
    ),
    Nearly("JSON in UTF-16", 400, "invalid-body", "UTF-16", raw(BODY.decode().encode("utf-16"), "application/json")),
    Nearly(
        "JSON in UTF-16, no mark",
        400,
        "invalid-body",
        "UTF-8",
        raw(BODY.decode().encode("utf-16-le"), "application/json"),
    ),
    Nearly(
        "JSON in Latin-1",
        400,
        "invalid-body",
        "its byte 11",
        raw('{"model": "ü"}'.encode("latin-1"), "application/json"),
    ),
    *(
        Nearly(f"JSON as {kind}", 400, "invalid-body", "send it with Content-Type: application/json", raw(BODY, kind))
        for kind in (None, "text/plain", "application/x-www-form-urlencoded", "image/png", "application/octet-stream")
    ),
    Nearly("a form by its length", 415, "unsupported-media-type", "curl -F", {"data": {"image": ENCODED}}),
    Nearly("a form without its type", 415, "unsupported-media-type", "the boundary", raw(b"--x\r\nContent-", None)),
    Nearly("a form without its boundary", 400, "invalid-body", "boundary", raw(b"--x\r\n", "multipart/form-data")),
    Nearly("bytes without a type", 415, "unsupported-media-type", "image/jpeg", raw(JPEG, None)),
    Nearly(
        "curl's default type", 415, "unsupported-media-type", "curl", raw(JPEG, "application/x-www-form-urlencoded")
    ),
    *(
        Nearly(f"{shown} as the body", 422, "image-as-text", shown, raw(content, "image/png"))
        for content, shown in (
            (ENCODED.encode(), "base64"),
            (base64.b64encode(JPEG), "base64"),
            (DATA_URI.encode(), "a data: URI"),
            (b"https://host/cat.jpg", "a URL"),
        )
    ),
    *(
        Nearly(f"{shown} in an image's part", 422, "image-as-text", shown, {"files": {"image": (None, content)}})
        for content, shown in (
            (ENCODED.encode(), "base64"),
            (DATA_URI.encode(), "a data: URI"),
            (b"https://host/cat.jpg", "a URL"),
            (BODY, "JSON"),
        )
    ),
    Nearly("wrong base64", 422, "invalid-base64", "base64 has no '!'", in_json(images=["!" + ENCODED])),
    *(
        Nearly(f"an image that is {shown}", 422, "invalid-base64", shown, in_json(images=[text]))
        for text, shown in (
            (f"b'{ENCODED}'", "how Python shows bytes"),
            (f"image/png;base64,{ENCODED}", "without its 'data:'"),
            (f"base64,{ENCODED}", "without its 'data:'"),
            (PICTURE.hex(), "hexadecimal"),
            (base64.b64encode(ENCODED.encode()).decode(), "base64 of base64"),
            (base64.b64encode(DATA_URI.encode()).decode(), "base64 of base64"),
            ("cat (1).jpeg", "is an address"),
        )
    ),
    *(
        Nearly(f"{shown}, announced as JSON", 400, "invalid-body", shown, raw(content, "application/json"))
        for content, shown in (
            (PICTURE, "an image (PNG)"),
            (image_bytes(image_format="AVIF"), "an image (AVIF)"),
            (gzip.compress(BODY), "gzip, not JSON"),
        )
    ),
    Nearly(
        "a form with another boundary",
        400,
        "invalid-body",
        "the boundary that its Content-Type names",
        raw(b"--x\r\n\r\n--x--\r\n", "multipart/form-data; boundary=y"),
    ),
    Nearly("a path", 422, "invalid-base64", "is an address", in_json(images=["/photos/cat.jpg"])),
]


@pytest.mark.parametrize("nearly", NEARLY, ids=lambda nearly: nearly.name)
async def test_the_problem_says_what_to_change(nearly: Nearly) -> None:
    async with serving() as client:
        response = await client.post(f"{nearly.route}?{nearly.query}", **nearly.request)
    problem = assert_problem(response, nearly.status, nearly.slug)
    assert nearly.says in problem["detail"]
    assert len(response.content) < 2_000


@dataclass(frozen=True)
class Taken:
    """A request that is answered as any other."""

    name: str
    request: dict[str, Any]
    query: str = field(default="")


TAKEN = [
    Taken("JSON with a byte order mark", raw(b"\xef\xbb\xbf" + BODY, "application/json")),
    Taken("JSON that names its charset", raw(BODY, "Application/JSON; charset=UTF-8")),
    *(Taken(f"prefix={value}", raw(PICTURE, "image/png"), f"prefix={value}") for value in ("True", "1", "yes", "ON")),
    Taken("image/jpg", raw(JPEG, "image/jpg")),
    Taken("a picture under another type", raw(JPEG, "image/png")),
    *(
        Taken(f"a raw {kind}", raw(image_bytes(image_format=kind), "application/octet-stream"))
        for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
    ),
    Taken("an ASCII PPM", raw(b"P3\n2 2\n255\n" + b"255 0 0 " * 4, "image/x-portable-pixmap")),
    Taken(
        "a field with a file's name", {"files": [("image", PICTURE), ("output", ("o.txt", b"pooled", "text/plain"))]}
    ),
    Taken("one text in JSON under the form's name", in_json(images=[ENCODED], output="pooled")),
]


@pytest.mark.parametrize("taken", TAKEN, ids=lambda taken: taken.name)
async def test_what_is_plain_enough_is_taken(taken: Taken) -> None:
    async with serving() as client:
        response = await client.post(f"/embed?{taken.query}", **taken.request)
    assert response.status_code == 200, response.text


async def test_texts_may_be_named_text_in_json() -> None:
    async with serving() as client:
        several = await client.post("/similarity", json={"images": [ENCODED], "text": ["a", "b"]})
        one = await client.post("/similarity", json={"images": [ENCODED], "text": "a"})
    assert (len(several.json()["cosine"][0]), len(one.json()["cosine"][0])) == (2, 1)


async def test_one_wrong_base64_costs_no_other_image() -> None:
    async with serving() as client:
        response = await client.post("/embed", json={"images": [ENCODED, "!", DATA_URI]})
    assert response.status_code == 207
    assert [("error" in entry) for entry in response.json()["data"]] == [False, True, False]
