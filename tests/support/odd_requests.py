"""Requests made from an OpenAPI document: as it allows them, and bent in many ways."""

import base64
import gzip
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from hypothesis import strategies as st

from tests.support.openapi import Operation, allowed
from tests.support.serving import image_bytes

MODELS = ("fake:vit", "fake:cnn", "openclip:ViT-B-32@openai")
PICTURE = image_bytes()
PICTURES = (PICTURE, image_bytes(image_format="JPEG"), image_bytes(image_format="GIF", mode="P", colour=3))

LONG = st.integers(1, 5000).map(lambda length: "x" * length)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Co", "So", "Mn"]), max_size=8),
    LONG,
    st.sampled_from(
        ["", "a photo of a cat", "{}", "{" * 40, "\0", "NaN", "1e999", "-0", "\uff11", "\ud800", "../../x", "%"]
    ),
)
HUGE = st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 1e308])
ODD = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), HUGE, st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=8,
)
SIZES = st.sampled_from(["32", "64", "48x32", "8", "7", "520", "0", "1x99999", "-32", "32x", "\uff132"])
STRINGS = st.one_of(TEXTS, st.sampled_from(MODELS), SIZES)
RAW_IMAGES = st.one_of(
    st.sampled_from(PICTURES),
    st.binary(max_size=64),
    st.builds(lambda content, end: content[:end], st.sampled_from(PICTURES), st.integers(0, 200)),
    st.builds(
        lambda content, place, byte: content[: place % len(content)] + byte + content[place % len(content) + 1 :],
        st.sampled_from(PICTURES),
        st.integers(0, 400),
        st.binary(min_size=1, max_size=1),
    ),
)


def _as_text(content: bytes, form: str) -> str:
    return form + base64.b64encode(content).decode()


TEXT_IMAGES = st.one_of(
    st.builds(_as_text, RAW_IMAGES, st.sampled_from(["", "data:image/png;base64,", "data:,", "data:", " "])),
    st.sampled_from(["http://example.com/x.png", "https://[::1]/", "http://\ud800/", "file:///etc/passwd", "data:"]),
    TEXTS,
)


IN_JSON = {"text": "texts", "template": "templates", "label": "labels"}
"""Options that a query and a form repeat, and their lists in JSON."""


def listed(name: str, value: Any) -> list[tuple[str, Any]]:
    """An option as a form and a query have it: repeated, or its values with commas."""
    if name in IN_JSON:
        return [(name, each) for each in value]
    return [(name, ",".join(map(str, value)) if isinstance(value, list) else value)]


def written_query(pairs: list[tuple[str, Any]]) -> bytes:
    return urlencode([(name, str(value)) for name, value in pairs], errors="replace").encode()


def written_json(pairs: list[tuple[str, Any]]) -> bytes:
    """An object whose names may come twice."""
    return ("{" + ",".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in pairs) + "}").encode()


def written_form(parts: list[tuple[bytes, bytes]], boundary: bytes = b"b") -> bytes:
    """parts: headers and content."""
    body = b"".join(b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, *part) for part in parts)
    return body + b"--" + boundary + b"--\r\n"


def queries(operation: Operation) -> st.SearchStrategy[bytes]:
    """Its parameters as the document allows them; with odd values, unknown and repeated names; and no query at all."""
    parameters = [each for each in operation.parameters if each["in"] == "query"]
    if not parameters:
        return st.sampled_from([b"", b"x=1", b"%ff"])
    pair = st.one_of(
        *(st.tuples(st.just(each["name"]), allowed(each["schema"], strings=STRINGS)) for each in parameters)
    )
    odd = st.tuples(st.sampled_from([each["name"] for each in parameters]) | st.text(max_size=9), ODD)
    pairs = st.lists(pair | odd, max_size=5).map(
        lambda pairs: [
            one for name, value in pairs for one in listed(name, value if isinstance(value, list) else [value])
        ]
    )
    return st.one_of(
        st.just(b""),
        pairs.map(written_query),
        st.binary(max_size=40),
        st.sampled_from([b"model=%00", b"model=%ff%fe", b"&&==&", b"text=" * 300, b"resolution=" + b"9" * 5000]),
    )


ODD_JSON = (
    b"",
    b"null",
    b"[" * 5000,
    b'{"a":' * 2000,
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\0}\0",
    b'{"images": ["\xff"]}',
    b'{"images": ["\\ud800"]}',
    b'{"images": [' + b"1" * 5000 + b"]}",
    b'{"images":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"images": ["x"], "layer": 1e400}',
    b'{"images": ["x"], "layer": ' + b"9" * 5000 + b"}",
    b'{"images": [' + b'"",' * 20 + b'""]}',
    b'{"texts": [' + b'"a",' * 2000 + b'"a"], "images": [""]}',
)
TYPES = (
    b"",
    b"\xff",
    b"a/b;c",
    b"x" * 3000,
    b"image/*",
    b"image/png",
    b"text/plain",
    b"application/json",
    b"APPLICATION/JSON; charset=utf-16",
    b"application/octet-stream",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data",
)


def odd_json(schema: dict[str, Any]) -> st.SearchStrategy[bytes]:
    names = [*schema["properties"], "image", "text", "label", "", "\ud800"]
    options = {name: about for name, about in schema["properties"].items() if name != "images"}
    images = st.lists(TEXT_IMAGES, min_size=1, max_size=3)
    nearly = st.builds(
        lambda images, rest, odd: written_json([*images, *rest.items(), *odd]),
        images.map(lambda images: [("images", images)]) if "images" in schema["properties"] else st.just([]),
        allowed({"type": "object", "properties": options}, strings=STRINGS),
        st.lists(st.tuples(st.sampled_from(names), ODD), max_size=3),
    )
    return st.one_of(
        nearly,
        ODD.map(lambda value: json.dumps(value).encode()),
        st.builds(lambda content, end: content[: end % (len(content) + 1)], nearly, st.integers(0)),
        st.sampled_from(ODD_JSON),
    )


@st.composite
def odd_forms(draw: st.DrawFn, schema: dict[str, Any]) -> tuple[bytes, bytes]:
    """Content-Type and body."""
    boundary = draw(st.sampled_from([b"b", b"x" * 70, b"a b", b"--", b""]))
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        name = draw(st.sampled_from([*schema["properties"], "images", "text"]) | TEXTS)
        about = schema["properties"].get(name)
        values = allowed(about, strings=STRINGS) if about and name != "image" and draw(st.booleans()) else TEXTS
        content = draw(RAW_IMAGES) if name == "image" else str(draw(values)).encode("utf-8", "replace")
        said = quote(name, errors="replace") if draw(st.booleans()) else name
        head = b'Content-Disposition: form-data; name="' + said.encode("utf-8", "replace") + b'"'
        head += draw(st.sampled_from([b"", b'; filename="x.png"', b"; filename*=UTF-8''x", b'; name="image"', b";;=;"]))
        extra = [b"", b"\r\nContent-Type: image/png", b"\r\nX: " + b"y" * 300, b"\r\nContent-Type: ;;", b"\r\n:", b"\r"]
        parts.append((head + draw(st.sampled_from(extra)), content))
    body = written_form(parts, boundary)
    if draw(st.integers(0, 4)) == 0:
        body = body[: draw(st.integers(0, len(body)))]
    given_as = draw(
        st.sampled_from([b"; boundary=" + boundary, b'; boundary="' + boundary + b'"', b"", b"; boundary="])
    )
    return b"multipart/form-data" + given_as, body


def odd_bodies(operation: Operation) -> st.SearchStrategy[tuple[bytes, bytes]]:
    """Content-Type and body."""
    if not operation.bodies:
        return st.tuples(st.sampled_from([b"", b"application/json"]), st.binary(max_size=20))
    as_json = odd_json(operation.bodies.get("application/json", {"properties": {}}))
    forms = [odd_forms(operation.bodies["multipart/form-data"])] if "multipart/form-data" in operation.bodies else []
    return st.one_of(
        st.tuples(st.just(b"application/json"), as_json),
        *forms,
        st.tuples(st.sampled_from([b"image/png", b"application/octet-stream"]), RAW_IMAGES),
        st.tuples(st.sampled_from(TYPES), RAW_IMAGES | as_json),
    )


_WORDS = st.lists(st.sampled_from(["a cat", "ein Vogel", "\N{CAT}", "long " * 40]), min_size=1, max_size=3)
PLAIN = {
    "model": st.sampled_from(MODELS),
    "resolution": st.sampled_from(["32", 64, "48x32"]),
    "layer": st.integers(-5, 4),
    "text": _WORDS,
    "label": _WORDS,
    "template": st.lists(st.sampled_from(["{}", "a photo of a {}", "openai"]), min_size=1, max_size=2),
}
"""Of options that the document leaves open, values that make sense."""


def _tensor(name: str, values: list[str]) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": values}


def _inference(images: list[bytes], texts: list[str], parameters: dict[str, Any]) -> tuple[bytes, bytes]:
    inputs = [_tensor("images", [_as_text(image, "") for image in images])] if images else []
    if texts or not images:
        inputs.append(_tensor("texts", texts))
    return b"application/json", json.dumps({"inputs": inputs, "parameters": parameters}).encode()


def _prediction(kind: str, image: bytes) -> tuple[bytes, bytes]:
    entries = json.dumps({"clip": {kind: {"modelName": "ViT-B-32__openai"}}}).encode()
    parts = [
        (b'Content-Disposition: form-data; name="entries"', entries),
        (b'Content-Disposition: form-data; name="image"; filename="blob"', image),
        (b'Content-Disposition: form-data; name="text"', b"a cat"),
    ]
    return b"multipart/form-data; boundary=b", written_form(parts)


PLAIN_BODIES = {
    "/v2/models/{model}/infer": st.builds(
        _inference,
        st.lists(st.sampled_from(PICTURES) | RAW_IMAGES, max_size=2),
        st.lists(st.sampled_from(["a cat", "\N{CAT}"]), max_size=2),
        st.sampled_from([{}, {"dtype": "float16"}, {"layer": "-2"}, {"resolution": 64, "binary_data_output": True}]),
    ),
    "/v2/repository/index": st.sampled_from([(b"", b""), (b"application/json", b'{"ready": true}')]),
    "/predict": st.builds(_prediction, st.sampled_from(["visual", "textual"]), st.sampled_from(PICTURES) | RAW_IMAGES),
}
"""Content-Type and body of requests that make sense, to protocols other than our own."""


@st.composite
def plain(draw: st.DrawFn, operation: Operation) -> tuple[bytes, bytes, bytes]:
    """Query, Content-Type and body of a request that makes sense. It may ask for what this model does not give."""
    if operation.path in PLAIN_BODIES:
        return b"", *draw(PLAIN_BODIES[operation.path])
    options: list[tuple[str, Any]] = []
    for parameter in operation.parameters:
        name = parameter["name"]
        if name in IN_JSON.values():  # a list's name in place of its items
            continue
        is_needed = name in ("text", "label")
        if parameter["in"] == "query" and (is_needed or draw(st.integers(0, 3)) == 0):
            options.append((name, draw(PLAIN.get(name, allowed(parameter["schema"], strings=st.just("32"))))))
    pairs = [one for name, value in options if value is not None for one in listed(name, value)]
    if not operation.bodies:
        return written_query(pairs), b"", b""
    images = draw(st.lists(st.sampled_from(PICTURES) | RAW_IMAGES, min_size=1, max_size=3))
    match draw(st.sampled_from(list(operation.bodies))):
        case "application/json" if "images" not in operation.bodies["application/json"].get("required", ()):
            schema = operation.bodies["application/json"]
            return b"", b"application/json", json.dumps(draw(allowed(schema, strings=STRINGS | TEXT_IMAGES))).encode()
        case "application/json":
            texts: list[Any] = [
                _as_text(image, draw(st.sampled_from(["", "data:image/png;base64,"]))) for image in images
            ]
            return (
                b"",
                b"application/json",
                written_json([("images", texts), *((IN_JSON.get(name, name), value) for name, value in options)]),
            )
        case "multipart/form-data":
            named = b'Content-Disposition: form-data; name="%b"'
            parts = [(named % name.encode(), str(value).encode()) for name, value in pairs]
            parts += [(named % b"image" + b'; filename="x"\r\nContent-Type: image/png', image) for image in images]
            return b"", b"multipart/form-data; boundary=b", written_form(parts)
        case "image/*":
            return written_query(pairs), b"image/png", images[0]
        case other:
            return written_query(pairs), other.encode(), images[0]


HEADERS = st.lists(
    st.one_of(
        st.tuples(
            st.just(b"accept"),
            st.sampled_from(
                [b"*/*", b"application/x-npy", b"application/vnd.safetensors", b"text/html", b"\xff", b",;q=x"]
            )
            | st.sampled_from([b"application/json;q=0", b"a" * 5000, b"application/octet-stream", b"image/*;q=nan"]),
        ),
        st.tuples(
            st.just(b"content-encoding"), st.sampled_from([b"gzip", b"deflate", b"br", b"identity", b"gzip, gzip"])
        ),
        st.tuples(
            st.just(b"content-length"), st.sampled_from([b"0", b"5", b"-1", b"x", b"9" * 30, b"9" * 5000, b"\xb2"])
        ),
        st.tuples(st.just(b"x-request-id"), st.binary(max_size=80)),
        st.tuples(st.binary(min_size=1, max_size=8).map(bytes.lower), st.binary(max_size=30)),
    ),
    max_size=3,
)


@dataclass(frozen=True)
class Request:
    operation: Operation
    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    body: tuple[bytes, ...]


@st.composite
def requests(draw: st.DrawFn, operations: list[Operation]) -> Request:
    """Of these operations. Every second one makes sense."""
    some = [operation for operation in operations if operation.bodies or operation.path == "/vram"]
    operation = draw(st.sampled_from([*some * 6, *operations]))
    path, is_plain = operation.path, draw(st.booleans())
    for parameter in operation.parameters:
        if parameter["in"] == "path":
            known = st.sampled_from(MODELS if is_plain and operation.bodies else [*MODELS, "empty-image"])
            path = path.replace(f"{{{parameter['name']}}}", draw(known if is_plain else known | TEXTS))
    method = operation.method
    if is_plain:
        query, content_type, body = draw(plain(operation))
        accepted = [b"*/*", b"application/json", b"application/x-npy", b"application/vnd.safetensors"]
        headers = draw(st.sampled_from([[], *([(b"accept", each)] for each in accepted)]))
    else:
        query, (content_type, body), headers = draw(queries(operation)), draw(odd_bodies(operation)), draw(HEADERS)
        if draw(st.sampled_from([*[False] * 9, True])):
            method = draw(st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", "FOO"]))
    if content_type:
        headers = [*headers, (b"content-type", content_type)]
    if (b"content-encoding", b"gzip") in headers and draw(st.booleans()):
        body = gzip.compress(body, mtime=0)
    middle = draw(st.integers(0, len(body)))
    bodies = draw(st.sampled_from([(body,), (body[:middle], body[middle:])]))
    return Request(operation, method, path, query, headers, bodies)
