"""Baselines that only count: how frequent is a token, and how often does it follow another one?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


class Counts:
    """The single tokens and the pairs of neighbours in blocks of token ids (blocks, length)."""

    def __init__(self, blocks: ArrayLike, vocabulary: int) -> None:
        ids = np.asarray(blocks, dtype=np.int64)
        self._vocabulary = vocabulary
        self._singles = np.bincount(ids.ravel(), minlength=vocabulary) + 1
        codes = ids[:, :-1] * vocabulary + ids[:, 1:]
        self._pairs, self._pair_counts = np.unique(codes, return_counts=True)
        first, second = np.divmod(self._pairs, vocabulary)
        self._total = np.bincount(first, weights=self._pair_counts, minlength=vocabulary)
        self._kinds = np.bincount(first, minlength=vocabulary)  # different tokens after each
        follows = np.bincount(second, minlength=vocabulary) + 1  # different tokens before each
        self._follows = follows / follows.sum()

    def unigram(self, tokens: ArrayLike) -> Floats:
        """Return how probable each token is, whatever stands before it; one is added to counts."""
        found: Floats = (self._singles / self._singles.sum())[np.asarray(tokens)]
        return found

    def bigram(self, first: ArrayLike, second: ArrayLike, discount: float = 0.75) -> Floats:
        """Return how probable each token of `second` is after that of `first`.

        Interpolated Kneser-Ney smoothing, the best of the classical methods (Chen and Goodman,
        1998, https://dash.harvard.edu/handle/1/25104739): `discount` is taken from each pair's
        count, and what was taken goes to tokens by how many different ones they follow.
        """
        before, after = np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64)
        code = before * self._vocabulary + after
        place = np.searchsorted(self._pairs, code).clip(max=len(self._pairs) - 1)
        seen = np.where(self._pairs[place] == code, self._pair_counts[place], 0)
        total = np.maximum(self._total[before], 1)
        taken = discount * self._kinds[before] / total
        spared = np.where(self._total[before] > 0, taken, 1.0)
        found: Floats = np.maximum(seen - discount, 0) / total + spared * self._follows[after]
        return found

    def unigram_losses(self, blocks: Sequence[Any]) -> list[float]:
        """Return the mean loss of each block in nats a token, its first one left out."""
        ids = np.asarray(blocks, dtype=np.int64)
        return _losses(self.unigram(ids[:, 1:]))

    def bigram_losses(self, blocks: Sequence[Any]) -> list[float]:
        """Return the mean loss of each block in nats a token, its first one left out."""
        ids = np.asarray(blocks, dtype=np.int64)
        return _losses(self.bigram(ids[:, :-1], ids[:, 1:]))


def _losses(probabilities: Floats) -> list[float]:
    return [float(one) for one in (-np.log(probabilities)).mean(axis=1)]
