"""`visiontower keys`: the key on standard output once, all else on standard error."""

import json
import re
from pathlib import Path

import pytest

from service.access.gate import Gate
from service.access.keys import read_file
from service.access.usage import Usage
from service.cli.main import main
from service.settings import Settings


def test_a_created_key_is_printed_alone_and_opens_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.toml"
    flags = "--requests-per-second 2.5 --images-in-flight 8 --images-per-day 100 --model demo:vit --model demo:resnet"
    assert main(["keys", "create", "search-team", "--file", str(path), *flags.split()]) == 0
    out, err = capsys.readouterr()
    assert re.fullmatch(r"vt_[\w-]{43}\n", out)
    assert out.strip() not in err + path.read_text()
    assert "--keys-usage" in err
    (key,) = read_file(path)
    assert (key.requests_per_second, key.images_in_flight, key.images_per_day) == (2.5, 8, 100)
    assert key.models == ("demo:vit", "demo:resnet")
    assert Gate([], path).enter({out.strip().encode()}) == key


def test_without_a_file_it_is_a_line_for_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["keys", "create", "a"]) == 0
    out, err = capsys.readouterr()
    name, _, value = err.splitlines()[-1].partition("=")
    monkeypatch.setenv(name, value)
    assert Gate(Settings().keys, None).enter({out.strip().encode()}).name == "a"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["create", "a b", "--file", "F"], "a b: is no name of a key"),
        (["create", "a", "--images-per-day", "5"], "add --file"),
        (["create", "a", "--file", "F", "--images-per-day", "0"], "a whole number from 1"),
        (["create", "there", "--file", "F"], "two keys 'there'"),
        (["create", "a", "--file", "F/x"], "cannot be written"),
        (["remove", "nobody", "--file", "F"], "no key 'nobody'. It has there"),
        (["list", "--file", "F.none"], "cannot be read"),
        (["list", "--file", "F", "--usage", "F.none"], "there is no file"),
        (["list", "--file", "F", "--usage", "F"], "not a database"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.toml"
    main(["keys", "create", "there", "--file", str(path)])
    before = path.read_bytes()
    capsys.readouterr()
    assert main(["keys", *(word.replace("F", str(path)) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert why in err
    assert path.read_bytes() == before


def test_keys_are_listed_with_limits_and_today_s_images_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, usage = tmp_path / "keys.toml", tmp_path / "usage"
    for name, flags in (("a", []), ("b", ["--images-per-day", "100000", "--requests-per-second", "20"])):
        main(["keys", "create", name, "--file", str(path), *flags])
    Usage(usage).images("b", 7, per_day=100)
    capsys.readouterr()
    assert main(["keys", "list", "--file", str(path), "--usage", str(usage)]) == 0
    table = capsys.readouterr().out
    assert re.search(r"b\s+20\s+any\s+100,000\s+7\s+any", table)
    main(["keys", "list", "--file", str(path), "--usage", str(usage), "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["images_today"]) for row in rows] == [("a", 0), ("b", 7)]
    assert "sha256" not in table + str(rows)
    assert main(["keys", "remove", "b", "--file", str(path)]) == 0
    assert [key.name for key in read_file(path)] == ["a"]


@pytest.mark.parametrize("words", [["keys"], ["keys", "create"], ["keys", "list"], ["keys", "remove"]])
def test_help_fits_80_columns(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_file_of_counts_is_made_by_serve_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Made by another command, it could be of a user whose files the server may not write."""
    path, usage = tmp_path / "keys.toml", tmp_path / "usage"
    main(["keys", "create", "a", "--file", str(path)])
    Settings(keys_file=path, keys_usage=usage)
    assert not usage.exists()
    capsys.readouterr()
    for wrong, why in ((path, "not a database"), (tmp_path / "nowhere" / "usage", "unable to open")):
        assert main(["serve", "--keys-file", str(path), "--keys-usage", str(wrong)]) == 2
        _, err = capsys.readouterr()
        assert (err.count("\n"), why in err) == (1, True)
        assert err.startswith("visiontower serve: --keys-usage: ")
