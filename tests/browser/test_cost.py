"""The view Cost: its numbers are those of /vram, and its verdict holds by them."""

import re
from urllib.parse import parse_qs, urlsplit

import httpx
from playwright.sync_api import Page, expect

from tests.support.browser import Faults, OpenPage

GIB = 2**30
ONE = "/#cost?model=demo:vit&batches=1,8,100&picture=sample:fish-boat.png"


def fact(page: Page, name: str) -> str:
    """A number of the size that is shown."""
    return page.locator(".cost dt", has_text=name).locator("+ dd").inner_text()


def vram(server: str, **query: object) -> list[dict[str, int]]:
    """Rows of /vram."""
    answer = httpx.get(f"{server}/vram", params={"model": "demo:vit", **query}, timeout=60).raise_for_status().json()  # type: ignore[dict-item]
    return answer.get("data") or [answer]


def verdict(page: Page) -> str:
    sentence = page.locator(".verdict")
    expect(sentence).not_to_be_empty()
    return sentence.inner_text()


def test_the_slider_shows_the_numbers_of_vram(open_page: OpenPage, server: str) -> None:
    page = open_page(ONE)
    verdict(page)
    for _ in range(3):
        page.get_by_role("slider", name="Resolution").press("ArrowRight")
    height = int(parse_qs(urlsplit(page.url).fragment)["resolution"][0])
    assert height > 96
    rows = vram(server, resolution=height, batch="1,8,100")
    one = rows[0]
    assert fact(page, "Grid") == f"{height // 16} × {height // 16}"
    assert fact(page, "Tokens") == f"{one['tokens']:,}"
    assert fact(page, "FLOPs of a picture") == f"{one['flops'] / 1e6:.3g} MFLOP"
    assert fact(page, "Largest batch in this server's budget") == f"{one['max_batch']:,}"
    for row, shown in zip(rows, page.locator(".split-row strong").all_inner_texts(), strict=True):
        assert shown == f"batch {row['batch']}: {row['total_bytes'] / 2**20:.3g} MiB"
    cells = page.locator("tr[aria-current] td").all_inner_texts()
    assert cells[:2] == [f"{height // 16} × {height // 16}", f"{one['tokens']:,}"]
    expect(page.locator("figcaption")).to_contain_text(f"in {height // 16} × {height // 16} tokens")


def test_one_more_than_the_largest_batch_does_not_fit_beside_the_language_model(
    open_page: OpenPage, server: str
) -> None:
    page = open_page(f"{ONE}&card=24&billions=7&bits=16&cache=2")
    room = 24 * GIB - 14_000_000_000 - 2 * GIB
    pattern = (
        r"Beside a 7 B model in 16 bits \(14\.0 GB\) and its KV cache \(2 GiB\) on 24 GiB, "
        r"batches of up to ([\d,]+) at 96 × 96 fit\."
    )
    found = re.fullmatch(pattern, verdict(page))
    assert found is not None
    largest = int(found[1].replace(",", ""))
    fits, over = vram(server, batch=f"{largest},{largest + 1}")
    assert fits["total_bytes"] <= room < over["total_bytes"]
    page.get_by_label("Language model beside it").select_option("70 B parameters")
    expect(page.locator(".verdict")).to_have_text(
        "A 70 B model in 16 bits (140.0 GB) and its KV cache (2 GiB) alone does not fit on 24 GiB."
    )
    page.get_by_label("Language model beside it").select_option("none")
    page.get_by_label("Card").select_option("this server's budget")
    expect(page.locator(".verdict")).to_contain_text(f"batches of up to {fits['max_batch']:,} at 96 × 96 fit.")


def test_the_largest_batch_never_takes_more_than_the_room(open_page: OpenPage) -> None:
    """Of a curve of two straight lines, and overhead that comes in steps."""
    page = open_page("/problems")
    script = """async ([rows, rooms]) => {
        const { largestBatch } = await import(new URL("web/api/forecast.js", document.baseURI));
        return rooms.map((room) => largestBatch(rows, room));
    }"""

    def total(batch: int) -> int:
        return 1000 + max(50 + 10 * batch, 20 * batch - 100) + min(300, 40 + batch)

    def row(batch: int) -> dict[str, int]:
        return {"batch": batch, "total_bytes": total(batch), "overhead_bytes": min(300, 40 + batch)}

    rooms = [0, 1100, 1101, 1290, 1400, 2500, 9000, 150_000, 10**9]
    found = page.evaluate(script, [[row(batch) for batch in (1, 2, 8, 32, 100_000)], rooms])
    assert found[0] == 0
    assert found[-1] == 100_000
    for room, batch in zip(rooms, found, strict=True):
        assert batch == 0 or total(batch) <= room
        best = max((each for each in range(1, 10_000) if total(each) <= room), default=0)
        assert batch >= min(best, 10_000) * 0.9 - 30


def test_the_link_restores_and_the_code_asks_the_same(open_page: OpenPage) -> None:
    page = open_page(f"{ONE}&resolution=240&card=48&billions=13&bits=4&cache=0.5")
    said = verdict(page)
    assert said.startswith("Beside a 13 B model in 4 bits (6.5 GB) and its KV cache (0.5 GiB) on 48 GiB, ")
    with page.expect_response("**/vram?*") as asked:
        again = page.context.new_page()
        again.goto(page.url)
        page.reload()
    assert verdict(again) == verdict(page) == said
    expect(page.get_by_label("Another batch")).to_have_value("100")
    page.get_by_role("button", name="Copy as code").click()
    code = page.get_by_role("dialog").locator("code").inner_text()
    url = re.search(r"'(http[^']+)'", code)
    assert url is not None
    assert httpx.get(url[1], timeout=60).json() == asked.value.json()


def test_a_refusal_is_a_sentence_and_the_next_try_works(open_page: OpenPage, faults: Faults) -> None:
    faults.expect("answer 503: GET")
    page = open_page("/problems")
    problem = '{"detail": "16 tables of memory wait already."}'
    page.context.route("**/vram?*", lambda route: route.fulfill(status=503, body=problem))
    page.goto(ONE)
    expect(page.get_by_role("alert")).to_have_text("16 tables of memory wait already.")
    page.context.unroute("**/vram?*")
    page.get_by_role("checkbox", name="32").check()
    verdict(page)
    expect(page.get_by_role("alert")).to_be_hidden()
