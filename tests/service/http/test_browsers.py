"""What a browser may do for a page: send from elsewhere, read from elsewhere, take an answer for another thing."""

from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.settings import Settings
from tests.support.serving import PNG, app_of, assert_problem, client_of, image_bytes, serving

pytestmark = pytest.mark.anyio
APP = "https://app.example.org"
PAGE_OF_ANOTHER_SITE = {"origin": "https://elsewhere.example", "sec-fetch-site": "cross-site"}


async def status(headers: dict[str, str], *, address: str = "http://service", **settings: Any) -> int:
    """Of an image that is posted with these headers to the service at an address."""
    app = app_of(**settings)
    async with client_of(app), httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=address) as client:
        return (await client.post("/embed", content=image_bytes(), headers={**PNG, **headers})).status_code


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),  # a program
        ({"sec-fetch-site": "same-origin", "origin": "http://service"}, 200),
        ({"sec-fetch-site": "none"}, 200),  # the user's own doing
        ({"sec-fetch-site": "same-site", "origin": "http://other.service"}, 403),
        (PAGE_OF_ANOTHER_SITE, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "http://service"}, 200),  # as a browser without Sec-Fetch-Site, or over plain http, has it
        ({"origin": "http://service:8000"}, 403),
        ({"origin": "http://elsewhere.example"}, 403),
        ({"origin": "null"}, 403),  # a sandboxed frame
        ({"origin": "http://service", "host": ""}, 403),
    ],
)
async def test_a_page_of_another_site_may_not_post(headers: dict[str, str], expected: int) -> None:
    assert await status(headers) == expected


@pytest.mark.parametrize("origins", [(APP,), ("*",)])
async def test_but_of_an_origin_that_is_allowed_it_may(origins: tuple[str, ...]) -> None:
    assert await status({"origin": APP, "sec-fetch-site": "cross-site"}, cors_origins=origins) == 200
    of_another = await status(PAGE_OF_ANOTHER_SITE, cors_origins=origins)
    assert of_another == (200 if origins == ("*",) else 403)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("localhost:8000", 200),
        ("tower.localhost", 200),
        ("elsewhere.example:8000", 403),  # whose DNS has just begun to say 127.0.0.1
        ("localhost.elsewhere.example", 403),
        ("[", 403),
    ],
)
async def test_a_name_that_leads_to_this_machine_makes_no_page_its_own(name: str, expected: int) -> None:
    same = {"host": name, "origin": f"http://{name}"}
    assert await status(same, address="http://127.0.0.1:8000") == expected


async def test_reading_is_left_to_the_browser_and_the_body_is_not_waited_for() -> None:
    async def never() -> Any:
        raise AssertionError("somebody reads the body")
        yield b""

    async with serving() as client:
        assert (await client.get("/models", headers=PAGE_OF_ANOTHER_SITE)).status_code == 200
        answer = await client.post("/embed", content=never(), headers=PAGE_OF_ANOTHER_SITE)
    problem = assert_problem(answer, 403, "cross-site")
    assert "https://elsewhere.example" in problem["detail"]
    assert "cors_origins" in problem["detail"]


@pytest.mark.parametrize(
    ("path", "member"),
    [("/v1/embeddings", "error"), ("/v2/embed", "message"), ("/v2/models/fake:vit/infer", "error"), ("/predict", "")],
)
async def test_the_refusal_has_the_protocol_s_form(path: str, member: str) -> None:
    async with serving() as client:
        answer = await client.post(path, json={}, headers=PAGE_OF_ANOTHER_SITE)
        counted = (await client.get("/metrics")).text
    assert answer.status_code == 403
    assert "application/problem+json" not in answer.headers["content-type"]
    assert member in answer.text
    assert 'status="403"' in counted


async def test_without_a_setting_no_other_page_can_read() -> None:
    async with serving() as client:
        preflight = await client.options("/embed", headers={"origin": APP, "access-control-request-method": "POST"})
        answer = await client.get("/models", headers={"origin": APP})
    assert preflight.status_code == 405
    assert not [name for name in (*preflight.headers, *answer.headers) if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/v2/embed", "/v2/models/fake:vit/infer", "/models"])
async def test_an_allowed_page_is_told_so_on_every_route_and_can_read_errors_too(path: str) -> None:
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    async with serving(cors_origins=(APP,)) as client:
        preflight = await client.options(path, headers={"origin": APP, **asks})
        other = await client.options(path, headers={"origin": "https://elsewhere.example", **asks})
        answer = await client.post(path, content=b"nothing", headers={"origin": APP})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == APP
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-origin" not in other.headers
    assert answer.status_code >= 400
    assert answer.headers["access-control-allow-origin"] == APP
    assert answer.headers["access-control-expose-headers"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


async def test_an_unforeseen_error_can_be_read_by_an_allowed_page() -> None:
    app = app_of(cors_origins=(APP,))

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    async with client_of(app) as client:
        answer = await client.get("/broken", headers={"origin": APP})
    assert_problem(answer, 500, "internal")
    assert answer.headers["access-control-allow-origin"] == APP


@pytest.mark.parametrize("path", ["/", "/docs", "/models", "/metrics", "/nowhere", "/embed"])
async def test_no_answer_is_taken_for_what_it_is_not_nor_shown_within_another_site(path: str) -> None:
    async with serving() as client:
        headers = (await client.get(path)).headers
    assert headers.get_list("x-content-type-options") == ["nosniff"]
    assert headers.get_list("cross-origin-resource-policy") == ["same-origin"]


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("https://app.example.org", "https://app.example.org"),
        ("HTTPS://App.Example.org:443", "https://app.example.org"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:80", "http://[::1]"),
        ("chrome-extension://abcdefgh", "chrome-extension://abcdefgh"),
        ("*", "*"),
    ],
)
def test_origins_are_kept_as_browsers_write_them(entry: str, origin: str) -> None:
    assert Settings(cors_origins=(entry,)).cors_origins == (origin,)


@pytest.mark.parametrize(
    "entry",
    [
        "app.example.org",
        "https://app.example.org/",
        "https://*.example.org",
        "null",
        "https://",
        "http://a:99999",
        "a b",
    ],
)
def test_what_is_no_origin_is_an_error_that_says_what_one_is(entry: str) -> None:
    with pytest.raises(ValidationError, match=r"is no origin: give scheme and host|there is no port"):
        Settings(cors_origins=(entry,))
