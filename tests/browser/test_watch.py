"""That a page cannot be faulty unnoticed: each kind of fault, planted in a page under our policy."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, Route

from tests.support.browser import Faults, OpenPage, axe, drop, heard, paste
from tests.support.serving import noise

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src *; worker-src 'self'; img-src data:"
START = "<!doctype html><html lang=en><title>planted</title><link rel=icon href=data:,><main><h1>planted</h1>"
ARRIVALS = """() => {
    window.files = new Promise((resolve) => {
        const told = ({ name, type, size }) => `${name} ${type} ${size}`;
        const arrived = (transfer) => resolve([...transfer.files].map(told));
        addEventListener("drop", (event) => arrived(event.dataTransfer));
        addEventListener("paste", (event) => arrived(event.clipboardData));
    });
}"""
SCRIPT = '<script type="module" src="/planted.js"></script>'


@pytest.fixture
def plant(open_page: OpenPage) -> Page:
    """A page that stands at the server's address."""
    return open_page("/openapi.json")


def planted(page: Page, *, body: str = SCRIPT, script: str = "", worker: str = "") -> None:
    """Load a page of this body and this script, which may start a worker, and wait for its `console.log("end")`."""
    files = {
        "planted": (START + body, "text/html"),
        "planted.js": (script, "text/javascript"),
        "worker.js": (worker, "text/javascript"),
    }

    def answer(route: Route) -> None:
        text, media = files[route.request.url.rpartition("/")[2]]
        route.fulfill(body=text, content_type=media, headers={"content-security-policy": POLICY})

    page.route("**/*planted*", answer)
    page.route("**/worker.js", answer)
    with page.expect_console_message(lambda message: message.text == "end"):
        page.goto("/planted")


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("console.warn('odd')", r"^console warning: odd \(http://127\.0\.0\.1:\d+/planted\.js\)$"),
        ("console.error('bad')", "^console error: bad"),
        ("setTimeout(() => { throw new Error('late') })", "^uncaught: late$"),
        ("Promise.reject(new Error('lost'))", "^uncaught: lost$"),
        ("await fetch('/models/none')", r"^answer 404: GET http://127\.0\.0\.1:\d+/models/none$"),
    ],
)
def test_a_fault_is_seen(plant: Page, faults: Faults, script: str, fault: str) -> None:
    faults.expect(fault)
    planted(plant, script=f"{script}\nsetTimeout(() => console.log('end'), 1)")
    assert len(faults.seen) == 1


def test_a_request_to_another_host_is_seen_and_does_not_leave(plant: Page, faults: Faults) -> None:
    faults.expect("^another host: POST http://elsewhere.example/$")
    faults.expect("^console error: .*net::ERR_NAME_NOT_RESOLVED")
    script = "await fetch('http://elsewhere.example/', { method: 'POST' }).catch(() => console.log('end'))"
    planted(plant, script=script)
    assert len(faults.seen) == 2


def test_a_breach_of_the_policy_is_seen(plant: Page, faults: Faults) -> None:
    faults.expect("^CSP: script-src-elem blocks inline$")
    faults.expect("^console error: Executing inline script violates")
    planted(plant, body=f"<script>1</script>{SCRIPT}", script="console.log('end')")
    assert len(faults.seen) == 2


@pytest.mark.parametrize(
    ("worker", "fault"),
    [
        ("console.error('bad'); postMessage(0)", "^console error: bad"),
        ("throw new Error('lost')", "^uncaught: .*lost"),
        ("await fetch('/models/none'); postMessage(0)", "^answer 404: GET .*/models/none$"),
    ],
)
def test_a_fault_in_a_worker_is_seen(plant: Page, faults: Faults, worker: str, fault: str) -> None:
    faults.expect(fault)
    end = "() => setTimeout(() => console.log('end'), 1)"
    script = f"const worker = new Worker('/worker.js', {{ type: 'module' }}); worker.onmessage = worker.onerror = {end}"
    planted(plant, script=script, worker=worker)
    heard(plant)
    assert len(faults.seen) == 1


def test_all_but_the_expected_faults_are_unexpected_and_so_is_one_that_does_not_come() -> None:
    faults = Faults()
    faults.expect("answer 422")
    faults.expect("answer 500")
    faults.seen = ["answer 422: POST http://host/embed", "console error: bad"]
    assert faults.unexpected() == ["console error: bad", "expected in vain: answer 500"]


def test_axe_finds_what_is_serious_and_is_no_fault_itself(plant: Page) -> None:
    planted(plant, body=f"<button></button>{SCRIPT}", script="console.log('end')")
    assert [finding.partition(":")[0] for finding in axe(plant)] == ["button-name (critical)"]


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_files_arrive_as_from_a_hand(plant: Page, tmp_path: Path, way: str) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.txt"
    first.write_bytes(noise(1))
    second.write_text("words")
    planted(plant, script="console.log('end')")
    plant.evaluate(ARRIVALS)
    if way == "drop":
        drop(plant, "main", first, second)
    else:
        paste(plant, first, second)
    assert plant.evaluate("window.files") == [f"a.png image/png {first.stat().st_size}", "b.txt text/plain 5"]
