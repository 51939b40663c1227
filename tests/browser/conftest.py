"""One server and one Chromium for the tests of the page, which are slow ones. Faults in a page fail its test."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.browser import Faults, OpenPage, chromium
from tests.support.process import served


def pytest_itemcollected(item: pytest.Item) -> None:
    """Every test of this folder, so that a new file cannot forget it."""
    item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of `visiontower serve` with the demo encoders."""
    with served() as address:
        yield address


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Of the package and not the session: the next file's tests may be asynchronous."""
    with chromium() as running:
        yield running


@pytest.fixture
def faults() -> Iterator[Faults]:
    """What goes wrong in the test's pages; `faults.expect("answer 422: POST")` says before what will."""
    found = Faults()
    yield found
    assert found.unexpected() == []


@pytest.fixture
def open_page(browser: Browser, server: str, faults: Faults) -> Iterator[OpenPage]:
    """`open_page("/docs", theme="dark", width=390)` gives a Playwright page in a fresh context."""
    opener = OpenPage(browser, server, faults)
    yield opener
    opener.close()
