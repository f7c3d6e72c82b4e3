"""The near-duplicate search must find exactly what comparing every pair finds."""

import random
import re

import pytest

from cookbook.deduplicate import near_duplicates, near_duplicates_within

pytestmark = pytest.mark.unit

SENTENCE = "the quick brown fox jumps over the lazy dog near the old river bank at noon"


def likeness(one: str, other: str) -> float:
    """Return the likeness of two texts the slow and obvious way."""
    words = [re.findall(r"\w+", text.lower()) for text in (one, other)]
    if words[0] == words[1]:
        return 1.0
    if min(map(len, words)) < 8:
        return 0.0
    runs = [{tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in words]
    return len(runs[0] & runs[1]) / min(map(len, runs))


def texts(seed: int, count: int) -> list[str]:
    """Return texts that share passages of all lengths, some with a common template."""
    fixed, mixed = random.Random(0), random.Random(seed)
    passages = [" ".join(fixed.choices("abcdefghijklmnop", k=9)) for _ in range(40)]
    made = []
    for _ in range(count):
        parts = mixed.choices(passages, k=mixed.randrange(1, 4))
        parts.insert(0, " ".join(mixed.choices("qrstuvwxyz", k=mixed.randrange(16))))
        template = "please answer this question as well as you can: " * mixed.randrange(2)
        made.append(template + " ".join(parts))
    return made


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.55, 0.7, 1.0])
def test_finds_what_comparing_every_pair_finds(threshold: float) -> None:
    reference, candidates = texts(1, 60), texts(2, 120)
    slow = [
        number
        for number, text in enumerate(candidates)
        if any(likeness(text, other) >= threshold for other in reference)
    ]
    assert near_duplicates(reference, candidates, threshold) == slow
    assert 0 < len(slow) and (threshold < 0.3 or len(slow) < len(candidates))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_within_a_list_keeps_the_first_of_each_kind(threshold: float) -> None:
    given = texts(3, 150)
    found = near_duplicates_within(given, threshold)
    kept: list[str] = []
    slow = []
    for number, text in enumerate(given):
        if any(likeness(text, other) >= threshold for other in kept):
            slow.append(number)
        else:
            kept.append(text)
    assert found == slow
    assert 0 < len(found) < len(given)


def test_case_and_punctuation_do_not_matter() -> None:
    assert near_duplicates([SENTENCE], [SENTENCE.title().replace(" ", ", ") + "!"]) == [0]


def test_a_text_inside_a_longer_one_counts_either_way() -> None:
    longer = f"{SENTENCE} and then it sleeps under a tall green tree until the sun goes down again"
    assert near_duplicates([longer], [SENTENCE]) == [0]
    assert near_duplicates([SENTENCE], [longer]) == [0]


def test_short_texts_must_be_equal() -> None:
    assert near_duplicates(["What is 2 + 3?"], ["what is 2 + 3", "What is 2 + 4?"]) == [0]


def test_nothing_to_compare_with() -> None:
    assert near_duplicates([], [SENTENCE, ""]) == []
    assert near_duplicates([SENTENCE], []) == []


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1])
def test_threshold_out_of_range(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold must be"):
        near_duplicates([], [], threshold)
