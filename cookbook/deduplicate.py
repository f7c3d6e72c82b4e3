"""Finding texts that say nearly the same, so that a test split holds nothing seen in training.

Two texts are compared by their runs of five words (5-grams), in lower case and without
punctuation. Their likeness is the number of shared runs divided by the runs of the one that has
fewer: 1.0 when one holds the other, and never less than their Jaccard index.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

RUN = 5  # words
SHORTEST = 8  # words; shorter texts have too few runs to compare and must be equal to count


@dataclass(frozen=True)
class _Text:
    """A text as it is compared."""

    words: str
    size: int  # number of its runs; 0 where it is too short to have any compared
    ranks: frozenset[int]  # those of its runs that occur elsewhere too, the rarest lowest


def near_duplicates(
    reference: Sequence[str], candidates: Sequence[str], threshold: float = 0.5
) -> list[int]:
    """Return the indices of the candidates that are nearly in `reference`, in rising order.

    A candidate counts when its likeness with any one reference text is `threshold` or more, or
    when their words are equal. Give the part of each row that tells rows apart, without the
    template around it: a long shared template makes everything alike.

    Raises ValueError unless 0 < threshold <= 1.
    """
    index = _Index(reference, candidates, threshold=threshold)
    for text in reference:
        index.add(text)
    return [number for number, text in enumerate(candidates) if index.holds(text)]


def near_duplicates_within(texts: Sequence[str], threshold: float = 0.5) -> list[int]:
    """Return the indices of the texts that are nearly an earlier, kept text, in rising order.

    Dropping them leaves a list in which no two texts are near-duplicates of each other.
    Raises ValueError unless 0 < threshold <= 1.
    """
    index = _Index(texts, threshold=threshold)
    found = []
    for number, text in enumerate(texts):
        if index.holds(text):
            found.append(number)
        else:
            index.add(text)
    return found


class _Index:
    """Texts to compare with, found through their rare runs.

    Comparing every text with every other would be slow where many share common runs, so a text is
    looked up by its rarest runs alone. Nothing is missed: of two texts that share k of their n
    runs, the n - k + 1 rarest of either hold at least one shared run.
    """

    def __init__(self, *lists: Sequence[str], threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, not {threshold}")
        self._threshold = threshold
        self._ranks = _ranks(text for texts in lists for text in texts)
        self._words: set[str] = set()
        self._texts: list[_Text] = []
        self._by_run: dict[int, list[int]] = defaultdict(list)
        self._by_rare_run: dict[int, list[int]] = defaultdict(list)

    def add(self, text: str) -> None:
        read = self._read(text)
        self._words.add(read.words)
        for rank in read.ranks:
            self._by_run[rank].append(len(self._texts))
        for rank in self._rarest(read):
            self._by_rare_run[rank].append(len(self._texts))
        self._texts.append(read)

    def holds(self, text: str) -> bool:
        read = self._read(text)
        # The rule on rare runs holds for the text with fewer runs: this one or the other.
        of_rare, of_any = self._rarest(read), read.ranks
        found = chain(_numbers(self._by_run, of_rare), _numbers(self._by_rare_run, of_any))
        return read.words in self._words or any(
            self._alike(read, self._texts[number]) for number in dict.fromkeys(found)
        )

    def _alike(self, one: _Text, other: _Text) -> bool:
        return len(one.ranks & other.ranks) >= self._enough(min(one.size, other.size))

    def _read(self, text: str) -> _Text:
        words = _words(text)
        runs = _runs(words)
        known = frozenset(self._ranks[run] for run in runs if run in self._ranks)
        return _Text(" ".join(words), len(runs), known)

    def _rarest(self, text: _Text) -> list[int]:
        # Runs found nowhere else are the rarest of all, and lead to no other text.
        unshared = text.size - len(text.ranks)
        rarest = text.size - self._enough(text.size) + 1
        return sorted(text.ranks)[: max(rarest - unshared, 0)]

    def _enough(self, size: int) -> int:
        # Rounded, since 0.55 * 20 is a little over 11 in floating point.
        return math.ceil(round(self._threshold * size, 9))


def _ranks(texts: Iterable[str]) -> dict[str, int]:
    counts = Counter(run for text in texts for run in _runs(_words(text)))
    repeated = [(count, run) for run, count in counts.items() if count > 1]
    return {run: rank for rank, (_, run) in enumerate(sorted(repeated))}


def _numbers(index: dict[int, list[int]], ranks: Iterable[int]) -> Iterator[int]:
    for rank in ranks:
        yield from index.get(rank, ())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _runs(words: Sequence[str]) -> set[str]:
    if len(words) < SHORTEST:
        return set()
    return {" ".join(words[start : start + RUN]) for start in range(len(words) - RUN + 1)}
