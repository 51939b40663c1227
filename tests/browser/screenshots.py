"""The pictures of docs/page.md: each view of the page in both themes, with the demo encoders.

python -m tests.browser.screenshots
"""

from PIL import Image
from playwright.sync_api import expect

from tests.support.browser import Faults, OpenPage, chromium
from tests.support.paths import ROOT
from tests.support.process import served

FOLDER = ROOT / "docs" / "page"
WIDTH, HEIGHT = 1280, 960
SCALE = 0.75
"""Of the pictures to the page."""
DRAWINGS = "picture=sample:circle-house.png&picture=sample:sun-tree.png"
VIEWS = {
    "tokens": "#tokens?panel=demo:vit;resolution=192&panel=demo:resnet;resolution=192&picture=sample:circle-house.png",
    "texts": "#texts?picture=sample:circle-house.png",
    "match": f"#match?{DRAWINGS}",
    "search": f"#search?text=a+tree&{DRAWINGS}&picture=sample:fish-boat.png&picture=sample:star-triangle.png",
    "cost": "#cost?picture=sample:circle-house.png",
    "live": "#live",
    "docs": "docs",
}


def main() -> None:
    """Write docs/page/VIEW-THEME.png."""
    FOLDER.mkdir(exist_ok=True)
    with served() as server, chromium() as browser:
        opener = OpenPage(browser, server, Faults())
        for name, path in VIEWS.items():
            for theme in ("light", "dark"):
                page = opener(f"/{path}", theme=theme, width=WIDTH, height=HEIGHT, device_scale_factor=1)
                page.wait_for_load_state("networkidle")
                if name == "live":
                    page.get_by_role("button", name="Make some traffic").click()
                    expect(page.get_by_role("status")).to_contain_text("of 100")
                if name != "docs":
                    expect(page.locator("#stop")).to_be_hidden()
                target = FOLDER / f"{name}-{theme}.png"
                page.screenshot(path=target)
                picture = Image.open(target).convert("RGB")
                small = picture.resize((round(WIDTH * SCALE), round(HEIGHT * SCALE)), Image.Resampling.LANCZOS)
                small.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
                print(f"{target.relative_to(ROOT)}: {target.stat().st_size // 1000} kB")
        opener.close()


if __name__ == "__main__":
    main()
