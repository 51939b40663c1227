"""Settings: defaults, the environment, what is refused, and the generated table."""

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from service.run.workers import share
from service.settings import PREFIX, Settings, settings_table


def test_the_demo_encoders_are_served_by_default() -> None:
    assert Settings().model == ("demo:vit", "demo:resnet", "demo:convnext")
    assert (Settings().host, Settings().port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize("value", ["fake:a,fake:b", " fake:a , fake:b ,", '["fake:a", "fake:b"]'])
def test_a_variable_may_list_models_either_way(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("VISIONTOWER_MODEL", value)
    assert Settings().model == ("fake:a", "fake:b")


@pytest.mark.parametrize("value", ["[fake:a", '["fake:a",', "[" * 100_000])
def test_a_list_that_is_no_json_says_how_one_is_written(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("VISIONTOWER_MODEL", value)
    with pytest.raises(ValidationError, match="write a,b"):
        Settings()


@pytest.mark.parametrize("name", ["HOST", "KEYS", "KEYS_FILE", "KEYS_USAGE", "CALIBRATION"])
@pytest.mark.parametrize("value", ["", " ", ","])
def test_a_variable_without_a_value_opens_nothing(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """No host is every address, and no keys let everybody in."""
    monkeypatch.setenv(f"VISIONTOWER_{name}", value)
    with pytest.raises(ValidationError, match="it is empty: give it a value, or leave it out"):
        Settings()


@pytest.mark.parametrize("flags", [["openai,native"], ["openai", "native"], ["openai", "native,openai"]])
def test_protocols_may_be_named_in_one_flag_or_in_several(flags: list[str]) -> None:
    assert Settings(protocols=flags).protocols == ("openai", "native")  # type: ignore[arg-type]  # as flags have it


@pytest.mark.parametrize("value", ["opneai", "native,opneai", '["opneai"]'])
def test_a_misspelt_protocol_is_one_error_with_a_suggestion(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("VISIONTOWER_PROTOCOLS", value)
    with pytest.raises(ValidationError, match="Did you mean 'openai'") as refused:
        Settings()
    assert len(refused.value.errors()) == 1


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONTOWER_PORT", "9000")
    assert Settings().port == 9000
    assert Settings(port=9001).port == 9001


def test_a_misspelt_variable_is_an_error_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONTOWER_QUEUE_IMAGE", "9")
    with pytest.raises(SettingsError, match="Did you mean 'VISIONTOWER_QUEUE_IMAGES'"):
        Settings()


def test_other_programs_variables_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION_PORT", "x")
    Settings()


@pytest.mark.parametrize(
    "wrong",
    [
        {"prot": 1},
        {"port": 70_000},
        {"model": ()},
        {"model": ("fake:a", "fake:a")},
        {"max_images": 0},
        {"max_images": 500},  # more than may queue
        {"vram_budget": 2**30, "cuda_graph_bytes": 2**30},
        {"max_texts": 10_000},
        {"max_image_pixels": 178_956_971},
        {"preprocess_threads": 0},
        {"preprocess_threads": "many"},
        {"dtype": "int4"},
        {"request_timeout_s": 0},
        {"drain_timeout_s": "inf"},
    ],
    ids=str,
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type]  # wrong on purpose


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_the_table_has_every_setting_with_its_meaning() -> None:
    rows = settings_table().splitlines()[2:]
    assert len(rows) == len(Settings.model_fields)
    for row, (name, field) in zip(rows, Settings.model_fields.items(), strict=True):
        assert f"`{PREFIX}{name.upper()}`" in row
        assert field.description
        assert field.description in row
        assert row.count("|") == 5


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_number_has_its_unit_or_what_it_counts_in_its_name(name: str) -> None:
    units = (
        "_s",
        "_bytes",
        "_pixels",
        "_images",
        "_texts",
        "_plans",
        "_connections",
        "_chars",
        "_values",
        "_threads",
        "_share",
        "cache",
        "cache_disk",
        "batch",
        "port",
        "processes",
    )
    default = Settings.model_fields[name].default
    if isinstance(default, int | float) and not isinstance(default, bool):
        assert name.endswith(units)


def test_a_set_of_labels_is_a_file_of_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "animals.txt"
    file.write_bytes("\ufeffcat\r\n\n  a horse \ncat\nK\u00e4fer".encode())
    assert Settings(labels=(f"animals={file}",)).label_sets == {"animals": ("cat", "a horse", "K\u00e4fer")}
    assert Settings().label_sets == {}


def test_the_labels_are_those_at_start_in_every_process_whenever_it_starts(tmp_path: Path) -> None:
    file = tmp_path / "animals.txt"
    file.write_text("cat")
    settings = Settings(labels=(f"animals={file}",), processes=2)
    file.unlink()
    assert pickle.loads(pickle.dumps(share(settings))).label_sets == {"animals": ("cat",)}


@pytest.mark.parametrize(
    ("entry", "content", "words"),
    [
        ("{file}", b"cat", "is not NAME=FILE, as in animals=animals.txt"),
        ("={file}", b"cat", "is not NAME=FILE"),
        ("animals=", b"cat", "is not NAME=FILE"),
        ("animals={file}.nowhere", b"cat", "cannot be read from {file}.nowhere: No such file"),
        ("animals={folder}", b"cat", "Is a directory"),
        ("animals={file}", b"\xff\xfe", "it is not UTF-8"),
        ("animals={file}", b" \n\n", "{file} has no label"),
        ("animals={file}", b"x" * 1001, "a label of 1,001 characters"),
        ("animals={file},animals={file}", b"cat", "named twice in animals, animals"),
    ],
)
def test_labels_that_cannot_be_read_are_refused_at_start(
    tmp_path: Path, entry: str, content: bytes, words: str
) -> None:
    file = tmp_path / "animals.txt"
    file.write_bytes(content)
    with pytest.raises(ValidationError) as refused:
        Settings(labels=entry.format(file=file, folder=tmp_path))  # type: ignore[arg-type]  # as a variable has it
    assert words.format(file=file) in refused.value.errors()[0]["msg"]
    assert refused.value.errors()[0]["loc"] == ("labels",)


@pytest.mark.parametrize("name", ["cache", "cache_disk", "text_cache_bytes"])
def test_what_is_no_amount_of_memory_is_told_what_one_is(name: str) -> None:
    for word in ("auto", "lots", "-1MiB"):
        with pytest.raises(ValidationError, match=f"'{word}' is not an amount of memory: expected for example 24GiB"):
            Settings.model_validate({name: word})
    assert Settings(vram_budget="auto", memory_budget="auto") == Settings()
