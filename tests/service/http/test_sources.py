"""The texts that stand for images in JSON."""

import base64
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service.engine.values import ImageUrl
from service.http.errors import InvalidBase64
from service.http.sources import is_base64, source_of
from tests.support.serving import image_bytes, noise

PLAIN = base64.b64encode(b"\xfb\xff\xfe four bytes?>").decode()
IMAGE = b"\xfb\xff\xfe four bytes?>"
SAFE = PLAIN.replace("+", "-").replace("/", "_")


@given(st.binary(max_size=100))
def test_base64_is_taken_in_every_spelling(image: bytes) -> None:
    assume(image[:5].lower() != b"data:" and not is_base64(image[:64]))  # an image of text is refused, with a hint
    text = base64.b64encode(image).decode()
    safe = base64.urlsafe_b64encode(image).decode()
    lines = "\r\n".join(text[at : at + 8] for at in range(0, len(text), 8))
    for each in (text, text.rstrip("="), safe, safe.rstrip("="), lines, f" {text}\n", quote(text, safe="")):
        for prefix in ("", "data:image/png;base64,", "DATA:;BASE64,"):
            assert source_of(prefix + each) == image


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png; base64,{PLAIN}",
        f"data:image/png ;base64 , {PLAIN}",
        f"data:image/png;charset=utf-8;base64,{PLAIN}",
        f"data:;base64,{SAFE}",
        f"Data:Image/PNG;Base64,{PLAIN}",
        f"data:image/png;base64,{quote(PLAIN, safe='')}",
        f"data:image/png;base64,{PLAIN.replace('=', '%3D').replace('+', '%2b')}",
        f"\n data:image/png;base64,{PLAIN}",
        f"data:image/png,{quote(IMAGE)}",
    ],
)
def test_data_uris_are_taken_as_they_come(text: str) -> None:
    assert source_of(text) == IMAGE


def test_a_data_uri_that_forgets_to_say_base64_is_taken() -> None:
    picture = noise(1)
    assert source_of(f"data:image/png,{base64.b64encode(picture).decode()}") == picture


def test_another_data_uri_is_its_own_bytes() -> None:
    assert source_of("data:image/svg+xml,%3Csvg%2F%3E") == b"<svg/>"
    assert source_of("data:,a+b") == b"a+b"


def test_a_url_is_fetched_later() -> None:
    assert source_of(" HTTPS://host/a.png ") == ImageUrl("HTTPS://host/a.png")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not base64!", "base64 has no '!', which stands at 9"),
        ("ü", "base64 has no 'ü', which stands at 0"),
        ("AAAAA", "5 characters cannot be"),
        ("AA==AAAA", "goes on behind its padding"),
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,%%", "base64 has no '%'"),
        ("file:///etc/passwd", "is an address"),
        ("s3://bucket/cat.jpg", "is an address"),
        ("/photos/cat.jpg", "is an address"),
        ("./cat.jpeg", "is an address"),
        ("C:\\cat.png", "is an address"),
        ("cat.jpg", "is an address"),
        ("x!" * 1_000_000, "base64 has no '!'"),
        ("A" * 1_000_001, "1000001 characters cannot be"),
    ],
)
def test_what_is_no_base64_says_why(text: str, reason: str) -> None:
    source = source_of(text)
    assert isinstance(source, InvalidBase64)
    assert reason in str(source)
    assert len(str(source)) < 500


@given(st.text(max_size=60) | st.from_regex(r"data:[a-z/;, =%0-9]{0,30}", fullmatch=True))
def test_no_text_is_worse_than_an_error_at_its_place(text: str) -> None:
    assert isinstance(source_of(text), bytes | ImageUrl | InvalidBase64)


def test_every_advertised_format_is_known_as_base64_by_its_beginning() -> None:
    for image_format in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"):
        picture = image_bytes(size=(40, 40), image_format=image_format)
        assert source_of(f"data:,{base64.b64encode(picture).decode()}") == picture, image_format


@given(
    pieces=st.lists(
        st.sampled_from(["%", "%4", "%41", "%fF", "%%30", "%g0", "a", "é", "%\udc80", "x" * 65_534, "x" * 65_535])
    )
)
def test_a_percent_encoded_image_is_decoded_as_the_library_does(pieces: list[str]) -> None:
    text = "".join(pieces)
    expected = unquote_to_bytes(text.encode("utf-8", "replace"))
    assert source_of(f"data:,x{text}!") == b"x" + expected + b"!"
