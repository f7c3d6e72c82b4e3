"""The counting baselines give the probabilities that one gets by hand."""

import math

import numpy as np
import pytest

from cookbook.counting import Counts

pytestmark = pytest.mark.unit

# Of tokens 0 to 3: 0 before 1 three times, 1 before 0 twice, 0 before 2 once. Nothing follows 2,
# and 3 never occurs.
BLOCKS = [[0, 1, 0, 1], [0, 1, 0, 2]]


def test_a_unigram_is_the_share_of_a_token_with_one_added() -> None:
    found = Counts(BLOCKS, 4).unigram([0, 1, 2, 3])
    assert found.tolist() == pytest.approx([5 / 12, 4 / 12, 2 / 12, 1 / 12])


def test_a_bigram_is_what_kneser_ney_give_by_hand() -> None:
    """Pairs: 01 three times, 10 twice, 02 once. After 0 there are 2 kinds in 4, after 1 one in 2.

    Different tokens before 0: one, before 1: one, before 2: one, before 3: none; one added to each
    these are 2, 2, 2 and 1 of 7.
    """
    counts = Counts(BLOCKS, 4)
    found = counts.bigram([0, 0, 0, 1, 2], [1, 2, 3, 0, 1])
    spared = 0.75 * 2 / 4
    assert found.tolist() == pytest.approx(
        [
            2.25 / 4 + spared * 2 / 7,
            0.25 / 4 + spared * 2 / 7,
            spared * 1 / 7,
            1.25 / 2 + 0.75 * 1 / 2 * 2 / 7,
            2 / 7,  # nothing was seen after it
        ]
    )
    for first in range(4):
        assert counts.bigram([first] * 4, range(4)).sum() == pytest.approx(1)


def test_losses_are_means_over_all_tokens_of_a_block_but_its_first() -> None:
    counts = Counts(BLOCKS, 4)
    rows = [[0, 1, 0], [2, 3, 3]]
    unigram = [-(math.log(4 / 12) + math.log(5 / 12)) / 2, -math.log(1 / 12)]
    assert counts.unigram_losses(rows) == pytest.approx(unigram)
    bigram = [-float(np.log(counts.bigram(one[:-1], one[1:])).mean()) for one in rows]
    assert counts.bigram_losses(rows) == pytest.approx(bigram)
