"""What holds for every page: it is answered without a fault, in both themes, on a phone and on a wide screen."""

import pytest
from playwright.sync_api import expect

from tests.support.browser import OpenPage, axe, screenshot

PATHS = {"start": "/", "docs": "/docs"}


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PATHS)
def test_a_page_is_accessible_and_fits(open_page: OpenPage, name: str, theme: str, width: int) -> None:
    page = open_page(PATHS[name], theme=theme, width=width)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert axe(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    screenshot(page, name)


def test_the_contents_lead_to_an_operation(open_page: OpenPage) -> None:
    page = open_page("/docs")
    page.locator("nav").get_by_role("link", name="POST /embed", exact=True).click()
    expect(page.get_by_role("heading", name="POST /embed", exact=True)).to_be_in_viewport()
