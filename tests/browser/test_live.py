"""The view Live: what it shows is what /metrics counted."""

import re

import httpx
from playwright.sync_api import Locator, Page, expect
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.browser import SAMPLES, Faults, OpenPage

PICTURE = SAMPLES / "fish-boat.png"


def embed(server: str) -> None:
    """A picture, by demo:vit."""
    files = {"image": PICTURE.read_bytes()}
    httpx.post(f"{server}/embed", params={"model": "demo:vit"}, files=files, timeout=60).raise_for_status()


def latest(page: Page, panel: str, line: str) -> Locator:
    """The words of a line's latest value."""
    region = page.get_by_role("region", name=panel, exact=True)
    return region.locator("dt", has_text=re.compile(rf"^{line}$")).locator("+ dd")


def pictures(page: Page) -> Locator:
    return latest(page, "Pictures and requests a second", "demo:vit")


def test_three_embeds_are_three_pictures(open_page: OpenPage, server: str) -> None:
    page = open_page("/#live")
    expect(pictures(page)).to_have_text("0; 0 pictures in 2 min")
    canvas = page.locator(".plot canvas").first.element_handle()
    for _ in range(3):
        embed(server)
    expect(pictures(page)).to_contain_text("3 pictures in 2 min")
    expect(latest(page, "Pictures in a batch", "demo:vit")).to_have_text(re.compile(r"mean 1, largest 1"))
    expect(latest(page, "Seconds in a stage, mean", "forward")).to_have_text(re.compile(r"^[\d.]+ (ms|s)$"))
    assert canvas.evaluate("(canvas) => canvas.isConnected")  # drawn again, not made again


def test_traffic_is_counted_and_shown(open_page: OpenPage) -> None:
    page = open_page("/#live?model=demo:resnet&requests=12&picture=sample:fish-boat.png")
    expect(pictures(page)).to_have_text("0; 0 pictures in 2 min")
    page.get_by_role("button", name="Make some traffic").click()
    expect(page.locator("#status-text")).to_have_text("12 requests were answered, 0 refused.")
    counted = latest(page, "Pictures and requests a second", "demo:resnet")
    expect(counted).to_contain_text("12 pictures in 2 min")
    page.get_by_role("button", name="Copy as code").click()
    expect(page.get_by_role("dialog").locator("code")).to_contain_text(re.compile(r"/metrics'[\s\S]*/embed\?"))


def test_paused_it_asks_no_more(open_page: OpenPage) -> None:
    page = open_page("/#live")
    expect(pictures(page)).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Go on")).to_be_focused()
    with page.expect_request("**/metrics"):
        page.get_by_role("button", name="Go on").click()


def test_a_server_that_is_gone_is_said_and_waited_for(open_page: OpenPage, faults: Faults) -> None:
    faults.expect("console error: Failed to load resource: net::ERR_INTERNET_DISCONNECTED")
    page = open_page("/#live")
    expect(pictures(page)).to_be_visible()
    page.context.set_offline(True)
    gone = page.get_by_text("The server does not answer. It is asked again every second.")
    expect(gone).to_be_visible()
    page.context.set_offline(False)
    expect(gone).to_be_hidden()


PARSED = """async (text) => {
    const { parseMetrics } = await import(new URL("web/api/metrics.js", document.baseURI));
    return parseMetrics(text).map(({ name, labels, value }) => [name, labels, String(value)]);
}"""
BETWEEN = """async ([before, after]) => {
    const { Interval, Metrics, parseMetrics } = await import(new URL("web/api/metrics.js", document.baseURI));
    const interval = new Interval(new Metrics(parseMetrics(before), 0), new Metrics(parseMetrics(after), 2000));
    return [
        interval.growth("seen_total") / interval.seconds,
        interval.mean("size", { model: "a" }),
        interval.largest("size", { model: "a" }),
        interval.mean("size", { model: "b" }),
    ];
}"""


def test_the_text_of_prometheus_client_is_read_as_its_own_parser_reads_it(open_page: OpenPage) -> None:
    page = open_page("/problems")
    registry = CollectorRegistry()
    strange = Gauge("strange", "Help with } and \\ and\na line.", ["of"], registry=registry)
    for label, value in (('"quoted", } 5', 1.5), ("back\\slash\\n", float("nan")), ("line\nbreak é", float("-inf"))):
        strange.labels(label).set(value)
    Counter("seen", "Things.", registry=registry).inc(2**60)
    Histogram("size", "Sizes.", ["model"], registry=registry).labels("a").observe(1e-7)
    text = generate_latest(registry).decode()
    expected = [
        [sample.name, sample.labels, sample.value]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    read = [[name, labels, float(value)] for name, labels, value in page.evaluate(PARSED, text)]
    assert repr(read) == repr(expected)  # NaN is not equal to itself


def test_a_server_that_was_started_again_has_no_negative_rate(open_page: OpenPage) -> None:
    page = open_page("/problems")

    def text(seen: int, sizes: list[int]) -> str:
        registry = CollectorRegistry()
        Counter("seen", "Things.", registry=registry).inc(seen)
        size = Histogram("size", "Sizes.", ["model"], buckets=(1, 2, 4, 8), registry=registry)
        for each in sizes:
            size.labels("a").observe(each)
        size.labels("b")
        return generate_latest(registry).decode()

    assert page.evaluate(BETWEEN, [text(10, [8, 8]), text(16, [8, 8, 1, 4])]) == [3, 2.5, 4, None]
    assert page.evaluate(BETWEEN, [text(10, [8, 8]), text(6, [1, 4, 4])]) == [3, 3, 4, None]
