"""A server that wants an access key, pages of other sites that send to it, and one whose metrics are elsewhere."""

import json
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.support.browser import Faults, OpenPage, axe, fits, shown

KEY = "secret-7"
OPEN = ("/", "/docs", "/openapi.json", "/problems")
TOKENS = "#tokens?panel=demo:vit"


class Guard:
    """Stands before the server: without the key all but the pages is 401."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """The paths that were, without the key."""

    def __call__(self, route: Route) -> None:
        path = urlsplit(route.request.url).path
        if path in OPEN or path.startswith("/web/") or route.request.headers.get("authorization") == f"Bearer {KEY}":
            route.continue_()
        else:
            self.asked.append(path)
            problem = {"type": "/problems/no-access", "detail": "This server needs an access key."}
            route.fulfill(status=401, content_type="application/problem+json", body=json.dumps(problem))


def guarded(
    open_page: OpenPage, faults: Faults, *, path: str = TOKENS, width: int = 1440, theme: str = "light"
) -> Page:
    """A page of the server behind a guard."""
    faults.expect("answer 401: GET")
    page = open_page("/problems", width=width, theme=theme)
    page.context.route("**/*", Guard())
    page.goto(page.url.replace("/problems", f"/{path}"))
    return page


def asked_for(page: Page) -> Locator:
    """The dialog."""
    dialog = page.get_by_role("dialog", name="Access key")
    expect(dialog).to_contain_text("This server needs an access key.")
    return dialog


def test_a_key_is_asked_for_once_and_kept_by_the_tab_until_it_is_forgotten(open_page: OpenPage, faults: Faults) -> None:
    page = guarded(open_page, faults)
    asked_for(page)
    page.keyboard.type(KEY)  # the field has the focus
    page.keyboard.press("Enter")
    shown(page)
    page.reload()
    shown(page)
    page.get_by_role("link", name="API").click()
    section = page.locator('.operation[data-path="/models"]')
    section.get_by_text("Try it").click()
    section.get_by_role("button", name="Run").click()
    expect(section.locator(".facts")).to_contain_text("200")
    elsewhere = page.evaluate("JSON.stringify([{...localStorage}, document.cookie, location.href])")
    assert KEY not in elsewhere
    page.get_by_role("button", name="Forget key").press("Enter")
    asked_for(page)
    assert page.evaluate("sessionStorage.length") == 0
    expect(page.get_by_role("button", name="Forget key")).to_be_hidden()


def test_a_wrong_key_is_said_and_not_kept(open_page: OpenPage, faults: Faults) -> None:
    page = guarded(open_page, faults)
    dialog = asked_for(page)
    expect(dialog.get_by_role("alert")).to_have_count(0)
    dialog.get_by_label("Key").fill("schlüssel")
    page.keyboard.press("Enter")  # no header can hold it
    dialog.get_by_label("Key").fill("wrong")
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("alert")).to_have_text("The server does not take this key.")
    assert page.evaluate("sessionStorage.length") == 0
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("alert")).to_have_text("This server needs an access key.")
    page.get_by_role("button", name="Try again").click()
    asked_for(page).get_by_label("Key").fill(KEY)
    page.keyboard.press("Enter")
    shown(page)


def test_copied_code_reads_the_key_from_a_variable_and_never_has_it(open_page: OpenPage, faults: Faults) -> None:
    page = guarded(open_page, faults)
    asked_for(page).get_by_label("Key").fill(KEY)
    page.keyboard.press("Enter")
    shown(page)
    page.get_by_role("button", name="Copy as code").click()
    dialog = page.get_by_role("dialog")
    for language, words in (("curl", "Bearer $VT_KEY"), ("Python", "os.environ['VT_KEY']")):
        dialog.get_by_role("button", name=language).click()
        expect(dialog.locator("code")).to_contain_text(words)
        expect(dialog.locator("code")).not_to_contain_text(KEY)


@pytest.mark.parametrize(("width", "theme"), [(1440, "light"), (390, "dark")])
def test_what_asks_for_a_key_can_be_used_by_everybody(
    open_page: OpenPage, faults: Faults, width: int, theme: str
) -> None:
    page = guarded(open_page, faults, width=width, theme=theme)
    dialog = asked_for(page)
    assert axe(page) == []
    dialog.get_by_label("Key").fill(KEY)
    page.keyboard.press("Enter")
    shown(page)
    assert fits(page)
    assert axe(page) == []


def test_live_says_that_the_metrics_are_on_another_port(open_page: OpenPage, faults: Faults) -> None:
    faults.expect("answer 404: GET .*/metrics")
    page = open_page("/problems")
    problem = {"type": "/problems/on-another-port", "detail": "/metrics is served on port 9000.", "port": 9000}
    page.route(
        "**/metrics",
        lambda route: route.fulfill(status=404, content_type="application/problem+json", body=json.dumps(problem)),
    )
    page.goto(page.url.replace("/problems", "/#live"))
    expect(page.locator("#view .problem")).to_contain_text("on a port of their own, 9000")
    expect(page.get_by_role("button", name="Go on")).to_be_visible()


def test_a_page_of_another_site_cannot_make_a_visitor_s_browser_post(
    open_page: OpenPage, faults: Faults, server: str
) -> None:
    faults.expect("another host: GET")
    faults.expect("answer 403: POST .*/embed")
    page = open_page("/problems")
    form = f'<form action="{server}/embed" method="post" enctype="multipart/form-data"><button>Win!</button></form>'
    page.context.route("http://elsewhere.example/**", lambda route: route.fulfill(content_type="text/html", body=form))
    page.goto("http://elsewhere.example/")
    page.get_by_role("button").click()
    expect(page.locator("body")).to_contain_text("/problems/cross-site")
