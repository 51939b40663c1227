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
    """The SPDX identifiers, or else the names that the package's classifiers give."""
    choices = component.get("licenses", [])
    spdx = [choice.get("expression") or choice.get("license", {}).get("id") for choice in choices]
    names = [choice.get("license", {}).get("name", "").rpartition(" :: ")[2] for choice in choices]
    named = [each for each in spdx if each] or [each for each in names if each]
    return " AND ".join(dict.fromkeys(named)) or NOT_NAMED


if __name__ == "__main__":
    for name, version, licence in licences(json.loads(Path(sys.argv[1]).read_text())):
        print(f"{name:<32} {version:<24} {licence}")
