"""Bodies, options and Accept headers, by plain calls."""

import base64
import contextlib
from urllib.parse import urlencode

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.contract.errors import VisiontowerError
from encoders.contract.values import ImageSize
from service.engine.values import ImageUrl
from service.errors import InvalidOption, NoImages
from service.http.errors import InvalidBody, NotAcceptable, TooManyImages
from service.http.protocols.native.body import Body
from service.http.protocols.native.hints import as_image
from service.http.protocols.native.negotiation import choose
from service.http.protocols.native.requests import EmbedOptions, SimilarityOptions, parse, read

names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8).filter(lambda name: name != "image")


@given(
    st.lists(st.binary(max_size=200).filter(lambda image: as_image(image) is image), min_size=1, max_size=5),
    st.lists(st.tuples(names, st.text(max_size=20)), max_size=3),
)
def test_a_form_written_by_httpx_is_read_back(images: list[bytes], fields: list[tuple[str, str]]) -> None:
    """Any bytes survive, line ends and dashes too."""
    parts = [("image", ("x", image, "image/png")) for image in images]
    parts += [(name, (None, value.encode())) for name, value in fields]  # type: ignore[misc]  # httpx takes both
    request = httpx.Request("POST", "http://service", files=parts)
    found = parse(request.read(), content_type=request.headers["content-type"], max_images=9)
    assert found == Body(images=list(images), fields=list(fields))


@given(st.binary(max_size=300), st.sampled_from(["multipart/form-data; boundary=x", "application/json"]))
def test_no_body_is_worse_than_a_problem(body: bytes, content_type: str) -> None:
    with contextlib.suppress(InvalidBody, InvalidOption, NoImages):
        parse(body, content_type=content_type, max_images=9)


def json_body(*images: str) -> bytes:
    return ('{"images": [' + ",".join(f'"{image}"' for image in images) + '], "layer": -2, "model": null}').encode()


def test_json_images_may_be_base64_data_uris_or_urls() -> None:
    encoded = base64.b64encode(b"some bytes").decode()
    body = parse(
        json_body(
            encoded,
            f"data:image/png;base64,{encoded}",
            "data:,some%20bytes",
            "HTTPS://x/y.png",
            f"{encoded[:4]}\\n {encoded[4:]}",
        ),
        content_type="application/json; charset=utf-8",
        max_images=9,
    )
    assert body.images == [b"some bytes", b"some bytes", b"some bytes", ImageUrl("HTTPS://x/y.png"), b"some bytes"]
    assert body.fields == [("layer", -2), ("model", None)]


@pytest.mark.parametrize(
    "image", ["abcde", "a b c!", "AA==AAAA", "ü", "file:///etc/passwd", "data:image/png;base64,%%"]
)
def test_what_is_no_base64_is_an_error_at_its_place(image: str) -> None:
    body = parse(json_body("AAAA", image), content_type="application/json", max_images=9)
    assert body.images[0] == b"\0\0\0"
    assert isinstance(body.images[1], VisiontowerError)


def test_too_many_images_are_counted_before_they_are_decoded() -> None:
    with pytest.raises(TooManyImages) as caught:
        parse(json_body(*["%"] * 10), content_type="application/json", max_images=9)
    assert caught.value.facts == {"actual": 10, "limit": 9}


def test_query_and_body_may_say_the_same() -> None:
    query = [("prefix", "TRUE"), ("layer", "2"), ("dtype", "float16"), ("dtype", "float16")]
    options = read(EmbedOptions, query=urlencode(query).encode(), body=[("prefix", True), ("layer", 2)])
    assert (options.prefix, options.layer, options.dtype) == (True, 2, "float16")


@pytest.mark.parametrize(
    ("query", "body"),
    [
        ([("layer", "1")], [("layer", 2)]),
        ([("layer", "1"), ("layer", "2")], []),
        ([("nope", "1")], []),
        ([], [("nope", "1")]),
        ([], [("layer", 1.5)]),
        ([], [("model", ["a"])]),
        ([], [("resolution", True)]),
        ([], [("resolution", "-1")]),
        ([], [("resolution", "1x2x3")]),
        ([], [("resolution", "9" * 5000)]),
        ([], [("layer", "9" * 5000)]),
    ],
)
def test_options_that_cannot_be_are_refused(query: list[tuple[str, str]], body: list[tuple[str, object]]) -> None:
    with pytest.raises(InvalidOption) as caught:
        read(EmbedOptions, query=urlencode(query).encode(), body=body)
    assert len(str(caught.value)) < 10_400


def test_repeated_names_make_lists() -> None:
    options = read(SimilarityOptions, query=b"text=a&text=b", body=[("text", "a"), ("text", "b")])
    assert options.texts == ("a", "b")
    with pytest.raises(InvalidOption):
        read(SimilarityOptions, query=b"text=a", body=[("texts", ["b"])])


@pytest.mark.parametrize(
    ("value", "size"), [("336", (336, 336)), (224, (224, 224)), ("224x448", (224, 448)), (" 8X16 ", (8, 16))]
)
def test_a_resolution_is_n_or_height_x_width(value: object, size: tuple[int, int]) -> None:
    assert read(EmbedOptions, query=b"", body=[("resolution", value)]).resolution == ImageSize(*size)


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "json"),
        ("application/x-npy", "npy"),
        ("application/json;q=0.5, application/vnd.safetensors", "safetensors"),
        ("application/*;q=0.2, application/octet-stream;q=0.9", "raw"),
        ("*/*, application/json;q=0", "safetensors"),
        ("APPLICATION/X-NPY; Q=1", "npy"),
    ],
)
def test_the_best_liked_format_is_chosen(accept: str, format: str) -> None:
    assert choose(accept, asked=None) == format


def test_a_named_format_overrides_the_header() -> None:
    assert choose("application/json", asked="npy") == "npy"


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/*", "application/json;q=x"])
def test_nothing_acceptable_is_an_error(accept: str) -> None:
    with pytest.raises(NotAcceptable):
        choose(accept, asked=None)
