"""`visiontower doctor`: the page in 80 columns, JSON, the exit status, and the example of the documentation."""

import json
import re
from dataclasses import fields, replace
from typing import Any

import pytest
from rich.console import Console

from service.cli.doctor_page import page
from service.cli.main import main
from service.doctor.facts import Facts, Unknown
from service.doctor.findings import findings
from tests.support.machines import HEALTHY, MACHINE
from tests.support.paths import ROOT

TROUBLED = replace(
    HEALTHY, machine=replace(MACHINE, free=2**20, swap_used=2 * 2**30), variables={"OMP_NUM_THREADS": "1"}
)
UNKNOWN: Any = {each.name: Unknown("it broke") for each in fields(Facts) if each.name != "variables"}


def printed(facts: Facts) -> str:
    console = Console(width=80, markup=False, highlight=False, emoji=False)
    with console.capture() as captured:
        for each in page(facts, findings(facts), seconds=4.2):
            console.print(each)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def labels(text: str) -> list[str]:
    """The names of groups and rows."""
    table = text.partition("\n\n")[0]
    return [found[1].strip() for found in re.finditer(r"^((?:  )?\S.{0,14}?)(?:  |$)", table, flags=re.MULTILINE)]


@pytest.mark.parametrize("facts", [HEALTHY, TROUBLED])
def test_the_page_is_one_screen(facts: Facts) -> None:
    lines = printed(facts).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 50


def test_the_page_ends_with_what_is_wrong() -> None:
    assert printed(HEALTHY).endswith("\nNothing is wrong. It took 4 s.")
    told = printed(TROUBLED)
    assert told.index("\nwrong: Only 1 MiB of memory is free") < told.index("\nworth knowing: ")
    assert told.endswith("\n1 thing is wrong; 2 worth knowing. It took 4 s.")


def test_what_could_not_be_looked_at_is_told() -> None:
    told = printed(replace(HEALTHY, **UNKNOWN))
    assert told.count("could not tell: it broke") >= len(UNKNOWN) - 1
    for name in UNKNOWN:
        broken: dict[str, Any] = {name: Unknown("it broke")}
        assert "could not tell: it broke" in printed(replace(HEALTHY, **broken)) or name == "asked"


def test_a_hostile_variable_does_not_reach_the_terminal() -> None:
    assert "\x1b" not in printed(replace(HEALTHY, variables={"VISIONTOWER_HOST": "\x1b[2J"}))


def test_a_variable_that_serve_refuses_is_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONTOWER_PROT", "9000")
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["variables"]["VISIONTOWER_PROT"] == "(set)"
    assert told["ports"]["could_not_tell"].startswith("unknown variable VISIONTOWER_PROT.")
    assert told["torch"]["version"]
    assert [each["severity"] for each in told["findings"] if "VISIONTOWER_PROT" in each["what"]] == ["wrong"]


@pytest.mark.slow
def test_this_machine_passes_its_self_test(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["doctor"])
    told = capsys.readouterr().out
    assert "could not tell" not in told
    for model in ("demo:vit", "demo:resnet", "demo:convnext"):
        assert re.search(rf"^  {model} +ok: cosines within 0\.\d+", told, flags=re.MULTILINE), told


def test_the_example_of_the_documentation_has_the_form_of_the_page() -> None:
    """If this fails, put what the command prints into docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text()
    example = text.split("<!-- doctor -->\n```text\n")[1].partition("```")[0]
    assert max(map(len, example.splitlines())) <= 80
    groups = [line for line in example.splitlines() if re.fullmatch(r"[a-z-]+", line)]
    assert groups == [line for line in printed(HEALTHY).splitlines() if re.fullmatch(r"[a-z-]+", line)]
    known = {*labels(printed(HEALTHY)), "gpu", "Hugging Face", "open_clip", "torch", "demo:resnet", "demo:convnext"}
    assert set(labels(example)) <= known | {"pictures"}
    assert re.search(r"^\d things? (is|are) wrong; \d worth knowing\. It took \d+ s\.$", example, flags=re.MULTILINE)
