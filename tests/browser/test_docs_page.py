"""/docs in a browser: every operation has a form, and its request runs, is stopped, and is copied as code."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.support.browser import Faults, OpenPage, axe, fits, screenshot
from tests.support.paths import ROOT

PICTURE = ROOT / "docs" / "example.png"
COMMANDS = {
    "curl": ["bash", "-euc"],
    "Python": [sys.executable, "-c"],
    "JavaScript": ["node", "--input-type=module", "--eval"],
}


def try_out(page: Page, request: str) -> Locator:
    """An operation's section, its form opened: `try_out(page, "POST /embed")`."""
    section = page.get_by_role("region", name=request, exact=True)
    section.get_by_text("Try it").click()
    return section


def choose(section: Locator, name: str, value: str) -> None:
    section.get_by_role("combobox", name=name, exact=True).select_option(value)


def pick(section: Locator, *files: Path) -> None:
    section.locator("input[type=file]").set_input_files(files)


def run(section: Locator) -> None:
    section.get_by_role("button", name="Run").click()


def code(page: Page, section: Locator, language: str = "curl") -> str:
    """The request as code to copy."""
    section.get_by_role("button", name="Copy as code").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=language).click()
    text = dialog.locator("code").inner_text()
    dialog.get_by_role("button", name="Close").click()
    return text


def saved(page: Page, section: Locator) -> dict[str, Any]:
    """The whole body of the answer that is shown."""
    with page.expect_download() as download:
        section.get_by_role("button", name="Save the whole body").click()
    answer: dict[str, Any] = json.loads(download.value.path().read_text())
    return answer


def test_every_operation_has_a_form(open_page: OpenPage, server: str) -> None:
    page = open_page("/docs")
    paths = httpx.get(f"{server}/openapi.json").json()["paths"]
    requests = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    sections = page.locator("section.operation:has(form)")
    expect(sections).to_have_count(len(requests))
    assert set(sections.locator("h3").all_inner_texts()) == requests


def test_a_get_runs(open_page: OpenPage) -> None:
    section = try_out(open_page("/docs"), "GET /models")
    run(section)
    expect(section.get_by_role("status")).to_contain_text(re.compile(r"200 OK\s*\d+ ms\s*application/json\s*\d"))
    expect(section.get_by_role("group", name="Answer")).to_contain_text('"id": "demo:vit"')
    section.get_by_text("Headers", exact=True).click()
    expect(section.get_by_role("row", name="x-request-id")).to_be_visible()


def test_an_encoder_in_the_path_is_filled_in(open_page: OpenPage) -> None:
    section = try_out(open_page("/docs"), "GET /v1/models/{model}")
    run(section)
    expect(section.get_by_role("group", name="Answer")).to_contain_text('"id": "demo:vit"')


def test_a_form_s_fields_are_what_the_schema_says(open_page: OpenPage) -> None:
    page = open_page("/docs")
    section = try_out(page, "POST /embed")
    expect(section.get_by_role("combobox", name="output", exact=True)).to_have_value("tokens")
    truncate = section.get_by_role("checkbox", name="truncate")
    expect(truncate).to_be_checked()
    expect(truncate).to_have_accessible_description(re.compile("^Cut texts past the context length"))
    layer = section.get_by_role("spinbutton", name="layer")
    layer.fill("1")
    section.get_by_role("textbox", name="text", exact=True).fill("a red circle\n\na blue square\n")
    choose(section, "body", "image/*")
    expect(section.get_by_role("spinbutton", name="layer")).to_have_value("")  # in the query, which is another field
    choose(section, "body", "multipart/form-data")
    pick(section, PICTURE, PICTURE)
    assert re.findall(r"'(\w+)=", code(page, section)) == ["image", "image", "layer", "text", "text"], (
        "defaults are not sent"
    )
    layer.press("Enter")
    expect(section.get_by_role("status")).to_contain_text("200 OK")


def test_a_picture_runs_in_a_form(open_page: OpenPage) -> None:
    page = open_page("/docs")
    section = try_out(page, "POST /embed")
    pick(section, PICTURE)
    run(section)
    expect(section.get_by_role("status")).to_contain_text("200 OK")
    expect(section.get_by_role("group", name="Answer")).to_contain_text("… 116 more")  # of the 128 numbers of a token
    (entry,) = saved(page, section)["data"]
    assert [len(row) for row in entry["tokens"]["data"]] == [128] * 36


def test_a_picture_runs_as_the_body(open_page: OpenPage) -> None:
    page = open_page("/docs")
    section = try_out(page, "POST /embed")
    choose(section, "body", "image/*")
    choose(section, "output", "pooled")
    pick(section, PICTURE)
    with page.expect_request("**/embed?output=pooled") as sent:
        run(section)
    assert sent.value.headers["content-type"] == "image/png"
    expect(section.get_by_role("group", name="Answer")).to_contain_text('"pooled": {')


def test_safetensors_are_shown_by_their_tensors(open_page: OpenPage) -> None:
    section = try_out(open_page("/docs"), "POST /embed")
    choose(section, "output", "both")
    choose(section, "dtype", "float16")
    choose(section, "answer", "application/vnd.safetensors")
    pick(section, PICTURE)
    run(section)
    expect(section.get_by_role("row", name="tokens 1 \u00d7 36 \u00d7 128 F16")).to_be_visible()
    expect(section.get_by_role("row", name="pooled 1 \u00d7 64 F16")).to_be_visible()
    expect(section.get_by_role("row", name="model demo:vit")).to_be_visible()


def test_text_is_shown_as_text(open_page: OpenPage) -> None:
    section = try_out(open_page("/docs"), "GET /metrics")
    run(section)
    expect(section.get_by_role("group", name="Answer")).to_contain_text("# TYPE visiontower_images_total counter")


@pytest.mark.parametrize("body", ["multipart/form-data", "application/json", "image/*"])
def test_the_code_to_copy_is_the_request(
    open_page: OpenPage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    monkeypatch.chdir(tmp_path)
    picture = Path(shutil.copy(PICTURE, tmp_path / "it's 100%.png"))
    page = open_page("/docs")
    section = try_out(page, "POST /similarity")
    choose(section, "body", body)
    pick(section, picture)
    if body == "application/json":
        area = section.get_by_role("textbox", name="JSON")
        expect(area).to_have_value(re.compile(r'"@it\'s 100%\.png"'))
        area.fill(json.dumps({"images": ["@it's 100%.png"], "texts": ["50% red\n", '"\\n"'], "heatmap": True}))
    else:
        section.get_by_role("textbox", name="text", exact=True).fill('it\'s 50% red\n"\\n"')
        section.get_by_role("checkbox", name="heatmap").check()
    run(section)
    expect(section.get_by_role("status")).to_contain_text("200 OK")
    shutil.copy(PICTURE, tmp_path / "it_s 100_.png")  # signs that a command would read are not in the name
    shown = saved(page, section)
    for language, command in COMMANDS.items():
        if shutil.which(command[0]):
            program = [*command, code(page, section, language)]
            done = subprocess.run(program, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            assert {**json.loads(done.stdout), "timing_ms": None} == {**shown, "timing_ms": None}


def test_an_error_is_a_sentence(open_page: OpenPage, faults: Faults) -> None:
    faults.expect("^answer 422: POST .*/embed$")
    section = try_out(open_page("/docs"), "POST /embed")
    pick(section, PICTURE)
    section.get_by_role("spinbutton", name="layer").fill("99")
    run(section)
    expect(section.get_by_role("status")).to_contain_text("422")
    expect(section.get_by_role("status")).to_contain_text(
        "demo:vit has 5 layers: 0 to 4, or -5 to -1 from the end; not 99."
    )


def test_a_body_that_is_not_json_is_said_and_not_sent(open_page: OpenPage) -> None:
    section = try_out(open_page("/docs"), "POST /v1/embeddings")
    section.get_by_role("textbox", name="JSON").fill("{input: 1}")
    run(section)
    expect(section.get_by_role("status")).to_contain_text("The body is not JSON.")
    section.get_by_role("button", name="Copy as code").click()
    expect(section.get_by_role("status")).to_contain_text("The body is not JSON.")


def test_a_server_that_is_gone_is_said(open_page: OpenPage, faults: Faults) -> None:
    faults.expect("^console error: Failed to load resource: net::ERR_CONNECTION_REFUSED")
    page = open_page("/docs")
    section = try_out(page, "GET /ping")
    page.route("**/ping", lambda route: route.abort("connectionrefused"))
    run(section)
    expect(section.get_by_role("status")).to_contain_text("The server does not answer.")


def test_a_request_is_stopped(open_page: OpenPage) -> None:
    page = open_page("/docs")
    section = try_out(page, "GET /ping")
    held: list[Route] = []
    page.route("**/ping", lambda route: held.append(route))
    stop = section.get_by_role("button", name="Stop")
    expect(stop).to_be_disabled()
    with page.expect_event("requestfailed"):
        run(section)
        expect(section.get_by_role("status")).to_have_text("Running…")
        stop.press("Enter")
    expect(section.get_by_role("status")).to_have_text("Stopped.")
    expect(section.get_by_role("button", name="Run")).to_be_focused()
    page.unroute("**/ping")
    page.keyboard.press("Enter")
    expect(section.get_by_role("status")).to_contain_text("200 OK")


def test_words_narrow_the_operations(open_page: OpenPage) -> None:
    page = open_page("/docs")
    page.get_by_role("searchbox").fill("heatmap Template")
    expect(page.locator("section.operation").filter(visible=True)).to_have_count(1)
    expect(page.locator(".contents li").filter(visible=True)).to_have_text(["POST /similarity"])
    expect(page.get_by_role("status").filter(has_text="1 of")).to_be_visible()
    expect(page.get_by_role("heading", name="Protocol openai")).to_be_hidden()
    page.get_by_role("searchbox").fill("")
    expect(page.get_by_role("heading", name="Protocol openai")).to_be_visible()


def test_the_contents_lead_to_an_operation(open_page: OpenPage) -> None:
    page = open_page("/docs")
    page.locator("nav").get_by_role("link", name="POST /embed", exact=True).click()
    expect(page.get_by_role("heading", name="POST /embed", exact=True)).to_be_in_viewport()


def test_a_link_leads_to_its_operation(open_page: OpenPage) -> None:
    page = open_page("/docs#get/v1/models/{model}")
    expect(page.locator(".try")).not_to_have_count(0)
    expect(page.get_by_role("heading", name="GET /v1/models/{model}", exact=True)).to_be_in_viewport()


def test_the_contents_are_closed_on_a_phone_until_they_are_asked_for(open_page: OpenPage) -> None:
    page = open_page("/docs", width=320)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    link = page.locator(".contents").get_by_role("link", name="POST /classify")
    expect(link).to_be_hidden()
    page.get_by_text("Contents", exact=True).click()
    link.click()
    expect(link).to_be_hidden()
    expect(page.get_by_role("heading", name="POST /classify")).to_be_in_viewport()


def test_it_can_be_read_without_javascript(open_page: OpenPage) -> None:
    page = open_page("/docs", java_script_enabled=False)
    expect(page.get_by_role("heading", name="POST /embed", exact=True)).to_be_visible()
    expect(page.locator("button, input").filter(visible=True)).to_have_count(0)


@pytest.mark.parametrize(("theme", "width"), [("light", 1440), ("dark", 390)])
def test_a_form_and_its_answer_are_accessible_and_fit(open_page: OpenPage, theme: str, width: int) -> None:
    page = open_page("/docs", theme=theme, width=width)
    for body in ("application/json", "multipart/form-data"):
        section = try_out(page, "POST /embed" if body == "application/json" else "POST /similarity")
        choose(section, "body", body)
        pick(section, PICTURE)
        if body == "multipart/form-data":
            section.get_by_role("textbox", name="text", exact=True).fill("a red circle")
        run(section)
        expect(section.get_by_role("status")).to_contain_text("200 OK")
        section.get_by_text("Headers", exact=True).click()
    assert axe(page) == []
    assert fits(page)
    screenshot(page, "docs-run", full_page=False)
