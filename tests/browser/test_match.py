"""The view Match: its pairs, cosines and score are NumPy's from the API's tokens."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Page, expect

from tests.support.browser import SAMPLES, Faults, OpenPage, drop
from tests.support.tokens import tokens_of

LEFT, RIGHT = "circle-house.png", "star-triangle.png"
SIDE = 24
TWO = f"/#match?encoder=demo:vit;resolution={16 * SIDE}&picture=sample:{LEFT}&picture=sample:{RIGHT}"


def between(server: str, **options: Any) -> NDArray[np.float64]:
    """The cosine of each patch of the left picture with each of the right one."""
    left, right = (tokens_of(server, SAMPLES / name, **options)[0].astype(np.float64) for name in (LEFT, RIGHT))
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    return np.asarray(left @ right.T / lengths)


def mutual(cosines: NDArray[np.float64]) -> list[tuple[int, int, float]]:
    """The most alike first."""
    forth, back = cosines.argmax(1), cosines.argmax(0)
    pairs = [(left, int(right), float(cosines[left, right])) for left, right in enumerate(forth) if back[right] == left]
    return sorted(pairs, key=lambda pair: -pair[2])


def name(patch: int) -> str:
    return f"row {patch // SIDE + 1}, column {patch % SIDE + 1}"


def matched(page: Page) -> None:
    expect(page.locator(".match-panel")).to_be_visible()


def test_the_pairs_and_the_score_are_numpy_s(open_page: OpenPage, server: str) -> None:
    page = open_page(TWO)
    matched(page)
    cosines = between(server, resolution=16 * SIDE)
    pairs = mutual(cosines)
    assert len(pairs) > 3
    score = (cosines.max(0).mean() + cosines.max(1).mean()) / 2
    expect(page.locator(".about strong")).to_have_text(f"{score:.3f}")
    page.get_by_text("The pairs as a table").click()
    rows = page.locator(".match-panel tbody tr")
    expect(rows).to_have_count(len(pairs))
    cells = [row.split("\t") for row in rows.all_inner_texts()]
    assert [(left, right) for _, left, right, _ in cells] == [(name(left), name(right)) for left, right, _ in pairs]
    np.testing.assert_allclose([float(cosine) for *_, cosine in cells], [pair[2] for pair in pairs], atol=0.00051)
    # fewer lines, fewer rows; the link keeps their number
    page.get_by_role("slider", name="Lines").fill("2")
    expect(rows).to_have_count(2)
    expect(page.get_by_text(f"2 of {len(pairs)} pairs")).to_be_visible()
    expect(page).to_have_url(re.compile("lines=2"))


def test_the_patch_pointed_at_is_answered_both_ways(open_page: OpenPage, server: str) -> None:
    page = open_page(TWO)
    matched(page)
    cosines = between(server, resolution=16 * SIDE)
    stages = page.locator(".match-pair .stage")
    middle = SIDE // 2 * SIDE + SIDE // 2
    for own, rows in ((0, cosines), (1, cosines.T)):
        stages.nth(own).focus()
        page.keyboard.press("ArrowRight")  # to the middle, where the keys begin
        best = int(rows[middle].argmax())
        is_mutual = rows[:, best].argmax() == middle
        sentence = (
            f"{name(middle)}: best match {name(best)}, cosine {rows[middle, best]:.3f}, "
            f"{'mutual' if is_mutual else 'not mutual'}"
        )
        expect(page.locator(".match-pair .legend").nth(own)).to_have_text(sentence)
        expect(page.locator(".match-pair [role=status]").nth(own)).to_have_text(sentence)
        other = stages.nth(1 - own)
        shares = other.locator(".match").evaluate("({ style }) => [style.top, style.left].map(parseFloat)")
        np.testing.assert_allclose(shares, 100 / SIDE * np.array(divmod(best, SIDE)), atol=0.001)
        expect(other.locator(".colours")).to_be_visible()
        ends = page.locator(".match-pair .legend").nth(1 - own).locator("span").all_inner_texts()[1:]
        np.testing.assert_allclose([float(end) for end in ends], [rows[middle].min(), rows[middle].max()], rtol=0.006)
        page.keyboard.press("Escape")
        expect(other.locator(".colours")).to_be_hidden()


def test_the_worker_s_matches_do_not_depend_on_its_blocks(open_page: OpenPage) -> None:
    page = open_page("/#match")
    script = """async ([rows, others, width, step]) => {
        const module = new URL("web/numbers/matching.js", document.baseURI);
        const { addBlock, bestMatches, mutualPairs, noMatches } = await import(module);
        const [left, right] = [Float32Array.from(rows), Float32Array.from(others)];
        const all = { forth: noMatches(left.length / width), back: noMatches(right.length / width) };
        for (let at = 0; at < left.length / width; at += step) {
            addBlock(all, bestMatches(left.slice(at * width, (at + step) * width), right, width), at);
        }
        return [[...all.forth.index], [...all.back.index], mutualPairs(all.forth, all.back).map(({ left }) => left)];
    }"""
    random = np.random.default_rng(0)
    left, right = random.standard_normal((23, 7)), random.standard_normal((18, 7))
    right[5] = right[2]  # of equals the first
    cosines = left @ right.T
    for step in (1, 5, 23):
        arguments = [left.ravel().tolist(), right.ravel().tolist(), 7, step]
        forth, back, pairs = page.evaluate(script, arguments)
        assert forth == cosines.argmax(1).tolist()
        assert back == cosines.argmax(0).tolist()
        assert sorted(pairs) == sorted(pair[0] for pair in mutual(cosines))


def test_one_picture_is_not_enough_and_two_can_be_swapped(open_page: OpenPage) -> None:
    page = open_page(f"/#match?encoder=demo:resnet;layer=2&lines=1&picture=sample:{LEFT}")
    expect(page.get_by_text("Tick a second one above")).to_be_visible()
    expect(page.get_by_role("button", name="Swap the pictures")).to_be_disabled()
    page.get_by_role("button", name="Take the sample").click()
    matched(page)
    names = page.locator(".match-pair figcaption .text")
    expect(names).to_have_text([re.compile(f"^{LEFT}"), re.compile("^sun-tree.png")])
    page.get_by_role("button", name="Swap the pictures").click()
    expect(names).to_have_text([re.compile("^sun-tree.png"), re.compile(f"^{LEFT}")])
    said = page.locator(".about").inner_text()
    again = open_page(page.url)
    matched(again)
    assert again.locator(".about").inner_text() == said
    assert again.url == page.url
    expect(again.get_by_label("Encoder")).to_have_value("demo:resnet")
    expect(again.get_by_role("slider", name="Layer")).to_have_value("2")
    again.get_by_role("checkbox", name=f"Show {LEFT}").uncheck()
    expect(again.get_by_text("Tick a second one above")).to_be_visible()
    expect(again.locator(".match-panel")).to_be_hidden()


def test_a_broken_picture_is_a_sentence(open_page: OpenPage, faults: Faults, tmp_path: Path) -> None:
    faults.expect("answer 4..: POST .*/embed")
    broken = tmp_path / "broken.png"
    broken.write_bytes((SAMPLES / LEFT).read_bytes()[:200])
    page = open_page(TWO)
    matched(page)
    drop(page, "main", broken, SAMPLES / LEFT)
    expect(page.get_by_role("alert")).not_to_be_empty()
    expect(page.locator(".match-panel")).to_be_hidden()
    page.get_by_role("checkbox", name="Show broken.png").uncheck()
    page.get_by_role("checkbox", name=f"Show {RIGHT}").check()
    matched(page)
    expect(page.get_by_role("alert")).to_be_hidden()
