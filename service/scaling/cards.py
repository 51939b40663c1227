"""Cards by name, as NVIDIA's data sheets have them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """tflops: dense TFLOP/s in bfloat16 and float16 (the T4: float16), half of what is printed "with sparsity".

    memory_bytes: as printed, in GB of 10^9. The driver shows no less.
    """

    name: str
    tflops: float
    memory_bytes: int


CARDS = {
    name: Card(name, tflops, gigabytes * 10**9)
    for name, tflops, gigabytes in (
        ("t4", 65, 16),
        ("a10", 125, 24),
        ("a10g", 70, 24),
        ("a30", 165, 24),
        ("a100-40", 312, 40),
        ("a100-80", 312, 80),
        ("l4", 121, 24),
        ("l40", 181, 48),
        ("l40s", 362, 48),
        ("h100", 989, 80),
        ("h100-pcie", 757, 80),
        ("h100-nvl", 836, 94),
        ("h200", 989, 141),
        ("h200-nvl", 836, 141),
        ("b200", 2250, 180),
    )
}
"""Slowest families first. `h100`, `h200` and `b200` are the SXM modules."""


def card_of(name: str) -> Card:
    """Raises ValueError, which lists the known ones."""
    card = CARDS.get(name.lower())
    if card is None:
        raise ValueError(f"'{name}' is not known: choose one of {', '.join(CARDS)}")
    return card
