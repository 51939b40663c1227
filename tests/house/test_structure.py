"""Who may import whom: deploy runs the service, the service sees encoders, encoders see neither."""

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

TORCH_FREE = ("types", "errors", "cost", "memory", "planning", "registry", "images", "preprocess", "fake")
"""Encoder modules that the service may import without paying for torch."""
HEAVY = {"torch", "torchvision", "open_clip", "timm", "transformers"}


def imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def roots(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(file)}


@pytest.mark.parametrize("file", sorted((ROOT / "encoders").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_encoders_know_nothing_of_the_service(file: Path) -> None:
    assert not roots(file) & {"service", "fastapi", "starlette", "uvicorn", "asyncio", "prometheus_client", "pydantic"}


@pytest.mark.parametrize("file", sorted((ROOT / "service").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_the_service_never_touches_torch(file: Path) -> None:
    assert not roots(file) & HEAVY


@pytest.mark.parametrize("name", TORCH_FREE)
def test_the_contract_imports_no_torch(name: str) -> None:
    assert not roots(ROOT / "encoders" / f"{name}.py") & HEAVY


@pytest.mark.parametrize(("name", "library"), [("openclip", "open_clip"), ("hf", "transformers"), ("timm", "timm")])
def test_an_adapter_stays_in_its_library(name: str, library: str) -> None:
    own = ROOT / "encoders" / name
    for file in sorted(own.glob("*.py")) or [own.with_suffix(".py")]:
        assert not roots(file) & ({"open_clip", "transformers", "timm"} - {library}), file
