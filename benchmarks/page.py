"""How fast the page is, in Chromium: the first view, its bytes, and frames while the pointer moves over wide tokens.

    python -m benchmarks.page

The server has the demo encoders. For the frames, `/models` and `/embed` are answered here: one encoder, and 37 x 37
random tokens of 1,024 numbers of 16 bits. The pointer enters another patch in each of 120 steps. Times are the
browser's own; the handlers' are those of all functions that the page gives to requestAnimationFrame.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from urllib.parse import urlsplit

import numpy as np
from playwright.sync_api import Browser, Page, Request, Route, ViewportSize, sync_playwright
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save

from benchmarks.servers import free_port

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run")
_SIZE: ViewportSize = {"width": 1440, "height": 900}
_LONGEST_START_S = 120.0
_PAUSE_S = 0.1
_TIMES = 5
_MOST_BYTES = 300_000
_SAMPLES = "/web/samples/"
_SIDE, _WIDTH, _PATCH = 37, 1024, 14
_STEPS = 120
_COMPLETE = "#view[aria-busy=false] .stage .colours:not([hidden])"
"""The page is at rest, and has drawn the colours of tokens."""
_WATCH_FIRST_VIEW = f"""
    window.firstView = new Promise((resolve) => {{
        const look = () => {{
            if (document.querySelector("{_COMPLETE}") === null) return requestAnimationFrame(look);
            const [{{ responseStart }}] = performance.getEntriesByType("navigation");
            resolve(performance.now() - responseStart);
        }};
        requestAnimationFrame(look);
    }});
"""
_WATCH_FRAMES = """
    const inFrame = requestAnimationFrame.bind(window);
    window.handlerMs = [];
    window.requestAnimationFrame = (handler) => inFrame((time) => {
        const start = performance.now();
        handler(time);
        window.handlerMs.push(performance.now() - start);
    });
    window.record = () => {
        window.handlerMs = [];
        window.frames = [];
        const tick = (time) => { window.frames.push(time); inFrame(tick); };
        inFrame(tick);
    };
"""


@dataclass(frozen=True)
class FirstView:
    """Milliseconds from the first byte of `/` to the view complete; and what was sent, a path each, in bytes."""

    milliseconds: Sequence[float]
    sent: dict[str, int]

    @property
    def counted(self) -> int:
        """Bytes of all but the samples' pictures."""
        return sum(size for path, size in self.sent.items() if not _is_picture(path))

    def table(self) -> Table:
        """A file a row, the largest first."""
        shown = Table("sent", "bytes", title="the first view")
        shown.columns[1].justify = "right"
        for path, size in sorted(self.sent.items(), key=lambda each: -each[1]):
            shown.add_row(path + (" (a sample, not counted)" if _is_picture(path) else ""), f"{size:,}")
        shown.add_section()
        shown.add_row(f"together, of at most {_MOST_BYTES:,}", f"{self.counted:,}")
        return shown


@dataclass(frozen=True)
class Hover:
    """Milliseconds between frames, and in the page's handlers of a frame, while the pointer moves."""

    frames: Sequence[float]
    handlers: Sequence[float]

    def table(self) -> Table:
        """Median and 95th percentile."""
        title = f"the pointer over {_SIDE} x {_SIDE} tokens of {_WIDTH:,} numbers, {_STEPS} steps"
        shown = Table("", "p50 ms", "p95 ms", title=title)
        for name, values in (("between frames", self.frames), ("the page's handler", self.handlers)):
            p50, p95 = np.percentile(values, (50, 95))
            shown.add_row(name, f"{p50:.1f}", f"{p95:.1f}")
        shown.add_row("frames a second", f"{1000 / median(self.frames):.0f}", "")
        return shown


def _is_picture(path: str) -> bool:
    return path.startswith(_SAMPLES) and not path.endswith(".json")


@contextmanager
def _served() -> Iterator[str]:
    """The address of `visiontower serve` with the demo encoders, ready."""
    address = f"http://127.0.0.1:{free_port()}/"
    port = str(urlsplit(address).port)
    line = [sys.executable, "-m", "service.cli", "serve", "--port", port, "--log-level", "warning"]
    with subprocess.Popen(line) as process:
        try:
            _wait_for(f"{address}health/ready", process)
            yield address
        finally:
            process.terminate()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _LONGEST_START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=_LONGEST_START_S):
                return
        except OSError:
            time.sleep(_PAUSE_S)
    raise RuntimeError("the server did not come up")


@contextmanager
def _chromium() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if program is None:
        raise RuntimeError("there is no Chromium here: see `make browser`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        yield browser
        browser.close()


def first_view(browser: Browser, url: str) -> FirstView:
    """Each time with nothing kept from the time before; the first is not counted: it warms the server."""
    views = [_first_view(browser, url) for _ in range(_TIMES + 1)][1:]
    return FirstView([milliseconds for milliseconds, _ in views], views[0][1])


def _size(request: Request) -> int:
    """Of the answer's body. Of a worker's own file Playwright knows the headers only."""
    response = request.response()
    announced = response.header_value("content-length") if response else None
    return request.sizes()["responseBodySize"] or int(announced or 0)


def _first_view(browser: Browser, url: str) -> tuple[float, dict[str, int]]:
    with browser.new_context(viewport=_SIZE) as context:
        context.add_init_script(_WATCH_FIRST_VIEW)
        answered: list[Request] = []
        context.on("requestfinished", lambda request: answered.append(request))
        page = context.new_page()
        page.goto(url)
        milliseconds: float = page.evaluate("window.firstView")
        sent: dict[str, int] = {}
        for request in answered:
            path = urlsplit(request.url).path
            sent[path] = sent.get(path, 0) + _size(request)
        return milliseconds, sent


def hover(browser: Browser, url: str) -> Hover:
    """The page with an encoder of wide tokens; see the top of this file."""
    with browser.new_context(viewport=_SIZE) as context:
        context.add_init_script(_WATCH_FRAMES)
        page = context.new_page()
        page.route("**/models", _answer_models)
        tokens = np.random.default_rng(0).standard_normal((1, _SIDE * _SIDE, _WIDTH), dtype=np.float32)
        about = {"grid": f"{_SIDE},{_SIDE}", "prefix_tokens": "0", "index": "0", "errors": "[]"}
        body = save({"tokens": tokens.astype(np.float16)}, about)
        page.route("**/embed?**", lambda route: route.fulfill(body=body, content_type="application/vnd.safetensors"))
        page.goto(url)
        page.locator(_COMPLETE).wait_for()
        return _hovered(page)


def _answer_models(route: Route) -> None:
    answer = route.fetch().json()
    side = _SIDE * _PATCH
    wide = {
        **answer["data"][0],
        "id": "wide",
        "image_size": [side, side],
        "patch_size": [_PATCH, _PATCH],
        "grid": [_SIDE, _SIDE],
        "prefix_tokens": 0,
        "hidden_size": _WIDTH,
        "dtype": "float16",
        "resolutions": {name: [side, side] for name in ("multiple", "minimum", "maximum", "only")},
    }
    route.fulfill(body=json.dumps({**answer, "data": [wide]}), content_type="application/json")


def _hovered(page: Page) -> Hover:
    stage = page.locator(".stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    if box is None:
        raise RuntimeError("the page shows no patch grid")
    page.evaluate("window.record()")
    for step in range(_STEPS):
        row, col = 1 + 8 * (step // _SIDE), step % _SIDE
        page.mouse.move(
            box["x"] + (col + 0.5) * box["width"] / _SIDE,
            box["y"] + (row + 0.5) * box["height"] / _SIDE,
        )
    frames = page.evaluate("window.frames")
    return Hover(np.diff(frames).tolist(), page.evaluate("window.handlerMs"))


def main() -> None:
    """Start the server and the browser, measure, print."""
    argparse.ArgumentParser(
        "python -m benchmarks.page", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    console = Console()
    with _served() as url, _chromium() as browser:
        view = first_view(browser, url)
        console.print(view.table())
        low, high = min(view.milliseconds), max(view.milliseconds)
        console.print(
            f"complete {median(view.milliseconds):.0f} ms after the first byte of /, median of {_TIMES}"
            f" ({low:.0f} to {high:.0f})"
        )
        console.print(hover(browser, url).table())


if __name__ == "__main__":
    main()
