"""The app below a prefix (ASGI's root_path), as a proxy or Ray Serve mounts it."""

import re
from collections.abc import AsyncIterator
from urllib.parse import urljoin

import httpx
import pytest

from tests.support.serving import PNG, app_of, image_bytes

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = app_of()
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, root_path="/vt")
        async with httpx.AsyncClient(transport=transport, base_url="http://service/vt/") as client:
            yield client


async def test_protocols_are_found_and_counted_by_their_route(client: httpx.AsyncClient) -> None:
    assert (await client.post("embed", content=image_bytes(), headers=PNG)).status_code == 200
    assert (await client.get("v2/models/fake:vit")).status_code == 200
    text = (await client.get("metrics")).text
    assert 'visiontower_requests_total{protocol="native",route="/embed",status="200"} 1.0' in text
    assert 'protocol="open-inference",route="/v2/models/{model:path}"' in text


async def test_errors_have_the_form_of_the_protocol(client: httpx.AsyncClient) -> None:
    openai = await client.get("v1/nothing")
    assert "error" in openai.json(), openai.text
    assert (await client.get("nothing")).json()["type"] == "about:blank"


async def test_the_pages_and_all_that_they_load_are_there(client: httpx.AsyncClient) -> None:
    for page in ("", "docs"):
        answer = await client.get(page)
        links = {urljoin(str(answer.url), link) for link in re.findall(r'(?:href|src)="([^"#]+)"', answer.text)}
        assert len(links) > 5
        for link in links:
            assert (await client.get(link)).status_code == 200, link


async def test_without_its_slash_the_page_is_elsewhere(client: httpx.AsyncClient) -> None:
    """Else the browser would look for its files beside the prefix."""
    for asked, there in (("vt", "/vt/"), ("vt/health/ready/?model=a%26b", "/vt/health/ready?model=a%26b")):
        answer = await client.get(f"http://service/{asked}", headers={"host": "elsewhere"})
        assert (answer.status_code, answer.headers["location"]) == (307, there)


async def test_a_path_that_begins_like_the_prefix_is_not_below_it(client: httpx.AsyncClient) -> None:
    assert (await client.get("http://service/vtx/models")).status_code == 404
