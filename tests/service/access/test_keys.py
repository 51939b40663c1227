"""Keys: found by their secrets, read from a file and from the environment, and what is wrong there is told."""

import re
from pathlib import Path

import pytest

from service.access.errors import ModelNotAllowed
from service.access.keys import (
    MOST_FILE_BYTES,
    Key,
    Keys,
    digest_of,
    entry_of,
    key_of,
    key_of_entry,
    new_secret,
    read_file,
    read_keys,
    written,
)

DIGEST = digest_of("vt_a").hex()


def test_a_new_secret_is_long_random_and_known_by_its_beginning() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(re.fullmatch(r"vt_[\w-]{43}", secret) for secret in secrets)


def test_a_key_is_found_by_its_secret_alone() -> None:
    keys = Keys([Key("a", digest_of("vt_a")), Key("b", digest_of("vt_b"))])
    found = keys.find(b"vt_b")
    assert found is not None
    assert found.name == "b"
    for wrong in (b"", b"vt_", b"vt_c", b"vt_b ", b"VT_B", DIGEST.encode(), b"b", "vt_ä".encode("latin-1"), b"\0" * 9):
        assert keys.find(wrong) is None


def test_a_secret_that_is_too_long_is_none() -> None:
    long = "x" * 600
    assert Keys([Key("a", digest_of(long))]).find(long.encode()) is None


def test_a_digest_that_only_begins_like_a_key_s_is_not_it() -> None:
    """Keys are found by the first bytes, and compared whole."""
    digest = digest_of("vt_a")
    almost = digest[:-1] + bytes([digest[-1] ^ 1])
    assert Keys([Key("a", almost)]).find(b"vt_a") is None


@pytest.mark.parametrize(("name", "why"), [("a", "two keys 'a'"), ("b", "'a' and 'b' are the same key")])
def test_two_keys_share_neither_name_nor_secret(name: str, why: str) -> None:
    other = DIGEST if name == "b" else digest_of("vt_other").hex()
    with pytest.raises(ValueError, match=why):
        Keys([key_of("a", {"sha256": DIGEST}), key_of(name, {"sha256": other})])


def test_what_is_written_is_read_again() -> None:
    keys = [
        Key("plain", digest_of("1")),
        Key("all-of_it", digest_of("2"), 0.5, 64, 100_000, ("demo:vit", "hf:/a b/ü")),
        Key("whole", digest_of("3"), requests_per_second=1_234_567.0),
    ]
    assert read_keys("\n".join(map(written, keys))) == keys
    assert key_of_entry(entry_of(keys[0])) == keys[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[a]\n", r"\[a\] has no sha256"),
        ("[a]\nsha256 = 'abc'", "64 hexadecimal digits"),
        (f"[a]\nsha256 = '{DIGEST.upper()}'", "in small letters"),
        ("[a]\nsha256 = 12", "64 hexadecimal digits"),
        (f"[a]\nsha256 = '{DIGEST}'\nrequest_per_second = 1", "unknown field.*Did you mean 'requests_per_second'"),
        (f"[a]\nsha256 = '{DIGEST}'\nimages_per_day = 0", "a whole number from 1, and not 0"),
        (f"[a]\nsha256 = '{DIGEST}'\nimages_per_day = 1.5", "a whole number from 1, and not 1.5"),
        (f"[a]\nsha256 = '{DIGEST}'\nimages_in_flight = true", "a whole number"),
        (f"[a]\nsha256 = '{DIGEST}'\nrequests_per_second = nan", "a number from 0.001"),
        (f"[a]\nsha256 = '{DIGEST}'\nrequests_per_second = -1", "a number from 0.001"),
        (f"[a]\nsha256 = '{DIGEST}'\nmodels = 'demo:vit'", "a list of encoder ids"),
        (f"[a]\nsha256 = '{DIGEST}'\nmodels = []", "a list of encoder ids"),
        (f"[a]\nsha256 = '{DIGEST}'\nmodels = ['a\"b']", "no encoder id"),
        (f"['a b']\nsha256 = '{DIGEST}'", "no name of a key"),
        (f"['{'x' * 65}']\nsha256 = '{DIGEST}'", "no name of a key"),
        (f"sha256 = '{DIGEST}'", "outside of a table"),
        ("[a", "at end of document"),
        ("\x00", "line 1"),
        ("a=" + "[" * 9999, "nested too deeply"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=why) as refused:
        read_file(path)
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("entry", ["a=", f"a={DIGEST}", f"a=md5:{DIGEST}", "a=sha256:", f"a b=sha256:{DIGEST}"])
def test_what_is_wrong_in_the_environment_is_told(entry: str) -> None:
    with pytest.raises(ValueError, match="'"):
        key_of_entry(entry)


@pytest.mark.parametrize("entry", ["", "a", "vt_secret"])
def test_a_key_in_place_of_its_digest_is_not_shown(entry: str) -> None:
    with pytest.raises(
        ValueError, match=r"^an entry is not NAME=sha256:DIGEST: visiontower keys create NAME prints it$"
    ):
        key_of_entry(entry)


def test_a_file_that_is_none_is_refused_and_an_empty_one_has_no_keys(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_file(tmp_path)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_file(tmp_path / "nothing")
    large = tmp_path / "large"
    large.write_bytes(b"#" * (MOST_FILE_BYTES + 1))
    with pytest.raises(ValueError, match="no file of keys"):
        read_file(large)
    large.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="it is not UTF-8"):
        read_file(large)
    large.write_bytes(b"")
    assert read_file(large) == []


def test_a_key_with_models_may_use_these_alone() -> None:
    key = Key("a", b"", models=("demo:vit",))
    key.require_model("demo:vit")
    assert key.usable(["demo:resnet", "demo:vit"]) == ["demo:vit"]
    with pytest.raises(ModelNotAllowed, match="It may use demo:vit"):
        key.require_model("demo:resnet")
    Key("b", b"").require_model("demo:resnet")
