"""What all views share: pictures in, advice, errors, code to copy, the saved picture, recovery."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Route, expect

from tests.support.browser import SAMPLES, TILES, Faults, OpenPage, axe, drop, paste, shown


def test_pictures_come_by_picking_pasting_and_from_samples(open_page: OpenPage) -> None:
    page = open_page()
    shown(page)
    page.locator("#pictures input[type=file]").set_input_files([SAMPLES / "cat.jpg", SAMPLES / "coffee.jpg"])
    expect(page.locator(f"{TILES}.chosen")).to_have_count(2)
    paste(page, SAMPLES / "mushroom.png")
    expect(page.locator(f"{TILES}.chosen")).to_contain_text(["mushroom.png"])
    page.get_by_text("Samples", exact=True).click()
    page.get_by_role("button", name="sun").first.click()
    expect(page.locator(TILES)).to_have_count(5)
    page.get_by_role("checkbox", name="Show cat.jpg").check()
    expect(page.locator(f"{TILES}.chosen")).to_have_count(2)
    page.get_by_role("button", name="Remove cat.jpg").click()
    expect(page.locator(TILES)).to_have_count(4)
    expect(page.locator(f"{TILES}.chosen")).to_have_count(1)


def test_the_camera_gives_a_picture(open_page: OpenPage) -> None:
    page = open_page(permissions=["camera"])
    shown(page)
    page.get_by_role("button", name="Camera").click()
    expect(page.locator("video")).to_have_js_property("videoWidth", 640)
    page.get_by_role("button", name="Take the picture").click()
    expect(page.locator(f"{TILES}.chosen")).to_contain_text("camera-")
    expect(page.locator("dialog")).to_have_count(0)


def test_a_file_that_is_no_picture_is_a_sentence_and_the_page_goes_on(
    open_page: OpenPage, faults: Faults, tmp_path: Path
) -> None:
    faults.expect("answer 4..: POST")
    page = open_page()
    shown(page)
    broken = tmp_path / "broken.png"
    broken.write_bytes((SAMPLES / "cat.jpg").read_bytes()[:2000])
    drop(page, "main", broken)
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text(re.compile(r"[A-Z].*\."))
    assert axe(page) == []
    page.get_by_role("button", name="Show circle-house.png alone").click()
    expect(problem).to_be_hidden()
    shown(page)
    empty = tmp_path / "empty.png"
    empty.touch()
    drop(page, "main", empty)
    expect(problem).to_have_text("empty.png is empty.")


def test_a_large_picture_is_shrunk_only_when_the_user_says_so(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page("/#tokens?panel=demo:vit")
    shown(page)
    large = tmp_path / "large.jpg"
    Image.effect_noise((4000, 3000), 40).convert("RGB").save(large)
    drop(page, "main", large)
    expect(page.locator("figcaption .name")).to_have_text("large.jpg: 4000 × 3000")
    page.get_by_role("button", name="12 MP: shrink to 1 MP").click()
    expect(page.locator("figcaption .name")).to_contain_text("large-1155x866.jpg")
    expect(page.locator(".shrink")).to_have_count(0)


def test_a_demo_encoder_says_that_it_knows_drawings_only(open_page: OpenPage, server: str) -> None:
    page = open_page()
    shown(page)
    expect(page.locator(".advice")).to_be_hidden()
    page = open_page("/#tokens?panel=demo:vit&picture=sample:cat.jpg")
    small = httpx.get(f"{server}/models").json()["recommended"][0]
    advice = page.locator(".advice")
    expect(advice).to_contain_text("demo:vit was trained on drawings only")
    expect(advice.locator("code")).to_have_text(f"visiontower serve --model {small['id']}")
    expect(advice).to_contain_text(f"downloads {small['download_bytes'] / 1e6:.0f} MB")


def test_code_to_copy_gives_what_the_page_got(open_page: OpenPage, server: str, tmp_path: Path) -> None:
    page = open_page("/#tokens?panel=demo:vit&picture=sample:fish-boat.png")
    with page.expect_response("**/embed?*") as answered:
        shown(page)
    expected = answered.value.body()
    page.get_by_role("button", name="Copy as code").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.locator("code")).to_contain_text("curl -s")
    assert axe(page) == []
    (tmp_path / "elsewhere").mkdir()
    code = dialog.locator("code").inner_text()
    subprocess.run(["sh", "-ec", code], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "answer.safetensors").read_bytes() == expected
    dialog.get_by_role("button", name="Python").click()
    program = [sys.executable, "-c", dialog.locator("code").inner_text()]
    done = subprocess.run(program, cwd=tmp_path / "elsewhere", check=True, capture_output=True, text=True)
    assert done.stdout == "tokens torch.Size([1, 37, 128]) torch.bfloat16\n"
    if shutil.which("node"):
        dialog.get_by_role("button", name="JavaScript").click()
        script = tmp_path / "code.mjs"
        script.write_text(dialog.locator("code").inner_text())
        done = subprocess.run(["node", script], cwd=tmp_path, check=True, capture_output=True, text=True)
        assert f"Uint8Array({len(expected)})" in done.stdout
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def test_the_view_is_saved_as_a_picture(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page("/#tokens?panel=demo:vit&opacity=1")
    shown(page)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as PNG").click()
    path = tmp_path / saved.value.suggested_filename
    saved.value.save_as(path)
    assert path.name == "visiontower-tokens.png"
    picture = Image.open(path).convert("RGB")
    view = page.locator("section.view").bounding_box()
    stage = page.locator(".stage").bounding_box()
    assert view is not None
    assert stage is not None
    assert picture.width == round(2 * view["width"])
    # the first patch's colour stands where it stands on the page
    first = page.locator(".colours").evaluate("(c) => [...c.getContext('2d').getImageData(0, 0, 1, 1).data]")
    x = 2 * (stage["x"] - view["x"] + stage["width"] / 12)
    y = 2 * (stage["y"] - view["y"] + stage["height"] / 12)
    pixel = picture.getpixel((int(x), int(y)))
    assert isinstance(pixel, tuple)
    assert max(abs(a - b) for a, b in zip(pixel, first, strict=False)) <= 4


def test_a_server_that_is_gone_is_said_and_waited_for(open_page: OpenPage, faults: Faults) -> None:
    faults.expect("console error: Failed to load resource: net::ERR_INTERNET_DISCONNECTED")
    page = open_page("/#tokens?panel=demo:vit")
    shown(page)
    page.context.set_offline(True)
    page.get_by_role("slider", name="Layer").press("Home")
    problem = page.get_by_role("alert")
    expect(problem).to_have_text("The server does not answer. It is asked again every 2 seconds.")
    page.context.set_offline(False)
    expect(problem).to_be_hidden()
    shown(page)
    expect(page.locator(".encoder .value").first).to_have_text("0 of 0–4")


def test_long_work_can_be_stopped(open_page: OpenPage) -> None:
    page = open_page("/#tokens?panel=demo:vit")
    shown(page)
    held: list[Route] = []
    page.route("**/embed?*", lambda route: held.append(route))
    page.get_by_role("slider", name="Layer").press("Home")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status-text")).to_have_text("Stopped.")
    page.unroute("**/embed?*")
    page.get_by_role("link", name="Live").click()  # where there is nothing to try again
    expect(page.locator("#status-text")).to_have_text("")
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    page.get_by_role("link", name="Tokens").click()
    shown(page)
    page.get_by_role("slider", name="Layer").press("ArrowRight")
    shown(page)
    expect(page.locator("#status-text")).to_have_text("")


def test_the_tab_key_goes_through_the_page_in_its_order(open_page: OpenPage) -> None:
    page = open_page("/#tokens?panel=demo:vit")
    shown(page)
    names = []
    for _ in range(60):
        page.keyboard.press("Tab")
        name = page.evaluate("(document.activeElement.ariaLabel ?? document.activeElement.textContent).trim()")
        if page.evaluate("document.activeElement === document.body"):
            break
        names.append(name)
    order = ["Skip to the view", "visiontower", "Tokens", "API", "Add pictures", "Copy as code", "Colours", "Encoder"]
    assert [name for name in names if name in order] == order
    assert names.index("Encoder") < names.index("Layer") < names.index("Resolution")


@pytest.mark.parametrize("view", ["tokens", "texts", "match", "search", "cost", "live"])
def test_a_view_says_what_it_shows_and_what_its_words_mean_on_a_phone_too(open_page: OpenPage, view: str) -> None:
    page = open_page(f"/#{view}", width=320)
    expect(page.locator(".intro p")).to_contain_text("?")
    page.get_by_text("What the words mean").click()
    expect(page.locator(".words dd").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 320


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_theme_can_be_switched_and_is_remembered(open_page: OpenPage, theme: str) -> None:
    page = open_page(theme=theme)
    shown(page)
    other = {"light": "dark", "dark": "light"}[theme]
    page.get_by_role("button", name=f"Switch to {other} colours").click()
    page.reload()
    shown(page)
    assert page.evaluate("document.documentElement.dataset.theme") == other
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == other
    assert axe(page) == []
