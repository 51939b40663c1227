"""The count of what is served: its verdicts, its tables, and that it goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.coverage import Row, examined, main, markdown, totals

ROWS = [
    Row("timm", "a", "resnet", "whole", "", 0.1),
    Row("timm", "b", "beit", "native", "", 0.2),
    Row("timm", "c", "beit", "native", "", 0.3),
    Row("timm", "d", "odd", "refused", "no map.", 0.4),
    Row("transformers", "x", "x", "refused", "it is of type 'x', which is not supported. Supported: y.", 0.0),
    Row("transformers", "z", "z", "refused", "it is of type 'z', which is not supported. Supported: y.", 0.0),
]


@pytest.mark.parametrize(
    ("name", "verdict", "reason"),
    [("test_resnet", "whole", ""), ("mixer_s32_224", "native", ""), ("no_such_model", "refused", "timm has no model")],
)
def test_a_model_is_judged_by_what_its_blueprint_gives(name: str, verdict: str, reason: str) -> None:
    row = examined("timm", name, "", f"timm:{name}@random")
    assert row.verdict == verdict
    assert reason in row.reason


def test_totals_count_verdicts_by_library() -> None:
    assert totals(ROWS) == [
        ("timm", "4", "1", "2", "1", "0", "0.40 s", "0.40 s"),
        ("transformers", "2", "0", "0", "2", "0", "0.00 s", "0.00 s"),
    ]


def test_the_markdown_names_what_does_not_work_once_a_reason() -> None:
    written = markdown(ROWS)
    assert "| timm | 4 | 1 | 2 | 1 | 0 | 0.40 s | 0.40 s |" in written
    assert "beit 2" in written
    assert "- timm, no map.: d" in written
    assert "- transformers, the model type is not supported: x, z" in written


def test_a_run_goes_on_where_an_earlier_one_stopped(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "rows.jsonl"
    arguments = ["timm", "--sample", "2", "-o", str(file), "--json"]
    main(arguments)
    first = json.loads(capsys.readouterr().out)
    lines = file.read_text()
    main(arguments)
    assert json.loads(capsys.readouterr().out) == first
    assert file.read_text() == lines
    assert {row["verdict"] for row in first} <= {"whole", "native"}
