"""The command line in process, and once as a process of its own."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

import encoders
from encoders.adapters.catalog import DEMO, RECOMMENDED
from encoders.contract.errors import WeightsError
from service.cli import main as cli
from service.cli.__main__ import main as entry_point
from service.cli.arguments import ArgumentError
from service.cli.main import main
from service.cli.metrics_port import metrics_served
from service.cli.tables import Score, scores_table
from service.engine import EmbedRequest, Engine
from service.run import server
from service.settings import PREFIX, Settings
from service.sizes import show_bytes
from tests.support.paths import ROOT
from tests.support.serving import backend_of, image_bytes

COMMANDS = ("serve", "embed", "search", "similarity", "models", "vram", "pull")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        values = np.random.default_rng(index).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings `serve` would have served."""
    seen: list[Settings] = []
    monkeypatch.setattr(server, "serve", seen.append)
    return seen


def help_of(*argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("argv", [(), *((command,) for command in COMMANDS)])
def test_help_fits_80_columns_and_shows_examples(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(*argv, capsys=capsys)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("\n  visiontower ") >= 2


def test_the_examples_of_the_help_parse(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in [(), *((command,) for command in COMMANDS)]:
        text = help_of(*argv, capsys=capsys).replace("\\\n", " ")
        for line in text.splitlines():
            if line.startswith("  visiontower "):
                words = shlex.split(line.partition("|")[0], comments=True)
                cli.parser().parse_args(words[1:])


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    words = [word.strip(",") for word in help_of("serve", capsys=capsys).split()]
    assert {f"--{name.replace('_', '-')}" for name in Settings.model_fields} <= set(words)


def test_serve_without_flags_has_the_default_settings(served: list[Settings]) -> None:
    assert main(["serve"]) == 0
    assert served == [Settings()]


def test_serve_takes_flags_over_variables(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONTOWER_PORT", "9000")
    monkeypatch.setenv("VISIONTOWER_MAX_BATCH", "7")
    main(["serve", "--port", "9001", "--model", "fake:a", "--model", "fake:b", "--image-url-hosts", "example.org"])
    (settings,) = served
    assert (settings.port, settings.max_batch) == (9001, 7)
    assert (settings.model, settings.image_url_hosts) == (("fake:a", "fake:b"), ("example.org",))


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["serve", "--port", "70000"], "--port (VISIONTOWER_PORT)"),
        (["serve", "--max-batch", "many"], "--max-batch (VISIONTOWER_MAX_BATCH)"),
        (
            ["serve", "--labels", "birds={images}/birds.txt", "--processes", "2"],
            "--labels (VISIONTOWER_LABELS): the labels of 'birds' cannot be read from ",
        ),
        (["serve", "--model", "fake:a", "--model", "fake:a"], "given twice"),
        (["serve", "--keys", f"a=sha256:{'0' * 64}", "--keys-usage", "/nowhere/usage"], "unable to open"),
        (["models", "nowhere:x"], "Unknown scheme"),
        (["models", "vit"], "not an encoder id"),
        (["models", "--scheme", "nowhere"], "Unknown scheme"),
        (["models", "--scheme", "fake"], "no list"),
        (["models", "fake:vit", "--device", "tpu"], "tpu"),
        (["embed", "nowhere", "-o", "out.npy"], "nowhere is not there"),
        (["embed", "{images}", "-o", "{images}/out.csv"], "must end in"),
        (["embed", "{images}", "-o", "{images}/out.npy", "--output", "both"], "one array"),
        (["embed", "{images}", "-o", "{images}/out.npy", "--shard-rows", "8"], "--shard-rows is for a folder"),
        (["embed", "{images}", "-o", "{images}/out.npy", "--retry-errors"], "--retry-errors is for results"),
        (["embed", "{images}", "-o", "v", "--layout", "clip-retrieval", "--output", "both"], "holds pooled vectors"),
        (["embed", "{images}", "-o", "v", "--layout", "clip-retrieval", "--dtype", "float32"], "is of float16"),
        (["embed", "{images}", "-o", "{images}/out.npy", "--layer", "0"], "'layer' is 0: it is about tokens"),
        (["embed", "{images}", "-o", "{images}/out.npy", "--prefix"], "'prefix' is True: it is about tokens"),
        (["embed", "{images}", "-o", "{images}/out.npy", "--resolution", "big"], "resolution"),
        (["embed", "{images}", "-o", "{images}/out.npy", "--resolution", "33", "--model", "fake:v"], "32x32 or 40x40"),
        (["embed", "{images}", "-o", "{images}/out.npy", "--model", "fake:vit@broken"], "fails on purpose"),
        (["similarity", "{images}/0.png", "cat", "--model", "fake:vit@broken"], "fails on purpose"),
        (["similarity", "nowhere.png", "a cat"], "nowhere.png: No such file"),
        (["similarity", "{images}", "a cat"], "directory"),
        (["similarity", "{images}/0.png", "cat", "--template", "no slot"], "no {}"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    argv: list[str], named: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("{images}", str(images)) for word in argv]) == 2
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"visiontower {argv[0]}: ")
    assert named in last
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_misspelt_variable_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("VISIONTOWER_PROT", "9000")
    assert main(["serve"]) == 2
    assert "VISIONTOWER_PORT" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["serve", "--prot", "1"], ["embed"], ["similarity", "a.png"], ["fly"], []])
def test_flags_that_do_not_exist_or_are_missing_are_status_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2


def test_embed_writes_the_file_and_says_what_is_in_it(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = images.parent / "deep" / "out.npy"
    assert main(["embed", str(images), "-o", str(out), "--model", "fake:vit", "--resolution", "64"]) == 0
    captured = capsys.readouterr()
    assert f"{out}: pooled [3, 6]" in captured.out
    assert "3/3" in captured.err
    assert "item/s" in captured.err
    assert np.load(out).shape == (3, 6)


def test_embed_lists_what_failed_and_ends_with_status_1(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "bad.jpg").write_text("text")
    out = images.parent / "out.npy"
    assert main(["embed", str(images), "-o", str(out), "--model", "fake:vit"]) == 1
    captured = capsys.readouterr()
    assert f"{images / 'bad.jpg'}: This is text, which is no image that is read here." in captured.err
    assert f"1 failed: {out}.errors.jsonl" in captured.err
    assert len(np.load(out)) == 3


def test_embed_says_so_when_nothing_could_be_encoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.jpg").write_text("text")
    assert main(["embed", str(tmp_path / "bad.jpg"), "-o", str(tmp_path / "out.npy"), "--model", "fake:vit"]) == 1
    assert "was not written" in capsys.readouterr().err


def test_embed_to_a_folder_says_where_errors_are_and_that_it_is_complete(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "bad.jpg").write_text("text")
    line = ["embed", str(images), "-o", f"{images.parent}/v1.0/", "--model", "fake:vit"]
    for said in ("v1.0: pooled [3, 6] in ", "v1.0 is complete: 4 rows."):
        assert main(line) == 1
        captured = capsys.readouterr()
        assert said in captured.out
        assert "1 failed: the column error of " in captured.err
    Image.new("RGB", (8, 8)).save(images / "bad.jpg", "PNG")
    assert main([*line, "--retry-errors"]) == 0
    assert (images.parent / "v1.0" / "part-00000.parquet").is_file()


def test_embed_dry_run_says_what_it_would_take_and_writes_nothing(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = images.parent / "vectors"
    assert main(["embed", str(images), "-o", str(out), "--model", "fake:vit", "--output", "both", "--dry-run"]) == 0
    said = capsys.readouterr().out
    rows, disk, memory, time = said.splitlines()
    assert rows.split() == ["rows", "3"]
    assert disk.startswith(f"disk    {show_bytes(3 * (64 + 4 * (16 * 12 + 6)))}, ")
    assert "for batches of 32" in memory
    assert "a second, of 3" in time
    assert not out.exists()


def test_embed_in_the_layout_of_clip_retrieval_is_half_precision_of_length_1(images: Path) -> None:
    out = images.parent / "index"
    assert main(["embed", str(images), "-o", str(out), "--model", "fake:vit", "--layout", "clip-retrieval"]) == 0
    vectors = np.load(out / "img_emb" / "img_emb_0.npy")
    assert vectors.dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, rtol=1e-3)


@pytest.mark.anyio
async def test_the_metrics_of_a_run_are_served_while_it_runs() -> None:
    settings = Settings(model=("fake:vit",))
    async with Engine(settings, backend=backend_of()) as engine, httpx.AsyncClient() as client:
        with metrics_served(engine, 0) as port:
            await engine.embed(EmbedRequest([image_bytes()]))
            answer = await client.get(f"http://127.0.0.1:{port}/metrics")
            nothing = await client.get(f"http://127.0.0.1:{port}/embed")
            with pytest.raises(ArgumentError, match=f"--metrics-port {port}: "), metrics_served(engine, port):
                pass
    assert (answer.status_code, nothing.status_code) == (200, 404)
    assert 'visiontower_images_total{model="fake:vit",resolution="32x32"} 1.0' in answer.text
    assert 'visiontower_queue_images{model="fake:vit"} 0.0' in answer.text


def test_embed_interrupted_says_how_to_go_on_and_goes_on(images: Path) -> None:
    """Ctrl-C while a file, a pipe that nobody writes to, is being read. Of a folder it would be left out."""
    out, pipe = images.parent / "out.npy", images / "2.png"
    names = [str(images / f"{number}.png") for number in range(3)]
    pipe.unlink()
    os.mkfifo(pipe)
    line = [sys.executable, "-m", "service.cli", "embed", *names, "-o", str(out), "--model", "fake:vit"]
    line += ["--batch-size", "1", "--workers", "1"]
    running = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with pipe.open("wb"):  # waits for the reader
        running.send_signal(signal.SIGINT)
        shown, said = running.communicate(timeout=60)
    assert (running.returncode, shown) == (130, ""), said
    assert f"kept in {out}.parts" in said
    assert "Traceback" not in said
    pipe.unlink()
    Image.new("RGB", (8, 8)).save(pipe, "PNG")
    subprocess.run(line, capture_output=True, check=True)
    assert len(np.load(out)) == 3


def test_a_path_that_no_file_can_have_is_an_error_of_its_item(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those after one that is read are looked for once more, to tell that from a disk that has gone."""
    pq.write_table(pa.table({"path": ["0.png", "a\0b.png", "x" * 300 + ".png"]}), images / "paths.parquet")
    (images / "list").write_text(f"{images}/0.png\n{'x' * 5000}\n")
    words = [f"{images}/paths.parquet", "--trust-paths", "--list", f"{images}/list", "--model", "fake:vit"]
    assert main(["embed", *words, "--batch-size", "1", "-o", str(images.parent / "out.parquet")]) == 1
    said = capsys.readouterr().err
    assert "a\\x00b.png: No file can have this name" in said
    assert said.count("File name too long") == 2


def test_what_the_terminal_cannot_show_is_escaped(images: Path) -> None:
    line = [sys.executable, "-m", "service.cli", "embed", f"{images}/0.png", "-o", "é.npy", "--model", "fake:vit"]
    variables = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, env=variables, cwd=images)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("\\xe9.npy: pooled")


@pytest.mark.parametrize(
    "line",
    [
        ["similarity", "{images}/0.png", "a\x1b[31m", "--model", "fake:vit"],
        ["similarity", "gone\x1b[31m.png", "a"],
        ["models", "fake:\x1b[31m"],
        ["serve", "--prot\x1b[31m=1"],
        ["serve", "--keys-file", "gone\x1b[31m"],
        ["keys", "create", "\x1b[31m"],
        ["embed", "{images}/0.png", "-o", "{images}/a\x1b[31m.npy", "--model", "fake:vit"],
    ],
)
def test_a_name_on_the_command_line_does_not_speak_to_the_terminal(
    line: list[str], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):
        main([each.format(images=images) for each in line])
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said
    assert "\\x1b[31m" in said


def test_scores_are_shown_in_ascii_where_there_is_no_more() -> None:
    shown = io.BytesIO()
    console = Console(file=io.TextIOWrapper(shown, "ascii"), width=80)
    console.print(scores_table([Score("a", 0.5, 1.0, 1.0)], title="x"))
    assert b"----" in shown.getvalue()


@pytest.mark.parametrize("flag", ["--list", "--texts"])
def test_standard_input_that_is_closed_is_one_line(flag: str, images: Path) -> None:
    line = [sys.executable, "-m", "service.cli", "embed", flag, "-", "-o", f"{images}/out.npy", "--model", "fake:vit"]
    closed = subprocess.run(["sh", "-c", f"exec {shlex.join(line)} <&-"], capture_output=True, text=True, cwd=ROOT)
    assert (closed.returncode, closed.stderr.count("\n")) == (2, 1), closed.stderr
    assert "Standard input is closed" in closed.stderr


def test_standard_files_that_are_closed_are_not_given_to_others() -> None:
    program = (
        "import os, sys; from service.cli.__main__ import hold_standard_files; hold_standard_files(); "
        "print('to nobody', file=sys.stderr); sys.exit(os.open('/', os.O_RDONLY))"
    )
    line = f"exec {shlex.join([sys.executable, '-c', program])} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=ROOT).returncode == 3


def test_interrupted_while_it_is_imported_it_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "service.cli.main", Interrupted())
    assert entry_point() == 130


def test_similarity_as_json_scores_every_text_in_order(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["similarity", str(images / "0.png"), "a cat", "a dog", "--model", "fake:vit", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [score["text"] for score in answer["scores"]] == ["a cat", "a dog"]
    assert sum(score["probability"] for score in answer["scores"]) == pytest.approx(1)
    assert (answer["activation"], answer["logit_scale"]) == ("softmax", 100)


def test_similarity_shows_the_best_text_first(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["similarity", str(images / "0.png"), "[red]cat", "dog", "a photo", "--model", "fake:vit"]
    assert main(argv) == 0
    table = capsys.readouterr().out
    assert "[red]cat" in table, "a text is no markup"
    assert max(map(len, table.splitlines())) <= 80
    rows = [line.split("│") for line in table.splitlines() if line.startswith("│")]
    chances = [float(row[3]) for row in rows]
    assert chances == sorted(chances, reverse=True)


def test_similarity_says_which_texts_were_cut(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After 16 bytes in the fake."""
    long, longer = "seventeen bytes !", f"seventeen bytes {'x' * 100}"
    argv = ["similarity", str(images / "0.png"), long, "cat", longer, "--model", "fake:vit"]
    assert main(argv) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Cut at the model's context length, its end does not count: seventeen bytes !" in shown
    assert f"its end does not count: {longer[:60]}..." in shown
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["truncated"] == [0, 2]
    assert main([*argv, "--no-truncate"]) == 2
    assert "fake:vit reads 16 tokens of a text: text 0 has 17, text 2 has 116." in capsys.readouterr().err


def test_similarity_averages_templates(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def cosine(*templates: str) -> float:
        flags = [word for template in templates for word in ("--template", template)]
        main(["similarity", str(images / "0.png"), "cat", "--model", "fake:vit", "--json", *flags])
        scores: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["scores"]
        return float(scores[0]["cosine"])

    assert cosine() == cosine("{}")
    assert cosine("{}", "a drawing of a {}") not in (cosine("{}"), cosine("a drawing of a {}"))


def test_models_names_every_scheme_and_the_demo_encoders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 80
    for name in ("openclip:ARCH@TAG", "hf:REPO", "timm:NAME", *DEMO):
        assert name in table


def test_models_recommends_encoders_each_with_one_command_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models"])
    lines = capsys.readouterr().out.splitlines()
    for each in RECOMMENDED:
        command = lines.index(f"  visiontower serve --model {each.id}")
        assert lines[command - 1] == f"{show_bytes(each.download_bytes)}: {each.purpose}"


def test_models_as_json_covers_every_scheme_installed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "--json"])
    assert {scheme["name"] for scheme in json.loads(capsys.readouterr().out)} == set(encoders.schemes())


def test_every_example_of_the_catalog_is_an_id(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "--json"])
    for scheme in json.loads(capsys.readouterr().out):
        for example in scheme["examples"]:
            assert encoders.EncoderId.parse(example).scheme == scheme["name"]


def test_models_of_an_id_shows_tokens_by_resolution(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "fake:vit"]) == 0
    shown = capsys.readouterr().out
    assert "32x32*" in shown
    assert "[784, 12]" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_models_of_an_id_as_json_has_what_the_server_says_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "fake:vit", "--json"])
    card = json.loads(capsys.readouterr().out)
    assert (card["id"], card["tokens"], card["grid"], card["has_text"]) == ("fake:vit", 16, [4, 4], True)
    assert (card["trained_on"], card["preprocessing"]["resize"]) == (None, "shortest")
    assert {"resolution": [224, 224], "grid": [28, 28], "tokens": 784} in card["tokens_by_resolution"]


def test_models_of_a_scheme_lists_its_ids(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "--scheme", "openclip"])
    assert "openclip:ViT-L-14-336@openai" in capsys.readouterr().out.splitlines()
    main(["models", "--scheme", "demo", "--json"])
    assert json.loads(capsys.readouterr().out) == list(DEMO)


def test_weights_that_do_not_load_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(encoder_id: str, placement: object) -> None:
        raise WeightsError("missing:\n  a\n  b")

    monkeypatch.setattr(encoders, "load", load)
    assert main(["models", "fake:vit"]) == 2
    assert capsys.readouterr().err == "visiontower models: missing: a b\n"


def test_the_module_runs_as_a_process_and_its_help_imports_no_torch() -> None:
    code = "import runpy, sys; sys.argv = ['visiontower', 'embed', '--help']\n"
    code += "try: runpy.run_module('service.cli', run_name='__main__')\n"
    code += "except SystemExit as end: assert not end.code\n"
    heavy = {"torch", "pyarrow", "fastapi", "transformers", "service.engine"}
    code += f"assert not {heavy} & set(sys.modules), 'heavy imports'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The suffix of OUT chooses" in done.stdout


def test_a_library_that_cannot_be_imported_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "PIL.py").write_text("raise ImportError('libjpeg.so: cannot open shared object file', name='PIL')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "service.cli", "doctor"]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.startswith("visiontower: PIL is missing or broken: libjpeg.so")
    assert ran.stderr.count("\n") == 1


def test_a_full_disk_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with suppress(OSError), open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["models", "--json"]) == 2
    assert capsys.readouterr().err == "visiontower models: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("", "is not written to standard output"),
        ("-", "is not written to standard output"),
        ("n" * 246 + ".npy", "name too long"),
        ("\udcff.npy", "a name in UTF-8"),
    ],
)
def test_a_name_that_no_result_can_have_is_said_before_the_work(
    images: Path, out: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(images.parent)
    assert main(["embed", str(images), "-o", out, "--model", "fake:vit"]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in images.parent.iterdir()] == [images.name]


def test_a_result_goes_where_a_link_leads(images: Path) -> None:
    (images.parent / "disk").mkdir()
    link, behind = images.parent / "out.npy", images.parent / "disk" / "real.npy"
    link.symlink_to(behind)
    assert main(["embed", str(images), "-o", str(link), "--model", "fake:vit"]) == 0
    assert link.is_symlink()
    assert len(np.load(behind)) == 3


def test_of_nothing_no_result_is_claimed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").write_text("")
    words = ["embed", "--texts", f"{tmp_path}/texts", "-o", f"{tmp_path}/out.npy", "--model", "fake:vit"]
    assert main(words) == 0
    assert "There was nothing to embed" in capsys.readouterr().err


@pytest.mark.parametrize("width", [40, 50, 80])
def test_scores_show_their_numbers_in_a_narrow_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(scores_table([Score("a photo of a red circle", 0.5123, 10.0, 0.9876)], title="x"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "+0.5123" in shown
    assert "0.9876" in shown
    assert "photo" in shown
