"""The view Search: its order is that of the API's vectors, and a bad picture stops nobody."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, Route, expect
from safetensors.numpy import load

from tests.support.browser import SAMPLES, OpenPage, axe, fits, screenshot, settle
from tests.support.serving import noise

ROUNDING = 5e-3
"""Scores have three digits, and bfloat16 gives a picture other ones in another batch."""


def vectors(server: str, files: Sequence[Path] = (), texts: Sequence[str] = ()) -> NDArray[np.float32]:
    """As the API gives them, of length 1."""
    answer = httpx.post(
        f"{server}/embed",
        params={"model": "demo:vit", "output": "pooled", "normalize": True, "text": list(texts)},
        files=[("image", file.read_bytes()) for file in files] or None,
        headers={"accept": "application/vnd.safetensors"},
    )
    return load(answer.raise_for_status().content)["pooled" if files else "texts"]


def ranked(page: Page) -> dict[str, float]:
    """The gallery from first to last: file name -> number; NaN if it has none."""
    settle(page)
    return {
        card.locator(".name").get_attribute("title") or "": float(score or "nan")
        for card in page.locator(".card").all()
        for score in [card.locator(".score").text_content()]
    }


def ask(page: Page, text: str) -> None:
    page.get_by_label("Rank by a text").fill(text)
    page.get_by_role("button", name="Rank", exact=True).click()
    expect(page.locator("#status-text")).to_contain_text(f"Ranked by “{text}”")


@pytest.fixture
def gallery(open_page: OpenPage) -> Page:
    """All samples."""
    page = open_page("/#search")
    page.get_by_role("button", name="Add all samples").click()
    expect(page.locator(".standing .note")).to_contain_text("10 pictures")
    return page


def test_a_text_and_a_picture_rank_as_the_vectors_say(gallery: Page, server: str, open_page: OpenPage) -> None:
    asked: list[str] = []
    gallery.on("request", lambda request: asked.append(request.url) if "/embed?" in request.url else None)
    ask(gallery, "a tree")
    shown = ranked(gallery)
    files = [SAMPLES / name for name in shown]
    pictures = vectors(server, files)
    expected = pictures @ vectors(server, texts=["a tree"])[0]
    np.testing.assert_allclose(list(shown.values()), expected, atol=ROUNDING)
    assert next(iter(shown)) == "sun-tree.png"
    assert list(shown.values()) == sorted(shown.values(), reverse=True)

    gallery.get_by_role("button", name="Like this: mushroom").click()
    expect(gallery.locator("#status-text")).to_contain_text("Ranked by mushroom")
    like = ranked(gallery)
    by_name = dict(zip(shown, pictures @ pictures[list(shown).index("mushroom.png")], strict=True))
    np.testing.assert_allclose(list(like.values()), [by_name[name] for name in like], atol=ROUNDING)
    assert next(iter(like)) == "mushroom.png"
    again = open_page(gallery.url)
    expect(again.locator("#status-text")).to_contain_text("Ranked by mushroom")
    assert list(ranked(again)) == list(like)

    ask(gallery, "a tree")
    assert ranked(gallery) == shown
    assert len(asked) == 1  # of the first text: neither a picture nor a text that is known is sent again


def test_the_saved_vectors_are_those_of_the_api(gallery: Page, server: str) -> None:
    with gallery.expect_download() as download:
        gallery.get_by_role("button", name="Save vectors").click()
    saved = json.loads(download.value.path().read_text())
    assert (saved["model"], saved["normalized"]) == ("demo:vit", True)
    expected = vectors(server, [SAMPLES / each["name"] for each in saved["pictures"]])
    np.testing.assert_allclose([each["vector"] for each in saved["pictures"]], expected, atol=ROUNDING)


@pytest.fixture
def odd(tmp_path: Path) -> list[Path]:
    """A photograph cut short, words, and a picture that browsers do not draw."""
    tiff = io.BytesIO()
    Image.open(SAMPLES / "sun-tree.png").convert("RGB").save(tiff, "TIFF")
    contents = {
        "cut.jpg": (SAMPLES / "cat.jpg").read_bytes()[:3000],
        "words.png": b"no picture",
        "a name as long as scanners give them 2026-11-03T10_22_33_0001.tiff": tiff.getvalue(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in contents]


def test_bad_pictures_are_named_and_the_others_rank(open_page: OpenPage, odd: list[Path]) -> None:
    page = open_page("/#search", theme="dark", width=390)
    expect(page.locator(".card")).to_have_count(1)  # the first sample, which comes where no picture is
    page.locator("input[type=file]").set_input_files(odd)
    expect(page.locator(".card")).to_have_count(4)
    ask(page, "a tree")
    shown = ranked(page)
    assert list(shown) == [odd[2].name, "circle-house.png", "cut.jpg", "words.png"]
    assert np.isnan(list(shown.values())).tolist() == [False, False, True, True]
    bad = page.locator(".card.bad")
    expect(bad.nth(0)).to_contain_text("truncated")
    expect(bad.nth(1)).to_contain_text("This is text")
    assert axe(page) == []
    assert fits(page)
    screenshot(page, "search-odd")


def test_a_stopped_gallery_ranks_what_it_has_and_can_go_on(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page("/#search")
    ask(page, "a tree")
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes(noise(number))
    held: list[Route] = []

    def hold_the_second(route: Route) -> None:
        held.append(route)
        if len(held) == 1:
            route.continue_()

    page.route("**/embed?**", hold_the_second)
    page.locator("input[type=file]").set_input_files(sorted(tmp_path.iterdir()))
    expect(page.locator("#status-text")).to_contain_text("8 of 9")
    page.get_by_role("button", name="Stop").click()
    rest = page.get_by_role("button", name="Embed the other 1")
    expect(rest).to_be_visible()
    assert np.isnan(list(ranked(page).values())).tolist() == [False] * 9 + [True]
    page.unroute("**/embed?**")
    rest.click()
    expect(rest).to_be_hidden()
    assert not np.isnan(list(ranked(page).values())).any()


def test_a_folder_gives_its_pictures_however_deep(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page("/#search")
    expect(page.locator(".card")).to_have_count(1)
    folder = tmp_path / "folder"
    deep = folder / "of" / "folders"
    deep.mkdir(parents=True)
    for number, place in enumerate([folder / "10.png", folder / "9.png", deep / "1.png", folder / ".hidden.png"]):
        place.write_bytes(noise(number))
    (folder / "notes.txt").write_text("words")
    device = page.context.new_cdp_session(page)
    for event in ("dragEnter", "dragOver", "drop"):
        device.send(
            "Input.dispatchDragEvent",
            {"type": event, "x": 99, "y": 99, "data": {"items": [], "files": [str(folder)], "dragOperationsMask": 1}},
        )
    expect(page.locator(".card")).to_have_count(4)
    assert list(ranked(page)) == ["circle-house.png", "9.png", "10.png", "1.png"]
    assert unquote(page.url).count("picture=") == 4
