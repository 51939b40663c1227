"""The view Texts: its scores and heat maps are those of /similarity, and they follow what is written."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.support.browser import SAMPLES, Faults, OpenPage, drop, settle
from tests.support.paths import ROOT

PICTURE = SAMPLES / "circle-house.png"
TEXTS = ["a red circle", "a house", "a blue star"]
"""Suggested for that picture."""


def similarity(server: str, *pictures: Path, texts: list[str] = TEXTS, **options: Any) -> dict[str, Any]:
    fields: list[tuple[str, Any]] = [("image", (path.name, path.read_bytes())) for path in pictures]
    fields += [("text", (None, text)) for text in texts]
    params = {"model": "demo:vit", "heatmap": True, **options}
    answer = httpx.post(f"{server}/similarity", params=params, files=fields, timeout=60).raise_for_status()
    return dict(answer.json())


def scored(page: Page, texts: list[str], picture: int = 0) -> Locator:
    """The rows of a picture's scores, when they are there."""
    table = page.locator("table.scores").nth(picture)
    expect(table.locator("tbody .text")).to_have_text(texts)
    return table.locator("tbody tr")


def numbers(rows: Locator, column: int) -> list[float]:
    cells = rows.locator(f"td:nth-of-type({column})").all_inner_texts()
    return [float(cell.removesuffix(" %").removeprefix("< ")) for cell in cells]


def bars(rows: Locator) -> list[tuple[float, float]]:
    """Where each begins and how long it is, in per cent."""
    script = "(bars) => bars.map((bar) => [parseFloat(bar.style.left), parseFloat(bar.style.width)])"
    return [(start, length) for start, length in rows.locator(".score-bar > span").evaluate_all(script)]


def area(page: Page) -> Locator:
    return page.get_by_label("Texts, one a line")


def test_the_bars_are_the_scores_of_the_api(open_page: OpenPage, server: str) -> None:
    page = open_page("/#texts?picture=sample:circle-house.png&picture=sample:sun-tree.png&text=a+red+circle&text=a+sun")
    texts = ["a red circle", "a sun"]
    answer = similarity(server, PICTURE, SAMPLES / "sun-tree.png", texts=texts)
    for picture in range(2):
        rows = scored(page, texts, picture)
        expected = np.array(answer["probabilities"][picture])
        np.testing.assert_allclose(numbers(rows, 1), 100 * expected, atol=0.051)
        np.testing.assert_allclose(numbers(rows, 2), answer["cosine"][picture], atol=0.00051)
        np.testing.assert_allclose(numbers(rows, 3), answer["logits"][picture], atol=0.0051)
        np.testing.assert_allclose(bars(rows), [(0, 100 * share) for share in expected], atol=0.001)
    expect(page.locator(".about")).to_have_text(re.compile(rf"^softmax: .* = {answer['logit_scale']:.5g} × cosine\.$"))
    page.get_by_label("Bars show").select_option("cosine")
    cosines = np.array(answer["cosine"])
    low, high = min(cosines.min(), 0), max(cosines.max(), 0)
    starts = (np.minimum(cosines[1], 0) - low) / (high - low)
    lengths = np.abs(cosines[1]) / (high - low)
    np.testing.assert_allclose(bars(scored(page, texts, 1)), 100 * np.stack([starts, lengths], 1), atol=0.001)


def test_a_heat_map_points_at_what_the_text_names(open_page: OpenPage, server: str) -> None:
    page = open_page("/#texts")
    scored(page, TEXTS)
    heat = np.array(similarity(server, PICTURE)["heatmap"][0])  # [texts, rows, cols]
    best = np.unravel_index(heat[0].argmax(), heat[0].shape)
    frame = page.locator(".text-maps .match").first
    shares = frame.evaluate("({ style }) => [style.top, style.left].map(parseFloat)")
    np.testing.assert_allclose(shares, 100 * np.array(best) / 6, atol=0.001)
    expect(page.locator(".text-maps .said")).to_have_text([f"highest cosine {each.max():.3f}" for each in heat])
    # the frame is on the circle
    red, green, blue = np.moveaxis(np.asarray(Image.open(PICTURE).convert("RGB"), dtype=int), 2, 0)
    is_circle = (red > 180) & (green < 90) & (blue < 90)
    row, col = (int(index) * is_circle.shape[axis] // 6 for axis, index in enumerate(best))
    patch = is_circle[row : row + is_circle.shape[0] // 6, col : col + is_circle.shape[1] // 6]
    assert is_circle.mean() < 0.2
    assert patch.mean() > 0.5
    # its colour is the last of the ramp, which is the brightest
    pixels = page.locator(".text-maps .colours").first.evaluate(
        "(canvas) => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    )
    brightness = np.array(pixels).reshape(6, 6, 4)[..., :3].sum(2)
    assert np.unravel_index(brightness.argmax(), (6, 6)) == best


def test_all_maps_follow_the_pointer_and_the_keys(open_page: OpenPage, server: str) -> None:
    page = open_page("/#texts")
    scored(page, TEXTS)
    heat = np.array(similarity(server, PICTURE)["heatmap"][0])
    maps = page.locator(".text-maps .stage")
    box = maps.nth(1).bounding_box()
    assert box is not None
    maps.nth(1).hover(position={"x": box["width"] * 0.75, "y": box["height"] * 0.6})  # row 3, column 4 of 6
    said = page.locator(".text-maps .said")
    expect(said).to_have_text([f"cosine here {each[3, 4]:.3f}" for each in heat])
    expect(page.locator(".text-maps .cursor:visible")).to_have_count(3)
    page.mouse.move(2, 2)
    expect(said.first).to_have_text(re.compile("^highest"))
    maps.first.focus()  # the one stop for all
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(said).to_have_text([f"cosine here {each[2, 3]:.3f}" for each in heat])
    order = sorted(range(3), key=lambda text: -heat[text][2, 3])
    told = ", ".join(f"{TEXTS[text]} {heat[text][2, 3]:.3f}" for text in order)
    expect(page.locator(".text-maps [role=status]").first).to_have_text(f"row 3, column 4: {told}")


def test_what_is_typed_is_scored_and_stays(open_page: OpenPage) -> None:
    page = open_page("/#texts")
    scored(page, TEXTS)
    area(page).fill("a sun\n\n  a tree ")
    scored(page, ["a sun", "a tree"])  # a while after
    page.get_by_text("Samples").click()
    page.get_by_role("button", name="fish and boat").click()
    expect(page.get_by_role("heading", name="fish-boat.png")).to_be_visible()
    scored(page, ["a sun", "a tree"])
    expect(area(page)).to_have_value("a sun\n\n  a tree ")
    area(page).fill("a fish")
    area(page).press("Control+Enter")
    scored(page, ["a fish"])
    page.get_by_role("button", name="Suggested texts").click()
    scored(page, ["a fish", "a boat", "a red heart"])
    drop(page, "main", ROOT / "docs" / "heatmaps.png")  # no sample: texts of what the encoder knows
    scored(page, ["a red circle", "a house", "a blue star", "a sun", "a tree", "a snowman"])
    area(page).fill(" ")
    expect(page.locator(".about")).to_have_text("Write a text.")


def test_a_link_restores_texts_templates_and_encoder(open_page: OpenPage) -> None:
    page = open_page("/#texts")
    scored(page, TEXTS)
    area(page).fill("a boat & a fish\na house")
    page.get_by_label("Encoder").select_option("demo:resnet")
    page.get_by_label("Template", exact=True).select_option("own")
    page.get_by_label("Own templates").fill("a drawing of {}\n{}")
    page.get_by_label("Own templates").press("Control+Enter")
    settle(page)
    page.get_by_label("Bars show").select_option("logits")
    page.get_by_label("Heat maps").select_option("apart")
    expect(page).to_have_url(re.compile("template=a.drawing.of.*bars=logits.*maps=apart"))
    cells = scored(page, ["a boat & a fish", "a house"]).all_inner_texts()
    again = open_page(page.url)
    rows = scored(again, ["a boat & a fish", "a house"])
    assert rows.all_inner_texts() == cells
    assert again.url == page.url
    expect(again.get_by_label("Encoder")).to_have_value("demo:resnet")
    expect(again.get_by_label("Own templates")).to_have_value("a drawing of {}\n{}")
    expect(again.locator(".text-maps .said")).to_have_count(2)
    again.get_by_label("Heat maps").select_option("none")
    expect(again.locator(".text-maps")).to_have_count(0)


def test_the_code_to_copy_gives_the_scores_shown(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page("/#texts?templates=openai&text=it's+a+%22red%22+circle&text=a+house")
    rows = scored(page, ['it\'s a "red" circle', "a house"])
    cosines = numbers(rows, 2)
    page.get_by_role("button", name="Copy as code").click()
    page.get_by_role("button", name="Python").click()
    code = page.locator("dialog pre").inner_text()
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    answer = json.loads(ran.stdout)
    np.testing.assert_allclose(answer["cosine"][0], cosines, atol=0.00051)
    assert answer["grid"] == [6, 6]


def test_cut_texts_are_named(open_page: OpenPage) -> None:
    page = open_page("/#texts")
    scored(page, TEXTS)
    long = "a very long text about a red circle that stands beside a house " * 2
    area(page).fill(f"a house\n{long}")
    about = page.locator(".about")
    expect(about).to_contain_text(f"Cut after the 16 tokens that demo:vit reads: “{long.strip()}”.")


def test_a_wrong_template_is_a_sentence_and_can_be_mended(open_page: OpenPage, faults: Faults) -> None:
    faults.expect("answer 422: POST .*/similarity")
    page = open_page("/#texts?template=a+drawing")
    expect(page.get_by_role("alert")).to_contain_text("'a drawing'")
    expect(page.get_by_role("alert")).to_contain_text("has no {} for the text")
    expect(page.locator("table.scores")).to_have_count(0)
    page.get_by_label("Own templates").fill("a drawing of {}")
    scored(page, TEXTS)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_picture_that_fails_stands_beside_those_that_do_not(open_page: OpenPage, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(PICTURE.read_bytes()[:200])
    page = open_page("/#texts")
    scored(page, TEXTS)
    drop(page, "main", broken, SAMPLES / "sun-tree.png")
    expect(page.locator(".result .problem")).to_have_count(1)
    expect(page.locator(".result").first.get_by_role("heading")).to_have_text("broken.png")
    expect(page.locator("table.scores")).to_have_count(1)
