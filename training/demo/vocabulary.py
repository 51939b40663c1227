"""The reduced merges file: which of CLIP's byte-pair merges the demo text tower knows.

`python -m training.demo.vocabulary` writes it again, byte for byte, from the merges that open_clip carries.
Every word of a caption, and every word below, becomes the same token strings as with CLIP's full vocabulary;
other words fall into sub-words. Keeping few merges makes the token table 0.4 MB instead of 12.6 MB.
"""

import gzip
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, default_bpe

from encoders.adapters.demo.vocabulary import MERGES, tokenizer
from training.demo.world import COLOUR_NAMES, CONJUNCTIONS, SHAPE_NAMES, TEMPLATES, THING_NAMES

_FIRST_MERGES = 600


def _words_of(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Words that people try: the text tower learns to put them, and random sub-words, apart from all that it can see.
OTHER_NOUNS = _words_of("""
    dog cat person man woman child horse cow sheep bird bear elephant zebra giraffe lion tiger mouse rabbit
    snake bicycle motorcycle airplane bus train truck bench chair table sofa bed lamp clock vase book phone
    laptop keyboard television bottle glass cup fork knife spoon bowl banana apple sandwich orange broccoli
    carrot pizza cake bread mountain beach river forest street city road bridge building window door kitchen
    bathroom ball kite guitar piano shoe hat shirt dress watch ring box bag camera computer robot rocket plane
    helicopter ship dinosaur dragon frog butterfly bee spider leaf rose grass snow rain fire water rock castle
    tower church tent
    """)
_MORE_WORDS = _words_of("""
    the an of on in at to is are with and or no not one two three some many small big large little left right
    above below under over beside behind front photo photograph sketch painting cartoon background shape thing
    object something nothing scene empty plain grey gray brown pink cyan magenta dark light bright pale colour
    color coloured colored crescent diamond oval rectangle hexagon moon it this that there
    """)


def words() -> list[str]:
    """All words whose tokens must equal CLIP's, plurals included."""
    said = " ".join([*TEMPLATES, *CONJUNCTIONS]).replace("{}", " ").split()
    nouns = [*SHAPE_NAMES, *THING_NAMES, *OTHER_NOUNS]
    plurals = [f"{noun}es" if noun.endswith(("s", "sh", "x", "ch")) else f"{noun}s" for noun in nouns]
    return sorted({*said, *nouns, *plurals, *COLOUR_NAMES, *_MORE_WORDS, "snowmen", "fish"})


def write_merges(path: Path = MERGES) -> int:
    """Writes the reduced merges, in CLIP's order, under one header line; returns how many."""
    with gzip.open(default_bpe()) as carried:
        header, *merges = carried.read().decode("utf-8").split("\n")[: 49152 - 256 - 2 + 1]
    rank = {"".join(merge.split()): number for number, merge in reversed(list(enumerate(merges)))}
    keep = set(range(_FIRST_MERGES))
    full = SimpleTokenizer()
    for word in words():
        pending = full.bpe("".join(full.byte_encoder[byte] for byte in word.encode("utf-8"))).split(" ")
        while pending:  # a kept token needs the merges of both its halves
            number = rank.get(pending.pop())
            if number is not None:
                keep.add(number)
                pending += merges[number].split()
    text = "\n".join([header, *(merges[number] for number in sorted(keep))])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
    return len(keep)


if __name__ == "__main__":
    print(f"{write_merges()} merges, vocabulary of {tokenizer().vocab_size}: {MERGES.name}")
