"""Where things lie in the checkout."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

ANIMALS = ROOT / "tests" / "support" / "animals.txt"
"""A set of labels."""
