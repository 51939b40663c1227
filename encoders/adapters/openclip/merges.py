"""The merges of a byte pair encoding, in a time that grows with the word and not with its square.

open_clip's SimpleTokenizer looks through the whole word for every merge, and keeps every word that it has seen.
"""

from collections.abc import Mapping
from functools import lru_cache
from heapq import heapify, heappop, heappush

_KEPT_WORDS = 16_384
_KEPT_CHARS = 64
"""Words up to this length are kept, the latest used. Longer ones are rarely words, and come once."""
_END = "</w>"


class Merges:
    """In place of SimpleTokenizer.bpe: a word in the alphabet of bytes -> its tokens, with spaces between them.

    ranks: of pairs of symbols; the lowest merges first, everywhere in the word, from left to right. whole: words that
    are tokens as they are.
    """

    def __init__(self, ranks: Mapping[tuple[str, str], int], *, whole: Mapping[str, str]) -> None:
        self._ranks = ranks
        self._whole = dict(whole)
        self._kept = lru_cache(_KEPT_WORDS)(self._merged)

    def __call__(self, word: str) -> str:
        """The tokens of the word."""
        if word in self._whole:
            return self._whole[word]
        return self._kept(word) if len(word) <= _KEPT_CHARS else self._merged(word)

    def _merged(self, word: str) -> str:
        symbols = [*word[:-1], word[-1] + _END]  # an empty one has been merged into one before it
        end = len(symbols)
        before, after = [*range(-1, end - 1)], [*range(1, end + 1)]  # the neighbours that are left
        waiting = []  # a heap: the rank of a pair, and where it begins
        for place in range(end - 1):
            if (rank := self._ranks.get((symbols[place], symbols[place + 1]))) is not None:
                waiting.append((rank, place))
        heapify(waiting)
        while waiting:
            lowest = waiting[0][0]
            merged = []
            while waiting and waiting[0][0] == lowest:  # all of one pair, before the pairs that come of them
                _, place = heappop(waiting)
                other = after[place]
                if other < end and self._ranks.get((symbols[place], symbols[other])) == lowest:
                    symbols[place] += symbols[other]
                    symbols[other] = ""
                    after[place] = after[other]
                    if after[place] < end:
                        before[after[place]] = place
                    merged.append(place)
            for left in {each for place in merged for each in (before[place], place)}:
                if left < 0 or after[left] == end:
                    continue
                if (rank := self._ranks.get((symbols[left], symbols[after[left]]))) is not None:
                    heappush(waiting, (rank, left))
        return " ".join(filter(None, symbols))
