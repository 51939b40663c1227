"""The sizes that nobody asked for before."""

from benchmarks.resident import sizes


def test_sizes_are_all_different_and_whole_patches() -> None:
    found = sizes(480, patch=16)
    assert len(set(found)) == 480
    assert all(side % 16 == 0 and side >= 32 for size in found for side in size)
