"""Print the licences of what a CycloneDX SBOM lists: `licences.py sbom.json`. One that names none is flagged."""

import json
import sys
from pathlib import Path
from typing import Any

NOT_NAMED = "NOT NAMED: look it up"


def licences(bom: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, version, licence) of each component, by name."""
    return sorted((each["name"], each.get("version", ""), _licence(each)) for each in bom["components"])


def _licence(component: dict[str, Any]) -> str:
    named = [_name(choice) for choice in component.get("licenses", [])]
    return " AND ".join(dict.fromkeys(filter(None, named))) or NOT_NAMED


def _name(choice: dict[str, Any]) -> str | None:
    """Of an SPDX expression, or of a licence by its SPDX id or by any name; None if only its text is there."""
    licence = choice.get("license", {})
    name: str | None = choice.get("expression") or licence.get("id") or licence.get("name")
    return name


if __name__ == "__main__":
    for name, version, licence in licences(json.loads(Path(sys.argv[1]).read_text())):
        print(f"{name:<32} {version:<24} {licence}")
