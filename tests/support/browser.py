"""A real browser for the page: Chromium, what goes wrong in it, accessibility, pictures."""

import base64
import mimetypes
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Response, expect, sync_playwright

from tests.support.paths import ROOT

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""As the Makefile has them."""
FLAGS = (
    "--no-sandbox",  # which root cannot have
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",  # which a processor would play
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no page of a test reaches another host
    "--use-fake-device-for-media-stream",  # a camera
)
TILES = "#pictures li"
"""The pictures' places in the tray."""
SAMPLES = ROOT / "service/http/web/static/samples"
BUILD = ROOT / "build" / "browser"
PATIENCE_MS = 30_000
"""How long a locator or an expectation waits on a busy machine."""
VIOLATION = "__violation"
TELL_VIOLATIONS = f"""addEventListener("securitypolicyviolation", (event) =>
    {VIOLATION}(`${{event.effectiveDirective}} blocks ${{event.blockedURI || "inline"}}`))"""
MADE_TRANSFER = """(files) => {
    const transfer = new DataTransfer();
    for (const { name, type, data } of files) {
        const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type }));
    }
    return transfer;
}"""
PASTED = """(transfer) => document.activeElement.dispatchEvent(
    new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true }))"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's browser. Skips the test where there is none.

    Not to be kept over a test that runs an event loop: Playwright runs one in this thread.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("there is no Chromium here: see `make browser`")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


class Faults:
    """What goes wrong in the pages of a test, a line each. All but what the test expects fails it.

    The lines: `answer 422: POST http://...`, `console error: ...`, `console warning: ...`, `uncaught: ...`,
    `another host: GET http://...`, `CSP: script-src-elem blocks inline`.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._expected: list[str] = []

    def expect(self, pattern: str) -> None:
        """Say before that faults will come in which this regular expression is found. None is a fault as well."""
        self._expected.append(pattern)

    def unexpected(self) -> list[str]:
        """The faults that were not expected, and the expected that did not come."""
        strange = [fault for fault in self.seen if not any(re.search(each, fault) for each in self._expected)]
        missed = [each for each in self._expected if not any(re.search(each, fault) for fault in self.seen)]
        return strange + [f"expected in vain: {each}" for each in missed]

    def watch(self, context: BrowserContext, host: str) -> None:
        """Keep the faults of all pages and workers of the context; `host` is the server's, with its port."""

        def answered(response: Response) -> None:
            if response.status >= 400:
                self.seen.append(f"answer {response.status}: {response.request.method} {response.url}")

        def said(message: ConsoleMessage) -> None:
            known = message.text.startswith("Failed to load resource: the server responded")  # the answer is a fault
            if message.type in ("error", "warning") and not known:
                self.seen.append(f"console {message.type}: {message.text} ({message.location['url']})")

        def asked(url: str, method: str) -> None:
            address = urlsplit(url)
            if address.scheme not in ("blob", "data") and address.netloc != host:
                self.seen.append(f"another host: {method} {url}")

        context.on("response", answered)
        context.on("console", said)
        context.on("request", lambda request: asked(request.url, request.method))
        context.on("weberror", lambda error: self.seen.append(f"uncaught: {error.error}"))
        context.expose_binding(VIOLATION, lambda _, violation: self.seen.append(f"CSP: {violation}"))
        context.add_init_script(TELL_VIOLATIONS)


class OpenPage:
    """Opens pages of a server, each in a context of its own, under watch."""

    def __init__(self, browser: Browser, server: str, faults: Faults) -> None:
        self._browser = browser
        self._server = server
        self._faults = faults
        self._contexts: list[BrowserContext] = []

    def __call__(
        self, path: str = "/", *, theme: str = "light", width: int = 1440, height: int = 900, **context: Any
    ) -> Page:
        """The loaded page. A whole URL is that of another server; `context` is for Playwright's `new_context`."""
        url = urljoin(self._server, path)
        wanted = {"color_scheme": theme, "viewport": {"width": width, "height": height}, "reduced_motion": "reduce"}
        made = self._browser.new_context(base_url=url, **{**wanted, **context})
        self._contexts.append(made)
        made.set_default_timeout(PATIENCE_MS)
        self._faults.watch(made, urlsplit(url).netloc)
        page = made.new_page()
        page.goto(url)
        return page

    def close(self) -> None:
        """Close what was opened, when all that it said has been heard."""
        for context in self._contexts:
            for page in context.pages:
                heard(page)
            context.close()


def heard(page: Page) -> None:
    """Wait until all that the page and its workers have said has been heard: each has a line of its own."""
    page.evaluate("0")
    for worker in page.workers:
        worker.evaluate("0")


@cache
def _axe() -> str:
    path = BUILD / "node_modules" / "axe-core" / "axe.min.js"
    if not path.exists():
        pytest.skip("axe-core is not installed: see `make page-tools`, which needs npm")
    return path.read_text()


def axe(page: Page) -> list[str]:
    """What axe-core finds serious or critical, a line each: the rule, what it says, and the elements."""
    page.evaluate(_axe())
    found = page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
    return [
        f"{each['id']} ({each['impact']}): {each['help']}: {', '.join(str(node['target']) for node in each['nodes'])}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def screenshot(page: Page, name: str, *, full_page: bool = True) -> Path:
    """A picture in build/browser/screenshots, named after the view, the theme and the width."""
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    theme = "dark" if is_dark else "light"
    path = BUILD / "screenshots" / f"{name}-{theme}-{page.evaluate('innerWidth')}.png"
    page.screenshot(path=path, full_page=full_page)
    return path


def fits(page: Page) -> bool:
    """Whether nothing stands beyond the window's right edge."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def shown(page: Page) -> None:
    """Wait until the view Tokens shows tokens, and the page has nothing left to do."""
    expect(page.locator(".stage:has(.colours:not([hidden]))").first).to_be_visible()
    expect(page.locator("#stop")).to_be_hidden()


def settle(page: Page) -> None:
    """Wait until the page has nothing left to do."""
    expect(page.locator("#view")).to_have_attribute("aria-busy", "false")


def drop(page: Page, selector: str, *files: Path) -> None:
    """Drop files on an element, as from the desktop."""
    transfer = page.evaluate_handle(MADE_TRANSFER, [_sent(file) for file in files])
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event(selector, event, {"dataTransfer": transfer})


def paste(page: Page, *files: Path) -> None:
    """Paste files from the clipboard where the focus is."""
    page.evaluate(PASTED, page.evaluate_handle(MADE_TRANSFER, [_sent(file) for file in files]))


def _sent(file: Path) -> dict[str, str]:
    data = base64.b64encode(file.read_bytes()).decode()
    return {"name": file.name, "type": mimetypes.guess_type(file.name)[0] or "", "data": data}
