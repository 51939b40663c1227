"""docs/client.md and client/README.md: their Python runs, in order, and their names are there."""

import re
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

import visiontower_client
from encoders.adapters.fake import FakeEncoder, fake_spec
from service.http.protocols.native import PROTOCOL
from tests.client.support import listening
from tests.support.paths import ROOT
from tests.support.serving import noise

PAGE = (ROOT / "docs" / "client.md").read_text()
README = (ROOT / "client" / "README.md").read_text()


@pytest.mark.parametrize("page", [PAGE, README], ids=["docs/client.md", "client/README.md"])
def test_its_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one program, against a server; photos/ has three images."""
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        (tmp_path / "photos" / f"{seed}.jpg").write_bytes(noise(seed))
    monkeypatch.chdir(tmp_path)
    serves_classify = any(route.path == "/classify" for route in PROTOCOL.routes)
    names: dict[str, Any] = {"__name__": "example"}
    with listening(FakeEncoder(fake_spec("demo:vit"))) as address:
        examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
        assert examples
        for example in examples:
            if "classify(" in example and not serves_classify:
                continue
            exec(example.replace("http://127.0.0.1:8000", address), names)
    assert names["vectors"].shape == (3, 6)
    assert (names["queries"] @ names["vectors"].T).shape == (2, 3)


def test_every_exception_is_in_the_table() -> None:
    table = PAGE.split("| exception |")[1].split("\n\n")[0]
    errors = {
        name
        for name in visiontower_client.__all__
        if isinstance(getattr(visiontower_client, name), type)
        and issubclass(getattr(visiontower_client, name), Exception)
    }
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == errors - {"VisiontowerError"}


def test_the_defaults_are_those_of_the_code() -> None:
    client = visiontower_client.AsyncClient
    known = {**signature(client).parameters, **signature(client.embed).parameters}
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.split("| setting |")[1].split("\n\n")[0], flags=re.MULTILINE)
    assert len(rows) == 5
    for name, default in rows:
        assert default == ("none" if known[name].default is None else f"{known[name].default:g}")
