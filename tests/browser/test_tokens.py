"""The view Tokens: its colours, cosines, layers and sizes are those of the API's numbers."""

import re
from pathlib import Path

import httpx
import numpy as np
from playwright.sync_api import Locator, Page, expect

from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize
from tests.support.browser import SAMPLES, OpenPage, drop, screenshot, settle
from tests.support.seen import seen_box
from tests.support.tokens import component_colours, cosines, tokens_of

ONE = "/#tokens?panel=demo:vit"
"""One panel, so that there is one map of each picture."""


READ = """(canvas) => {
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    return [...copy.getImageData(0, 0, canvas.width, canvas.height).data];
}"""


def stages(page: Page) -> Locator:
    """The maps that show tokens: a colour for each patch."""
    return page.locator(".stage:has(.colours:not([hidden]))")


def colours(page: Page, map: int = 0) -> np.ndarray:
    """RGB [rows * cols, 3] as they are on the canvas."""
    pixels = stages(page).nth(map).locator(".colours").evaluate(READ)
    return np.array(pixels).reshape(-1, 4)[:, :3]


def point(page: Page, row: float, col: float, *, map: int = 0) -> None:
    """Move the pointer to a place of the map, in shares of its sides."""
    stages(page).nth(map).scroll_into_view_if_needed()
    box = stages(page).nth(map).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + col * box["width"], box["y"] + row * box["height"])


def legend(page: Page, map: int = 0) -> str:
    return page.locator(".legend").nth(map).inner_text()


def heat(page: Page, values: np.ndarray) -> np.ndarray:
    """These values in the page's heat colours, RGB, from their least to their greatest."""
    script = """async (values) => {
        const { heatColours } = await import(new URL("web/numbers/colours.js", document.baseURI));
        return [...heatColours(values, [Math.min(...values), Math.max(...values)])];
    }"""
    return np.array(page.evaluate(script, [float(value) for value in values])).reshape(-1, 4)[:, :3]


def test_a_dropped_picture_shows_its_tokens_in_the_colours_of_a_pca(open_page: OpenPage, server: str) -> None:
    page = open_page(ONE)
    expect(stages(page)).to_have_count(1)
    picture = SAMPLES / "fish-boat.png"
    drop(page, "main", picture)
    expect(page.locator("figcaption .name")).to_contain_text("fish-boat.png: 288 × 288")
    expect(stages(page)).to_have_count(1)
    tokens, grid = tokens_of(server, picture)
    expect(page.locator(".about")).to_have_text(
        f"{grid[0]} × {grid[1]} = {len(tokens)} tokens and 1 prefix token, each {tokens.shape[1]} numbers (bfloat16)"
    )
    difference = np.abs(colours(page).astype(int) - component_colours(tokens))
    assert difference.max() <= 1
    screenshot(page, "tokens")


def test_all_pictures_can_share_one_set_of_colours(open_page: OpenPage, server: str) -> None:
    page = open_page(f"{ONE}&joint=&picture=sample:fish-boat.png&picture=sample:sun-tree.png")
    expect(stages(page)).to_have_count(2)
    tokens = [tokens_of(server, SAMPLES / name)[0] for name in ("fish-boat.png", "sun-tree.png")]
    together = component_colours(np.concatenate(tokens))
    shown = np.concatenate([colours(page, 0), colours(page, 1)])
    assert np.abs(shown.astype(int) - together).max() <= 1
    page.get_by_label("one set of colours").uncheck()
    expect(page).not_to_have_url(re.compile("joint"))
    alone = component_colours(tokens[0])
    assert np.abs(colours(page, 0).astype(int) - alone).max() <= 1


def test_the_pointer_shows_the_cosine_of_every_patch_with_the_one_under_it(open_page: OpenPage, server: str) -> None:
    page = open_page(f"{ONE}&picture=sample:fish-boat.png&picture=sample:sun-tree.png")
    expect(stages(page)).to_have_count(2)
    point(page, 0.25, 0.58)  # row 1, column 3 of 6
    tokens, _ = tokens_of(server, SAMPLES / "fish-boat.png")
    expected = cosines(tokens, 1 * 6 + 3)
    expect(page.locator(".legend").first).to_contain_text("cosine")
    assert np.abs(colours(page).astype(int) - heat(page, expected)).max() <= 3
    assert float(legend(page).split()[1]) == float(f"{expected.min():.3g}")
    # the other picture answers with its own patches, its best one framed
    other, _ = tokens_of(server, SAMPLES / "sun-tree.png")
    both = cosines(np.concatenate([tokens[9:10], other]), 0)[1:]
    assert np.abs(colours(page, 1).astype(int) - heat(page, both)).max() <= 3
    frame = stages(page).nth(1).locator(".match")
    place = frame.evaluate("(frame) => [frame.style.top, frame.style.left]")
    best = int(both.argmax())
    assert [float(side.removesuffix("%")) for side in place] == [
        float(f"{100 * (best // 6) / 6:.4f}"),
        float(f"{100 * (best % 6) / 6:.4f}"),
    ]
    page.mouse.move(5, 5)
    assert np.abs(colours(page).astype(int) - component_colours(tokens)).max() <= 1


def test_panels_follow_one_pointer(open_page: OpenPage) -> None:
    page = open_page("/#tokens?panel=demo:vit&panel=demo:resnet")
    expect(stages(page)).to_have_count(2)
    point(page, 0.9, 0.1)
    for map in range(2):
        frame = stages(page).nth(map).locator(".cursor")
        expect(frame).to_be_visible()
        assert frame.evaluate("(frame) => parseFloat(frame.style.top)") > 60
    page.get_by_role("button", name="Compare").click()
    expect(stages(page)).to_have_count(3)
    page.get_by_role("button", name="Remove this panel").first.click()
    expect(stages(page)).to_have_count(2)


def test_the_keyboard_goes_from_patch_to_patch_and_says_where_it_is(open_page: OpenPage) -> None:
    page = open_page(ONE)
    stage = stages(page)
    expect(stage).to_have_count(1)
    stage.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    told = page.locator(".token-map [role=status]")
    expect(told).to_contain_text("row 5, column 5; most alike row")
    page.keyboard.press("Enter")
    expect(page.locator(".numbers h3")).to_have_text("demo:vit, circle-house.png: token at row 5, column 5")


def test_the_numbers_of_a_token_are_the_api_s(open_page: OpenPage, server: str) -> None:
    page = open_page(ONE)
    expect(stages(page)).to_have_count(1)
    box = stages(page).bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 5, box["y"] + 5)
    tokens, _ = tokens_of(server, SAMPLES / "circle-house.png")
    expect(page.locator(".numbers .note")).to_contain_text("shape [128], bfloat16; row 1 of [37, 128]")
    shown = [float(number) for number in page.locator(".numbers pre").inner_text().split(", ")]
    np.testing.assert_allclose(shown, tokens[0], rtol=1e-4)
    page.get_by_role("button", name="prefix token 1").click()
    expect(page.locator(".numbers h3")).to_contain_text("prefix token 1")
    with_prefix, _ = tokens_of(server, SAMPLES / "circle-house.png", prefix=True)
    shown = [float(number) for number in page.locator(".numbers pre").inner_text().split(", ")]
    np.testing.assert_allclose(shown, with_prefix[0], rtol=1e-4)


def test_layers_and_sizes_are_those_asked_for(open_page: OpenPage, server: str) -> None:
    page = open_page(ONE)
    expect(stages(page)).to_have_count(1)
    picture = SAMPLES / "circle-house.png"
    page.get_by_role("slider", name="Layer").press("Home")
    expect(page).to_have_url(re.compile("layer%3D0"))
    size = page.get_by_label("Resolution")
    size.press("ArrowRight")
    expect(page.locator(".about")).to_contain_text("7 × 7 = 49 tokens")
    plan = httpx.get(f"{server}/vram", params={"model": "demo:vit", "resolution": 112}).json()
    assert plan["grid"] == [7, 7]
    expect(page).to_have_url(re.compile("resolution%3D112"))
    expect(stages(page)).to_have_count(1)
    tokens, _ = tokens_of(server, picture, layer=0, resolution=112)
    assert np.abs(colours(page).astype(int) - component_colours(tokens)).max() <= 1


def test_the_layers_play_through_to_the_final_tokens(open_page: OpenPage) -> None:
    page = open_page("/#tokens?panel=demo:vit;layer=3")
    expect(stages(page)).to_have_count(1)
    page.get_by_role("button", name="Play through the layers").click()
    expect(page.get_by_role("button", name="Play through the layers")).to_have_text("⏸")
    expect(page.get_by_role("button", name="Play through the layers")).to_have_text("▶")
    expect(page.locator(".encoder .value").first).to_have_text("final tokens")


def test_a_link_restores_the_view(open_page: OpenPage) -> None:
    page = open_page("/")
    expect(stages(page)).to_have_count(2)
    page.get_by_label("Colours", exact=True).select_option("lengths")
    page.get_by_role("slider", name="Layer").first.press("Home")
    expect(page.locator(".legend").first).to_contain_text("length")
    expect(page).to_have_url(re.compile("layer%3D0.*colours=lengths"))
    settle(page)
    seen = colours(page, 0)
    again = open_page(page.url)
    expect(again.locator(".legend").first).to_contain_text("length")
    settle(again)
    assert (colours(again, 0) == seen).all()
    assert again.url == page.url


def test_the_seen_part_of_a_picture_is_the_encoder_s(open_page: OpenPage) -> None:
    """Page and server have one rule: hold them together over ways to resize, sizes and shares."""
    page = open_page()
    random = np.random.default_rng(0)
    cases = []
    for resize in ("shortest", "edge", "longest", "squash", "pad"):
        for _ in range(12):
            height, width, rows, cols = (int(side) for side in random.integers(40, 900, 4))
            square = bool(random.integers(2))
            share = float(random.choice([1.0, 0.9, 0.875]))
            cases.append((resize, share, (height, width), (rows, rows if square else cols)))
    script = """async (cases) => {
        const { seenBox } = await import(new URL("web/numbers/geometry.js", document.baseURI));
        return cases.map(([resize, share, picture, target]) => {
            const box = seenBox({ height: picture[0], width: picture[1] }, { resize, crop_pct: share },
                { height: target[0], width: target[1] });
            return [box.left, box.top, box.width, box.height];
        });
    }"""
    for case, box in zip(cases, page.evaluate(script, cases), strict=True):
        resize, share, picture, target = case
        how = Preprocessing((0, 0, 0), (1, 1, 1), resize=resize, crop_pct=share)  # type: ignore[arg-type]  # one of them
        expected = seen_box(how, ImageSize(*picture), ImageSize(*target))
        # a pixel of the target, by which the server rounds
        slack = 1.5 * max(expected[2] / target[1], expected[3] / target[0])
        np.testing.assert_allclose(box, expected, rtol=0.01, atol=slack, err_msg=str(case))


def test_an_own_picture_comes_back_with_the_link(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page(ONE)
    expect(stages(page)).to_have_count(1)
    drop(page, "main", SAMPLES / "mushroom.png")
    expect(page).to_have_url(re.compile(r"picture=own.*mushroom\.png"))
    page.reload()
    expect(page.locator("figcaption .name")).to_contain_text("mushroom.png")
    elsewhere = open_page(page.url)
    expect(elsewhere.locator(".missing")).to_have_text(
        "This link shows mushroom.png, which is not in this browser. Add that file."
    )
    drop(elsewhere, "main", SAMPLES / "mushroom.png")
    expect(elsewhere.locator("figcaption .name")).to_contain_text("mushroom.png")
    expect(elsewhere.locator(".missing")).to_have_count(0)
