"""The rules of the page's files: no markup in strings, nothing inline, rooms whose imports run one way, few bytes."""

import re
from pathlib import Path

import pytest

from service.http.web.pages import STATIC

MODULES = [path for path in sorted(STATIC.rglob("*.js")) if "vendor" not in path.parts]
FLOORS = (("numbers",), ("api",), ("parts",), ("pictures",), ("docs", "views"), ("",))
"""Folders from the ground up; last the modules that the pages load."""
MOST_BYTES = 300_000
"""Of the first view, without the samples."""


def room(module: Path) -> str:
    """The folder under static/."""
    return module.relative_to(STATIC).parts[0] if module.parent != STATIC else ""


def imports(module: Path) -> set[Path]:
    """Modules that this one runs; those that only its types name are left out."""
    text = re.sub(r"/\*.*?\*/", "", module.read_text(), flags=re.S)
    named = re.findall(r'^(?:import|export) .*?from "(\.[^"]+)";$|new URL\("(\./[^"]+)"', text, flags=re.S | re.M)
    return {(module.parent / name).resolve() for groups in named for name in groups if name}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(STATIC)))
def test_a_module_makes_no_markup_of_strings(module: Path) -> None:
    text = module.read_text()
    for forbidden in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        '"style"',
    ):
        assert forbidden not in text, forbidden


@pytest.mark.parametrize("page", sorted(STATIC.glob("*.html")), ids=lambda path: path.name)
def test_a_page_has_nothing_inline_and_asks_no_other_host(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", text)
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(STATIC)))
def test_a_module_imports_its_own_room_and_those_below(module: Path) -> None:
    floor = next(floor for floor, rooms in enumerate(FLOORS) if room(module) in rooms)
    below = {each for rooms in FLOORS[:floor] for each in rooms}
    for other in imports(module):
        assert other.exists(), other
        assert room(other) in {room(module), *below}, other
        if module.parent.parent.name == "views":
            assert room(other) != "views" or other.parent in (module.parent, STATIC / "views"), other


def test_no_module_imports_itself_through_others() -> None:
    def visit(module: Path, above: tuple[Path, ...]) -> None:
        assert module not in above, [path.name for path in (*above, module)]
        for other in imports(module):
            visit(other, (*above, module))

    for entry in STATIC.glob("*.js"):
        visit(entry, ())


def test_no_class_of_the_styles_and_no_export_is_left_over() -> None:
    scripts = {module: re.sub(r"/\*.*?\*/", "", module.read_text(), flags=re.S) for module in MODULES}
    pages = [(STATIC.parent / name).read_text() for name in ("docs.html", "docs.py", "static/index.html")]
    written = "\n".join([*scripts.values(), *pages])
    for sheet in STATIC.glob("*.css"):
        selectors = re.findall(r"([^{}]+)\{", re.sub(r"/\*.*?\*/", "", sheet.read_text(), flags=re.S))
        for name in set(re.findall(r"\.([a-z][\w-]*)", " ".join(selectors))):
            assert re.search(rf"""["'`\s.]{name}["'`\s]""", written), f"{sheet.name}: .{name}"
    for module, text in scripts.items():
        others = "\n".join(other for path, other in scripts.items() if path != module)
        for name in re.findall(r"^export (?:async )?(?:function|class|const) (\w+)", text, flags=re.M):
            assert re.search(rf"\b{name}\b", others), f"{module.name}: {name}"


def test_what_the_first_view_loads_is_small() -> None:
    """The page, the view that is opened first, and all that they import."""
    page = STATIC / "index.html"
    loaded = {page, *(STATIC / name for name in re.findall(r'"web/([^"]+)"', page.read_text()))}
    waiting = [STATIC / "page.js", STATIC / "views/tokens/view.js"]
    while waiting:
        module = waiting.pop()
        loaded.add(module)
        waiting += imports(module) - loaded
    assert not any(path.suffix == ".js" and "vendor" in path.parts for path in loaded)
    assert sum(path.stat().st_size for path in loaded) < MOST_BYTES


def test_what_is_not_ours_has_its_licence() -> None:
    names = {path.name.split(".")[0] for path in (STATIC / "vendor").iterdir()}
    assert {path.name.split(".")[0] for path in (STATIC / "vendor").glob("*.LICENSE")} == names
