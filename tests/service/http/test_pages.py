"""The pages and their files: what is sent with them, and what is not to be had."""

import pytest

from service.http.web.pages import STATIC
from tests.support.serving import serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/", "/docs", "/web/page.js", "/web/samples/samples.json"])
async def test_a_page_lets_nothing_of_another_host_in(path: str) -> None:
    async with serving() as client:
        headers = (await client.get(path)).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert all("unsafe" not in sources and "http" not in sources and "*" not in sources for sources in policy.values())
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


async def test_files_have_their_types_and_are_sent_once() -> None:
    types = {
        "page.js": "text/javascript",
        "page.css": "text/css",
        "icon.svg": "image/svg+xml",
        "samples/cat.jpg": "image/jpeg",
    }
    async with serving() as client:
        for name, kind in types.items():
            answer = await client.get(f"/web/{name}")
            assert answer.headers["content-type"].split(";")[0] == kind
            assert answer.content == (STATIC / name).read_bytes()
            again = await client.get(f"/web/{name}", headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert (await client.head(f"/web/{name}")).headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("name", ["none.js", "", "views", "../pages.py", "..%2Fpages.py", "%2e%2e/pages.py", "a%00b"])
async def test_nothing_but_the_files_is_given(name: str) -> None:
    async with serving() as client:
        answer = await client.get(f"/web/{name}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
        assert (await client.post("/web/page.js")).status_code == 405


async def test_pages_are_counted_by_route_and_not_by_path() -> None:
    async with serving() as client:
        await client.get("/web/page.js")
        await client.get("/web/none.js")
        metrics = (await client.get("/metrics")).text
    assert 'requests_total{protocol="native",route="/web/{path:path}",status="200"} 1.0' in metrics
    assert "none.js" not in metrics
