"""What goes wrong around the page: answers that do not come or are no answers, links in haste, a focus that is lost."""

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.support.browser import SAMPLES, TILES, Faults, OpenPage, drop, shown

TWO = "picture=sample:cat.jpg&picture=sample:coffee.jpg"


def without_answers(open_page: OpenPage) -> tuple[Page, str]:
    """A page of the server to set routes on, and the address of the page."""
    page = open_page("/problems")
    return page, page.url.replace("/problems", "/")


def test_the_focus_stays_where_the_user_is(open_page: OpenPage) -> None:
    page = open_page(f"/#tokens?panel=demo:vit&panel=demo:resnet&{TWO}")
    shown(page)
    layer = page.get_by_role("slider", name="Layer").first
    layer.focus()
    for left in ("4 of 0–4", "3 of 0–4"):
        page.keyboard.press("ArrowLeft")
        expect(page.locator(".encoder .value").first).to_have_text(left)
        shown(page)
        expect(layer).to_be_focused()
    page.get_by_role("combobox", name="Encoder").first.focus()
    page.keyboard.press("ArrowDown")
    shown(page)
    expect(page.get_by_role("combobox", name="Encoder").first).to_be_focused()
    page.get_by_role("button", name="Compare").press("Enter")
    shown(page)
    page.get_by_role("button", name="Remove this panel").last.press("Enter")
    shown(page)
    expect(page.get_by_role("button", name="Remove this panel").last).to_be_focused()
    page.get_by_role("checkbox", name="Show cat.jpg").press("Space")
    expect(page.locator(f"{TILES}.chosen")).to_have_count(1)
    expect(page.get_by_role("checkbox", name="Show cat.jpg")).to_be_focused()


def test_of_links_followed_in_haste_the_last_is_shown(open_page: OpenPage) -> None:
    page = open_page("/#tokens?panel=demo:vit")
    shown(page)
    held: list[Route] = []
    page.route("**/cat.jpg", lambda route: held.append(route))
    with page.expect_request("**/cat.jpg"):
        page.evaluate("location.hash = 'texts?text=a+cat&picture=sample:cat.jpg'")
    page.evaluate("location.hash = 'search?text=a+tree'")
    expect(page.get_by_role("link", name="Search")).to_have_attribute("aria-current", "page")
    with page.expect_response("**/cat.jpg"):
        held[0].continue_()
    expect(page.get_by_role("searchbox")).to_have_value("a tree")
    expect(page.get_by_role("link", name="Search")).to_have_attribute("aria-current", "page")
    assert page.title() == "Search · visiontower"


def test_a_sample_asked_for_twice_comes_once(open_page: OpenPage) -> None:
    page = open_page("/#tokens?panel=demo:vit")
    shown(page)
    page.get_by_text("Samples", exact=True).click()
    page.get_by_role("button", name="coffee").dblclick()
    expect(page.locator(TILES, has_text="coffee")).to_have_count(1)
    shown(page)
    expect(page.locator(TILES)).to_have_count(2)


def test_one_broken_picture_is_named_in_its_place_and_hides_no_other(
    open_page: OpenPage, faults: Faults, tmp_path: Path
) -> None:
    faults.expect("answer 422: POST")
    page = open_page("/#tokens?panel=demo:vit")
    shown(page)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((SAMPLES / "cat.jpg").read_bytes()[:9000])
    empty = tmp_path / "empty.png"
    empty.touch()
    drop(page, "main", broken, SAMPLES / "coffee.jpg", empty)
    expect(page.locator("figcaption .name")).to_contain_text(["broken.jpg: The JPEG image", "coffee.jpg: 384 × 256"])
    expect(page.get_by_role("alert")).to_have_text("empty.png is empty.")
    expect(page.locator(".stage").filter(visible=True)).to_have_count(1)


def test_files_of_one_name_are_told_apart(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page("/#tokens?panel=demo:vit&picture=sample:cat.jpg")
    shown(page)
    own = tmp_path / "cat.jpg"
    own.write_bytes((SAMPLES / "coffee.jpg").read_bytes())
    drop(page, "main", own)
    expect(page.get_by_role("checkbox", name="Show cat-2.jpg")).to_be_checked()


def test_a_request_that_ends_the_connection_is_not_sent_for_ever(open_page: OpenPage, faults: Faults) -> None:
    faults.expect("console error: Failed to load resource: net::ERR_CONNECTION_RESET")
    page, address = without_answers(open_page)
    sent: list[Route] = []

    def end(route: Route) -> None:
        sent.append(route)
        route.abort("connectionreset")

    page.route("**/embed?*", end)
    page.goto(f"{address}#tokens?panel=demo:vit")
    expect(page.get_by_role("alert")).to_contain_text("The server is there, but the connection ended")
    assert len(sent) == 2
    page.unroute("**/embed?*")
    page.get_by_role("button", name="Try again").click()
    shown(page)
    expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("embed?*", "<h1>Sign in</h1>", "the answer is no safetensors file, or cut short."),
        ("embed?*", "\x02\0\0\0\0\0\0\0{}"[:9], "the answer is no safetensors file, or cut short."),
        ("models", "<h1>Sign in</h1>", "The answer is not JSON: something between this page and the server wrote it."),
    ],
)
def test_an_answer_that_is_none_is_said(open_page: OpenPage, path: str, body: str, sentence: str) -> None:
    page, address = without_answers(open_page)
    page.route(f"**/{path}", lambda route: route.fulfill(body=body))
    page.goto(f"{address}#tokens?panel=demo:vit")
    expect(page.get_by_role("alert")).to_contain_text(sentence)
    expect(page.locator(".stage").filter(visible=True)).to_have_count(0)


def test_tokens_that_are_cut_short_are_not_shown(open_page: OpenPage) -> None:
    page, address = without_answers(open_page)

    def cut(route: Route) -> None:
        route.fulfill(body=route.fetch().body()[:-100])

    page.route("**/embed?*", cut)
    page.goto(f"{address}#tokens?panel=demo:vit")
    expect(page.get_by_role("alert")).to_contain_text("the answer is cut short.")


def test_a_long_id_fits_on_a_phone(open_page: OpenPage) -> None:
    page, address = without_answers(open_page)
    page.set_viewport_size({"width": 390, "height": 800})
    long = "hf:/models/" + "a-long-folder-" * 12

    def renamed(route: Route) -> None:
        route.fulfill(body=route.fetch().text().replace('"demo:vit"', f'"{long}"'))

    page.route("**/models", renamed)
    page.route(
        "**/*?*model=hf*", lambda route: route.continue_(url=re.sub("hf%3A[^&]*", "demo:vit", route.request.url))
    )
    page.goto(address)
    shown(page)
    for view in ("match", "search", "cost", "live", "tokens"):
        page.evaluate("(view) => { location.hash = view }", f"{view}?{TWO}")
        expect(page.locator("nav [aria-current]")).to_have_attribute("data-view", view)
        expect(page.locator("select option", has_text=long).first).to_be_attached()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_transparent_picture_lies_on_white_as_for_the_encoder(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page("/#tokens?panel=demo:vit&colours=none", theme="dark")
    shown_picture = page.locator(".stage .picture")
    expect(shown_picture).to_be_visible()
    clear = tmp_path / "clear.png"
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(clear)
    drop(page, "main", clear)
    expect(page.locator("figcaption .name")).to_contain_text("clear.png")
    pixel = shown_picture.evaluate("(c) => [...c.getContext('2d').getImageData(9, 9, 1, 1).data]")
    assert pixel == [255, 255, 255, 255]
