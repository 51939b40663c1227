"""What holds for every view: it is accessible and fits, in both themes, on a phone and on a wide screen."""

import pytest
from playwright.sync_api import expect

from tests.support.browser import OpenPage, axe, fits, screenshot

TWO = "picture=sample:circle-house.png&picture=sample:cat.jpg"
LONG = "incomprehensibilities" * 5
VIEWS = {
    "tokens": ("/", ".stage .colours:not([hidden])", 2),
    "texts": (f"/#texts?{TWO}&text=a+sun&text={LONG}&maps=apart", ".text-maps .stage", 4),
    "match": (f"/#match?encoder=demo:vit;resolution=384&{TWO}", ".match-panel", 1),
    "search": (f"/#search?text=a+sun&{TWO}", ".card .score:not(:empty)", 2),
    "cost": ("/#cost", ".plot canvas", 3),
    "live": ("/#live", ".plot canvas", 5),
}
"""Key -> path, and of what there are so many when it is whole."""


def test_every_view_is_looked_at(open_page: OpenPage) -> None:
    links = open_page().locator("#views a")
    assert [link.get_attribute("data-view") for link in links.all()] == list(VIEWS)


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390)])
@pytest.mark.parametrize("key", VIEWS)
def test_it_is_accessible_and_fits(open_page: OpenPage, key: str, theme: str, width: int) -> None:
    path, part, count = VIEWS[key]
    page = open_page(path, theme=theme, width=width)
    expect(page.locator(part).nth(count - 1)).to_be_visible()
    if key == "match":
        page.get_by_text("The pairs as a table").click()
    assert axe(page) == []
    assert fits(page)
    screenshot(page, key)
