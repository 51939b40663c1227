"""The demo text towers' vocabulary: a part of CLIP's byte-pair merges, chosen by training/demo/vocabulary.py."""

from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer

WEIGHTS = Path(__file__).parent / "weights"
MERGES = WEIGHTS / "merges.txt.gz"
CONTEXT_LENGTH = 16


def tokenizer(path: Path = MERGES) -> SimpleTokenizer:
    """open_clip's tokenizer over the reduced merges."""
    return SimpleTokenizer(bpe_path=str(path), context_length=CONTEXT_LENGTH)
