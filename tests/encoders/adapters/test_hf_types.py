"""The types of transformers that are supported, as the documentation lists them."""

import json
import re
from pathlib import Path

import pytest

from encoders import load
from encoders.contract.errors import EncoderIdError
from tests.support.paths import ROOT


def test_the_docs_list_every_type_that_is_supported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(EncoderIdError, match="'bert'") as caught:
        load(f"hf:{tmp_path}")
    supported: set[str] = set(caught.value.facts["supported"])  # type: ignore[call-overload]  # facts are objects
    text = (ROOT / "docs" / "encoders.md").read_text()
    assert supported <= set(re.findall(r"`([\w-]+)`", text))
    section = text.partition("## Types of transformers")[2].partition("\n## ")[0]
    listed = {
        name for row in re.findall(r"^\| (`.+?) \|", section, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)
    }
    assert listed <= supported
