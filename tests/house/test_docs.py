"""README.md and docs/ say what is there: tables, answers, examples, ids, commands, files and links."""

import asyncio
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from encoders.adapters.demo import WEIGHTS
from encoders.adapters.registry import EncoderId, schemes
from service.cli.main import main
from service.engine.backend import real_backend
from service.http.app import create_app
from service.http.problems import slugs
from service.settings import PREFIX, Settings, settings_table
from service.sizes import show_bytes
from service.telemetry.metrics_table import labels_table, metrics_table
from tests.support.paths import ROOT
from tests.support.prometheus import rules
from tests.support.serving import client_of
from training.demo.evaluate import table

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", ROOT / "deploy" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
README = PAGES["README.md"]
EVERYTHING = "\n".join(PAGES.values())

each_page = pytest.mark.parametrize("page", PAGES)


def block(page: str, name: str) -> str:
    """The text of a page between two markers."""
    found, end, _ = PAGES[page].split(f"<!-- {name} -->\n")[1].partition(f"<!-- /{name} -->")
    assert end, f"the end marker of {name} is gone"
    return found.strip()


def code(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def section(page: str, heading: str) -> str:
    """From a heading of the second level to the next one."""
    return re.split(r"^## ", PAGES[page].split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]


def first_column(text: str) -> list[str]:
    """What stands in backticks at the beginning of a table's rows."""
    return re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE)


def test_the_readme_has_at_most_200_lines() -> None:
    assert len(README.splitlines()) <= 200


def test_the_settings_table_is_the_settings() -> None:
    """If this fails, put service.settings.settings_table() between the two markers."""
    assert block("docs/settings.md", "settings") == settings_table().strip()


def test_the_memory_shown_is_the_command_s_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, put what the command prints into docs/memory.md, and its last paragraph into the README."""
    monkeypatch.setenv("COLUMNS", "80")
    (line,) = set(re.findall(r"^visiontower (vram .*--beside .*)$", EVERYTHING, flags=re.MULTILINE))
    main(shlex.split(line))
    printed = "\n".join(row.rstrip() for row in capsys.readouterr().out.strip("\n").splitlines())
    assert block("docs/memory.md", "vram") == f"```text\n{printed}\n```"
    verdict = printed.split("\n\n")[-1]
    assert block("README.md", "vram-verdict") == f"```text\n{verdict}\n```"


def test_the_plan_shown_is_the_command_s_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If this fails, put what the command prints into docs/scaling.md."""
    monkeypatch.setenv("COLUMNS", "80")
    (line,) = re.findall(r"^visiontower (plan .*)$", PAGES["docs/scaling.md"], flags=re.MULTILINE)
    main(shlex.split(line))
    printed = "\n".join(row.rstrip() for row in capsys.readouterr().out.strip("\n").splitlines())
    assert block("docs/scaling.md", "plan") == f"```text\n{printed}\n```"


def test_where_the_wall_is_is_what_the_command_says(capsys: pytest.CaptureFixture[str]) -> None:
    """If this fails, put what is expected here into docs/scaling.md."""
    rows = re.findall(r"^\| `(--model .*)` \|", PAGES["docs/scaling.md"], flags=re.MULTILINE)
    assert len(rows) > 4
    expected = []
    for flags in rows:
        main(["plan", "--images", "1e9", "--gpu", "h100", *shlex.split(flags), "--json"])
        plan = json.loads(capsys.readouterr().out)
        busy, pace = plan["busy_gpu"], {stage["name"]: stage["images_per_second"] for stage in plan["stages"]}
        beside = f"{busy['cores']:,.0f} | {busy['engines']} | {8e-9 * busy['bytes_per_second']:.1f}"
        expected.append(f"| `{flags}` | {pace['forward']:,.0f} | {beside} | {show_bytes(plan['at_rest_bytes'])} |")
    assert "\n".join(expected) == block("docs/scaling.md", "walls").split("|\n", 2)[2]


def test_the_demo_table_is_the_report() -> None:
    """If this fails, put training.demo.evaluate.table(...) of report.json between the two markers."""
    report = json.loads((WEIGHTS / "report.json").read_text())
    shown = table(report["models"], report["counts"]).strip("\n")
    assert block("docs/demo-encoders.md", "demo-table") == f"```text\n{shown}\n```"


@dataclass(frozen=True)
class Served:
    """A server's answers to the README's two requests, and its schema."""

    embed: dict[str, Any]
    similarity: dict[str, Any]
    schema: dict[str, Any]


@pytest.fixture(scope="module")
def served() -> Served:
    async def ask() -> Served:
        settings = Settings(model=("demo:vit",))
        example = (ROOT / "docs" / "example.png").read_bytes()
        texts = re.findall(r"-F 'text=([^']+)'", README)
        (query,) = re.findall(r"http://127.0.0.1:8000/embed\?([^']+)'", README)
        async with client_of(create_app(settings, backend=real_backend(settings))) as client:
            embed = await client.post(f"/embed?{query}", files={"image": example})
            similarity = await client.post("/similarity", files={"image": example}, data={"text": texts})
            schema = await client.get("/openapi.json")
        return Served(embed.json(), similarity.json(), schema.json())

    return asyncio.run(ask())


def shown(name: str) -> dict[str, Any]:
    """An answer in the README; `...` stands for the rest of a list."""
    text = block("README.md", name).removeprefix("```json").removesuffix("```").replace(", ...]", "]")
    answer: dict[str, Any] = json.loads(text)
    return answer


def test_the_similarity_answer_shown_is_the_one_given(served: Served) -> None:
    """Up to rounding, which depends on the processor, and the milliseconds."""
    answer = shown("similarity-answer")
    assert answer.keys() == served.similarity.keys()
    np.testing.assert_allclose(answer["cosine"], served.similarity["cosine"], atol=2e-3)
    np.testing.assert_allclose(answer["probabilities"], served.similarity["probabilities"], atol=2e-2)
    assert answer["timing_ms"].keys() == served.similarity["timing_ms"].keys()


def test_the_embed_answer_shown_is_the_one_given(served: Served) -> None:
    """As far as its lists are shown."""
    answer = shown("embed-answer")
    assert answer.keys() == served.embed.keys()
    assert answer["usage"] == served.embed["usage"]
    assert answer["timing_ms"].keys() == served.embed["timing_ms"].keys()
    (mine,), (theirs,) = answer["data"], served.embed["data"]
    assert mine.keys() == theirs.keys()
    assert (mine["grid"], mine["prefix_tokens"]) == (theirs["grid"], theirs["prefix_tokens"])
    for name in ("tokens", "pooled"):
        values = np.array(mine[name].pop("data"))
        given = np.array(theirs[name]["data"])[tuple(slice(side) for side in values.shape)]
        np.testing.assert_allclose(values, given, atol=0.03)
        assert mine[name] == {key: value for key, value in theirs[name].items() if key != "data"}


def run_example(page: str, mark: str) -> dict[str, Any]:
    """The names that an example of a page leaves, with the paths of this repository."""
    example = next(text for text in code(PAGES[page], "python") if mark in text)
    names: dict[str, Any] = {}
    exec(compile(example.replace('Path("', f'Path("{ROOT}/'), page, "exec"), names)
    return names


def test_the_example_with_the_engine_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_example("README.md", "Engine(")
    assert capsys.readouterr().out.strip() == "(64,)"


def test_the_example_with_an_encoder_runs() -> None:
    names = run_example("docs/encoders.md", "pixels_of")
    spec = names["encoder"].spec
    assert names["encoded"].tokens.shape == (1, spec.prefix_tokens + spec.grid().rows * spec.grid().cols, 128)
    assert names["encoded"].pooled.shape == (1, spec.pooled_size)


def test_the_tutorials_code_is_the_plugins() -> None:
    plugin = (ROOT / "tests" / "plugin" / "visiontower_lenet.py").read_text()
    tutorial = next(text for text in code(PAGES["docs/encoders.md"], "python") if "class LeNet5" in text)
    head, _, tail = tutorial.partition("\n\n\ndef build")
    assert head.split("Outputs) -> Features:\n")[1].strip() in plugin
    signature, *_, last = tail.strip().splitlines()
    assert f"def build{signature}" in plugin
    assert last.strip().replace("LeNet5()", "tower") in plugin
    (entry,) = code(PAGES["docs/encoders.md"], "toml")
    assert entry.strip() in (ROOT / "tests" / "plugin" / "pyproject.toml").read_text()


def test_what_an_author_of_an_encoder_needs_is_where_the_table_says() -> None:
    section = PAGES["docs/encoders.md"].partition("## Add an encoder")[2]
    rows = re.findall(r"^\| (.+) \| `(encoders\.[\w.]+)` \|$", section, flags=re.MULTILINE)
    assert len(rows) > 8
    for names, module in rows:
        for name in re.findall(r"`([A-Z]\w+|to_patches)", names):
            assert hasattr(importlib.import_module(module), name), (module, name)


def test_every_id_named_can_be_parsed_and_its_scheme_is_known() -> None:
    for page in ("README.md", "docs/encoders.md"):
        named = re.findall(r"`((?:demo|openclip|hf|timm):[^`\[]+)(?:\[[^`]*)?`", PAGES[page])
        assert len(named) > 8
        assert {EncoderId.parse(text).scheme for text in named} <= set(schemes())


@each_page
def test_every_file_named_is_there(page: str) -> None:
    for path in re.findall(r"`((?:encoders|service|training|benchmarks|tests|docs|deploy)/[\w./-]*)`", PAGES[page]):
        assert (ROOT / path).exists(), path


def test_every_module_to_run_is_there() -> None:
    found = set(re.findall(r"python -m ([\w.]+\w)", EVERYTHING))
    assert len(found) > 4
    for module in found:
        assert importlib.util.find_spec(module), module


def test_every_make_target_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make ([a-z]+(?:-[a-z]+)*)", EVERYTHING, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_command_named_is_one() -> None:
    found = set(re.findall(r"(?:`|^)visiontower ([a-z]+)\b", EVERYTHING, flags=re.MULTILINE))
    assert found == {
        "serve", "embed", "search", "similarity", "models", "verify", "vram", "plan", "pull", "doctor", "keys", "ray",
    }  # fmt: skip
    for command in found:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert not ended.value.code, command


def test_every_variable_named_is_a_setting() -> None:
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+[A-Z]", EVERYTHING)) <= known


def test_every_route_named_is_served(served: Served) -> None:
    routes = {("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json")}
    for path, verbs in served.schema["paths"].items():
        routes |= {(verb.upper(), path.partition("{")[0]) for verb in verbs}
    named = set(re.findall(r"`(GET|POST) (/[a-z0-9/.]*)", EVERYTHING))
    assert len(named) > 8
    assert named <= routes


@pytest.mark.parametrize("path", ["/embed", "/similarity", "/classify"])
def test_the_options_named_are_those_of_the_route(served: Served, path: str) -> None:
    rows = section("docs/protocols.md", f"POST {path}").split("| option |")[1].split("\n\n")[0]
    cells = re.findall(r"^\| (`[^|]+)\|", rows, flags=re.MULTILINE)
    named = [name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell.partition(", in JSON")[0])]
    assert sorted(named) == sorted(each["name"] for each in served.schema["paths"][path]["post"]["parameters"])


def test_the_problem_pages_named_are_there() -> None:
    named = set(re.findall(r"/problems/([a-z-]+)", EVERYTHING))
    assert "overloaded" in named
    assert named <= set(slugs())


@pytest.mark.skipif(sys.platform != "linux", reason="process_* are of Linux")
def test_the_metrics_tables_are_the_registry_s() -> None:
    """If this fails, put service.telemetry.metrics_table's tables between the markers."""
    assert block("docs/metrics.md", "metrics") == metrics_table().strip()
    assert block("docs/metrics.md", "labels") == labels_table().strip()


def test_every_metric_named_is_one() -> None:
    known = set(first_column(block("docs/metrics.md", "metrics")))
    named = set(re.findall(r"`(?:ray_)?(visiontower_[a-z_]+)`", EVERYTHING)) - {"visiontower_client"}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} <= known


def test_the_alerts_named_are_those_there_are() -> None:
    """In the order of the file, each with a section; operations.md has them by severity."""
    alerts = {rule["alert"]: rule["labels"]["severity"] for rule in rules("alerts.yml")}
    assert re.findall(r"^## (Visiontower\w+)$", PAGES["docs/runbook.md"], flags=re.MULTILINE) == list(alerts)
    rows = re.findall(r"^\| (critical|warning|info) \| ([^|]+)", PAGES["docs/operations.md"], flags=re.MULTILINE)
    assert {name: severity for severity, names in rows for name in re.findall(r"`(\w+)`", names)} == alerts


@each_page
def test_shell_lines_are_whole(page: str) -> None:
    for text in code(PAGES[page], "sh"):
        shlex.split(text, comments=True)


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"(?:\]\(|(?:src|srcset)=\")([^)\s\"]+)", prose(PAGES[page])):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked.read_text()), target


def test_every_page_is_in_the_index() -> None:
    """docs/README.md names all pages beside it, docs/decisions/README.md all decisions."""
    for index in (ROOT / "docs" / "README.md", ROOT / "docs" / "decisions" / "README.md"):
        linked = set(re.findall(r"\]\(([\w-]+\.md)\)", index.read_text()))
        assert {path.name for path in index.parent.glob("*.md")} - {"README.md"} <= linked


def test_the_pictures_are_small_enough_for_a_page() -> None:
    assert len(re.findall(r"<(?:img|source) ", README)) == 2  # one for each theme
    for picture in (ROOT / "docs").rglob("*.png"):
        assert picture.stat().st_size < 150_000, picture


def test_the_eight_steps_of_an_image_name_every_file_that_it_meets() -> None:
    """And the road is as short as it was made: counted by benchmarks/road.py, the model's own forward apart."""
    page = PAGES["docs/request-path.md"]
    named = set(re.findall(r"`((?:service|encoders)/[\w/]+\.py)`", page))
    assert all((ROOT / path).is_file() for path in named), named
    assert re.findall(r"^\| (\d)\. ", page, flags=re.MULTILINE) == list("12345678")
    assert re.findall(r"^\*\*(\d)\. ", page, flags=re.MULTILINE) == list("12345678")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.road", "--calls"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *calls, counts = done.stdout.strip().splitlines()
    assert {call.split()[1] for call in calls} <= named
    functions, files, changes = map(int, re.findall(r"\d+", counts))
    assert functions <= 121  # 120; on a busy machine a thread looks for work once more
    assert files <= 30  # three of them are what all protocols share
    assert changes <= 64  # 61, likewise; many are the account's, which is asked before each stage, and told after
