"""Access keys: what each may do, and the TOML file in which they stand by their digests.

    [search-team]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    requests_per_second = 20
    images_in_flight = 64
    images_per_day = 100000
    models = ["demo:vit"]

A key has 256 random bits. Nobody finds it by trying, so a digest that is fast to compute protects it as well as a slow
one would. A password in its place would not be protected.
"""

import hmac
import re
import secrets
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path

from service.access.errors import ModelNotAllowed
from service.errors import did_you_mean, shown, shown_value

PREFIX = "vt_"
"""Of a key, so that it is known where it should not be: a scanner for leaked secrets finds it by this."""
MOST_FILE_BYTES = 1 << 20
_RANDOM_BYTES = 32
_MOST_BYTES = 512
"""Of what is presented as a key. More is not hashed."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""A bare key of TOML, and a label of metrics."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FOUND_BY = 8
"""Bytes of a digest by which a key is found, before the whole is compared."""


@dataclass(frozen=True)
class Key:
    """Who it is and what it may do; None: no limit. digest: SHA-256 of the secret.

    requests_per_second: of all its requests, in any second. images_in_flight: being worked on at once, by one server
    process. images_per_day: of the calendar in UTC. models: ids of encoders.
    """

    name: str
    digest: bytes
    requests_per_second: float | None = None
    images_in_flight: int | None = None
    images_per_day: int | None = None
    models: tuple[str, ...] | None = None

    def require_model(self, model: str) -> None:
        """Raises ModelNotAllowed."""
        if self.models is not None and model not in self.models:
            raise ModelNotAllowed(model, key=self.name, allowed=self.models)

    def usable(self, models: Sequence[str]) -> list[str]:
        """Those of these encoders that it may use."""
        return [model for model in models if self.models is None or model in self.models]


LIMITS = tuple(each.name for each in fields(Key) if each.name not in ("name", "digest"))
_LEAST = {"requests_per_second": 0.001, "images_in_flight": 1, "images_per_day": 1}


class Keys:
    """Access keys, none of whose names or secrets is another's."""

    def __init__(self, keys: Iterable[Key]) -> None:
        """Raises ValueError if two have the same name or secret."""
        self.by_name: dict[str, Key] = {}
        self._by_beginning: dict[bytes, Key] = {}
        for key in keys:
            same = self._by_beginning.setdefault(key.digest[:_FOUND_BY], key)
            if key.name in self.by_name:
                raise ValueError(f"there are two keys '{key.name}'")
            if same is not key:
                raise ValueError(f"'{same.name}' and '{key.name}' are the same key: create another one")
            self.by_name[key.name] = key

    def find(self, secret: bytes) -> Key | None:
        """The key of this secret.

        Digests are compared, in constant time: how long it takes tells nothing of a secret.
        """
        if len(secret) > _MOST_BYTES:
            return None
        digest = sha256(secret).digest()
        key = self._by_beginning.get(digest[:_FOUND_BY])
        return key if key is not None and hmac.compare_digest(key.digest, digest) else None


def new_secret() -> str:
    """For a new key: 46 characters, 256 bits of them random."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_of(secret: str) -> bytes:
    """Under which the key is known."""
    return sha256(secret.encode()).digest()


def key_of_entry(entry: str) -> Key:
    """NAME=sha256:DIGEST, of the environment. Raises ValueError."""
    name, equals, digest = entry.partition("=")
    if not equals:  # it may be a key: it is not shown
        raise ValueError("an entry is not NAME=sha256:DIGEST: visiontower keys create NAME prints it")
    kind, _, digits = digest.strip().partition(":")
    if kind != "sha256":
        raise ValueError(f"'{shown(name.strip())}' is not NAME=sha256:DIGEST: visiontower keys create NAME prints it")
    try:
        return key_of(name.strip(), {"sha256": digits})
    except ValueError as error:
        raise ValueError(f"'{shown(name.strip())}' {error}") from error


def entry_of(key: Key) -> str:
    """As `key_of_entry` reads it."""
    return f"{key.name}=sha256:{key.digest.hex()}"


def read_file(path: Path) -> list[Key]:
    """The keys of a TOML file. Raises ValueError, which names the file and what is wrong in it."""
    text = text_of(path)
    try:
        return read_keys(text)
    except ValueError as error:  # of TOML too
        raise ValueError(f"{path}: {error}") from error


def text_of(path: Path) -> str:
    """Of a file of keys; editors of Windows put a byte order mark before it. Raises ValueError, which names it."""
    try:
        return content_of(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read: it is not UTF-8") from error


def content_of(path: Path) -> bytes:
    """Of a file of keys. Raises ValueError, which names the file."""
    try:
        if path.is_fifo():  # who opens one waits, perhaps for ever
            raise ValueError(f"{path} is a pipe: the keys are read from a file, again and again")
        with path.open("rb") as file:
            content = file.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MOST_FILE_BYTES:
        raise ValueError(f"{path} is no file of keys: it has over {MOST_FILE_BYTES:,} bytes")
    return content


def read_keys(text: str) -> list[Key]:
    """A table a key. Raises ValueError."""
    keys = []
    for name, table in tables_of(text).items():
        if not isinstance(table, dict):
            raise ValueError(f"'{name}' stands outside of a table: a key is [NAME] and its fields below")
        try:
            keys.append(key_of(name, table))
        except ValueError as error:
            raise ValueError(f"[{shown(name)}] {error}") from error
    return keys


def tables_of(text: str) -> dict[str, object]:
    """Of TOML. Raises ValueError."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def written(key: Key) -> str:
    """The key's table, as `read_keys` reads it."""
    lines = [f"[{key.name}]", f'sha256 = "{key.digest.hex()}"']
    for name in LIMITS:
        value = getattr(key, name)
        if isinstance(value, tuple):
            value = "[" + ", ".join(f'"{each}"' for each in value) + "]"
        if value is not None:
            lines.append(f"{name} = {str(value).removesuffix('.0')}")
    return "\n".join(lines) + "\n"


def key_of(name: str, table: Mapping[str, object]) -> Key:
    """The key of a name and its fields. Raises ValueError, which says what is wrong."""
    if not _NAME.fullmatch(name):
        raise ValueError("is no name of a key: it has up to 64 letters, digits, - and _")
    for field in table:
        if field != "sha256" and field not in LIMITS:
            hint = did_you_mean(field, LIMITS)
            raise ValueError(f"has an unknown field '{field}'.{hint} Known: sha256, {', '.join(LIMITS)}")
    if "sha256" not in table:
        raise ValueError("has no sha256: visiontower keys create NAME prints it")
    limits = {field: _limit(field, table[field]) for field in LIMITS if field in table}
    return Key(name, _digest(table["sha256"]), **limits)  # type: ignore[arg-type]  # each is checked by its field


def _limit(field: str, value: object) -> object:
    """Raises ValueError for what the field cannot be."""
    if field == "models":
        if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
            raise ValueError('models is a list of encoder ids, as in ["demo:vit"]')
        if bad := next((each for each in value if not each.isprintable() or '"' in each or "\\" in each), None):
            raise ValueError(f"models has {bad!r}, which is no encoder id")
        return tuple(value)
    kinds = (int, float) if field == "requests_per_second" else (int,)
    least, most = _LEAST[field], 10**12
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "a number" if float in kinds else "a whole number"
        raise ValueError(f"{field} is {kind} from {least:g}, and not {shown_value(value)}")
    return value


def _digest(digits: object) -> bytes:
    if not isinstance(digits, str) or not _DIGEST.fullmatch(digits):
        raise ValueError("sha256 has 64 hexadecimal digits, in small letters: visiontower keys create NAME prints them")
    return bytes.fromhex(digits)
