"""What the README says is what is there: its tables, ids, code and shell lines."""

import asyncio
import json
import re
import shlex
from typing import Any

import numpy as np
import pytest

from encoders.adapters.demo import WEIGHTS
from encoders.adapters.registry import EncoderId, schemes
from service.cli.main import main
from service.engine.backend import real_backend
from service.http.app import create_app
from service.http.problems import slugs
from service.settings import Settings, settings_table
from tests.support.paths import ROOT
from tests.support.serving import client_of
from training.demo.evaluate import table

README = (ROOT / "README.md").read_text()


def block(name: str) -> str:
    found, end, _ = README.split(f"<!-- {name} -->\n")[1].partition(f"<!-- /{name} -->")
    assert end, f"the end marker of {name} is gone"
    return found


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_settings_table_is_the_settings() -> None:
    """If this fails, put service.settings.settings_table() between the two markers."""
    assert block("settings").strip() == settings_table().strip()


def test_the_memory_shown_is_the_command_s_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, put what the command above it prints between the two markers."""
    monkeypatch.setenv("COLUMNS", "80")
    (line,) = re.findall(r"^visiontower (vram .*--beside .*)$", README, flags=re.MULTILINE)
    main(shlex.split(line))
    printed = "\n".join(row.rstrip() for row in capsys.readouterr().out.strip("\n").splitlines())
    assert block("vram").strip() == f"```text\n{printed}\n```"


def test_the_demo_table_is_the_report() -> None:
    """If this fails, put training.demo.evaluate.table(...) of report.json between the two markers."""
    report = json.loads((WEIGHTS / "report.json").read_text())
    assert block("demo-table").strip() == "```text\n" + table(report["models"], report["counts"]).strip("\n") + "\n```"


async def _answer_to_the_curl() -> dict[str, Any]:
    settings = Settings(model=("demo:vit",))
    example = (ROOT / "docs" / "example.png").read_bytes()
    texts = re.findall(r"-F 'text=([^']+)'", README)
    app = create_app(settings, backend=real_backend(settings))
    async with client_of(app) as client:
        response = await client.post("/similarity", files={"image": example}, data={"text": texts})
    answer: dict[str, Any] = response.json()
    return answer


def test_the_answer_shown_is_the_answer_given() -> None:
    """Up to rounding, which depends on the processor, and the milliseconds."""
    shown = json.loads(block("similarity-answer").strip().removeprefix("```json").removesuffix("```"))
    given = asyncio.run(_answer_to_the_curl())
    assert shown.keys() == given.keys()
    np.testing.assert_allclose(shown["cosine"], given["cosine"], atol=2e-3)
    np.testing.assert_allclose(shown["probabilities"], given["probabilities"], atol=2e-2)
    assert shown["timing_ms"].keys() == given["timing_ms"].keys()


def test_the_library_example_runs() -> None:
    example = next(text for text in code("python") if "decode(" in text)
    names: dict[str, object] = {}
    exec(compile(example.replace('Path("', f'Path("{ROOT}/'), "README.md", "exec"), names)
    assert names["encoded"].tokens.shape == (1, *_shape(names))  # type: ignore[attr-defined]


def _shape(names: dict[str, object]) -> tuple[int, int]:
    spec = names["encoder"].spec  # type: ignore[attr-defined]
    return spec.prefix_tokens + spec.grid().rows * spec.grid().cols, spec.hidden_size


def test_the_tutorials_code_is_the_plugins() -> None:
    plugin = (ROOT / "tests" / "plugin" / "visiontower_lenet.py").read_text()
    tutorial = next(text for text in code("python") if "class LeNet5" in text)
    body = tutorial.split("def load")[0].split("Outputs) -> Features:\n")[1].strip()
    assert body in plugin
    assert next(iter(code("toml"))).strip() in (ROOT / "tests" / "plugin" / "pyproject.toml").read_text()


def test_every_id_named_can_be_parsed_and_its_scheme_is_known() -> None:
    named = re.findall(r"`((?:demo|openclip|hf|timm):[^`\[]+)(?:\[[^`]*)?`", README)
    assert len(named) > 8
    assert {EncoderId.parse(text).scheme for text in named} <= set(schemes())


def test_every_file_named_is_there() -> None:
    for path in re.findall(r"`((?:encoders|service|tests|deploy)/[\w./-]*)`", README):
        assert (ROOT / path).exists(), path


def test_every_make_target_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_command_named_is_one() -> None:
    for command in set(re.findall(r"visiontower (serve|embed|similarity|models|vram)\b", README)):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert not ended.value.code, command


def test_the_problem_pages_are_listed() -> None:
    assert "/problems" in README
    assert len(list(slugs())) > 8


def test_shell_lines_are_whole() -> None:
    for text in code("sh"):
        shlex.split(text, comments=True)
