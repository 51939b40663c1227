"""The rules of the rooms: who may import whom, indirectly too, and that nothing below calls back above."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

HEAVY = {"torch", "torchvision", "open_clip", "timm", "transformers", "openvino"}
HTTP = {"fastapi", "starlette", "uvicorn", "python_multipart"}

SERVICE = (
    ("service.hosts", "service.sizes", "service.caller", "service.labels"),
    ("service.errors",),
    ("service.access",),
    ("service.settings", "service.spec_json", "service.telemetry", "service.line"),
    ("service.memory",),
    ("service.scheduling",),
    ("service.engine",),
    ("service.cluster",),
    ("service.bulk", "service.http", "service.scaling"),
    ("service.run",),
    ("service.doctor",),
    ("service.cli",),
)
"""From the ground up: a room imports its own floor's room alone, and the floors below."""
ENCODERS = (
    ("encoders.contract",),
    ("encoders.images", "encoders.memory"),
    ("encoders.runtime",),
    ("encoders.adapters",),
)
WITHOUT_TORCH = (
    "encoders.contract", "encoders.memory", "encoders.images.decode", "encoders.images.preprocess",
    "encoders.images.pixels", "encoders.images.price", "encoders.images.process", "encoders.images.worker",
    "encoders.adapters.registry", "encoders.adapters.catalog", "encoders.adapters.fake",
    "service",
)  # fmt: skip


@cache
def modules() -> dict[str, Path]:
    """All modules of ours by name."""
    found = {}
    for room in ("encoders", "service", "training", "benchmarks"):
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imported(module: str, *, lazily: bool) -> frozenset[str]:
    """Modules that this one names in imports. Without `lazily`, only those that are imported with it."""
    found: set[str] = set()

    def visit(node: ast.AST, is_lazy: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                visit(child, True)
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if is_lazy and not lazily:
                visit(child, is_lazy)
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.module, f"{module}: imports here are absolute"
                assert child.level == 0, f"{module}: imports here are absolute"
                found.update(
                    name if (name := f"{child.module}.{alias.name}") in modules() else child.module
                    for alias in child.names
                )
            visit(child, is_lazy)

    visit(ast.parse(modules()[module].read_text()), False)
    return frozenset(found)


def packages(module: str) -> Iterator[str]:
    """The packages that Python imports before it."""
    parts = module.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))


@cache
def reached(module: str) -> frozenset[str]:
    """All that importing this module imports, indirectly too; of foreign packages only the top name."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in modules():
            waiting += [*imported(name, lazily=False), *packages(name)]
    return frozenset(name if name in modules() else name.partition(".")[0] for name in seen - {module})


def within(room: str) -> list[str]:
    found = sorted(name for name in modules() if name == room or name.startswith(f"{room}."))
    assert found, f"there is no {room}"
    return found


def floor(name: str, floors: tuple[tuple[str, ...], ...]) -> tuple[int, str] | None:
    """The floor and the room of a module; None if it is in none of them."""
    for number, rooms in enumerate(floors):
        for room in rooms:
            if name == room or name.startswith(f"{room}."):
                return number, room
    return None


@pytest.mark.parametrize(("base", "floors"), [("service", SERVICE), ("encoders", ENCODERS)])
def test_every_module_has_a_room_and_imports_go_down(base: str, floors: tuple[tuple[str, ...], ...]) -> None:
    """Late imports too: what is imported when it is called is called back."""
    wrong = []
    for module in within(base):
        here = floor(module, floors)
        assert here or module == base, f"{module} is in no room"
        for other in imported(module, lazily=True):
            there = floor(other, floors)
            if here and there and there[1] != here[1] and there[0] >= here[0]:
                wrong.append(f"{module} imports {other}")
    assert wrong == []


def test_the_face_of_encoders_may_import_every_room() -> None:
    assert imported("encoders", lazily=True) <= {name for room in ENCODERS for each in room for name in within(each)}


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_no_torch_comes_with_it_not_even_indirectly(room: str) -> None:
    assert {module: sorted(reached(module) & HEAVY) for module in within(room) if reached(module) & HEAVY} == {}


@pytest.mark.parametrize("room", ["encoders", "training"])
def test_encoders_have_never_heard_of_the_service(room: str) -> None:
    strangers = {"service", "asyncio", "prometheus_client", "pydantic", *HTTP}
    for module in within(room):
        named = {name.partition(".")[0] for name in imported(module, lazily=True)}
        assert not named & strangers, module


@pytest.mark.parametrize(
    "room",
    ["service.access", "service.engine", "service.scheduling", "service.memory", "service.cluster", "service.bulk"],
)
def test_the_engine_knows_no_http(room: str) -> None:
    """Of its own imports nothing serves HTTP; fetching an image by URL is a client's."""
    for module in within(room):
        assert not reached(module) & HTTP, module
        assert not any(name.startswith("service.http") for name in reached(module)), module


def test_no_protocol_knows_another() -> None:
    protocols = {name.split(".")[3] for name in within("service.http.protocols") if name.count(".") >= 3}
    assert protocols
    for protocol in protocols:
        for module in within(f"service.http.protocols.{protocol}"):
            others = {f"service.http.protocols.{other}" for other in protocols - {protocol}}
            assert not any(name.startswith(tuple(others)) for name in imported(module, lazily=True)) or not others, (
                module
            )
            assert "service.http.protocols" not in imported(module, lazily=True), f"{module} knows the table"


@pytest.mark.parametrize(("name", "library"), [("openclip", "open_clip"), ("hf", "transformers"), ("timm", "timm")])
def test_an_adapter_stays_in_its_library(name: str, library: str) -> None:
    for module in within(f"encoders.adapters.{name}"):
        named = {each.partition(".")[0] for each in imported(module, lazily=True)}
        assert not named & ({"open_clip", "transformers", "timm"} - {library}), module


def test_what_is_shipped_does_not_import_what_is_not() -> None:
    for room in ("encoders", "service"):
        for module in within(room):
            named = {name.partition(".")[0] for name in imported(module, lazily=True)}
            assert not named & {"training", "benchmarks", "tests"}, module


def test_the_client_needs_httpx_and_numpy_only() -> None:
    """Pillow and tqdm only where they are asked for; of ours, itself."""
    own = sorted((ROOT / "client" / "visiontower_client").rglob("*.py"))
    assert len(own) > 5
    beside = sys.stdlib_module_names | {"httpx", "numpy", "visiontower_client"}
    for path in own:
        tree = ast.parse(path.read_text())
        at_once = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                allowed = beside if id(node) in at_once else beside | {"PIL", "tqdm"}
                assert {name.partition(".")[0] for name in names} <= allowed, f"{path.name}: {names}"


def test_there_is_no_circle() -> None:
    """Of imports as they are written: that a package's face imports its rooms is no circle."""
    above: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module in done:
            return
        above.append(module)
        for other in imported(module, lazily=False) & modules().keys() - set(packages(module)):
            visit(other)
        done.add(above.pop())

    for module in (*within("encoders"), *within("service")):
        visit(module)
