"""What the built editorials promise. Needs `make offline`."""

import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cookbook.offline import builders, sources
from tests.unit.products import rows

pytestmark = pytest.mark.unit


def test_editorials_have_every_label_and_enough_of_each() -> None:
    train, test = rows("editorial-sentiment", "train"), rows("editorial-sentiment", "test")
    finance = [row for row in test if row["finance"]]
    assert len(train) >= 2500
    assert 600 <= len(test) <= len(train) / 2
    assert 200 <= len(finance) <= len(test) / 2
    for split in (train, test, finance):
        counts = Counter(row["label"] for row in split)
        assert set(counts) == {"negative", "neutral", "positive"}
        assert min(counts.values()) > 0.1 * len(split), counts
    for row in train + test:
        assert list(row) == ["text", "label", "finance"]
        assert row["text"].strip()


def test_no_training_sentence_is_on_finance() -> None:
    train = rows("editorial-sentiment", "train")
    assert not any(row["finance"] or builders.FINANCE.search(row["text"]) for row in train)
    for row in rows("editorial-sentiment", "test"):
        assert row["finance"] == bool(builders.FINANCE.search(row["text"])), row


RATINGS = {
    "-4": "negative",
    "-0.5": "negative",
    "-0.45": "neutral",
    "0": "neutral",
    "0.45": "neutral",
    "0.5": "positive",
    "3.9": "positive",
}


@pytest.fixture
def editorials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """Return what becomes of 60 editorials with one sentence a rating; the seventh is on finance.

    Number 8 has a sentence that opens a quotation and never closes it.
    """
    lines = [
        f"{number}_{place}\t{rating}\tEditorial {number} says it with {rating}."
        for number in range(60)
        for place, rating in enumerate(RATINGS)
    ]
    quoting = lines.index("8_3\t0\tEditorial 8 says it with 0.")
    lines[quoting] = '8_3\t0\t"Editorial 8 says it with 0.'
    on_finance = lines.index("7_6\t3.9\tEditorial 7 says it with 3.9.")
    lines[on_finance] = "7_6\t3.9\tEditorial 7 says that stocks rose with 3.9."
    path = sources.EDITORIALS.path
    text = tmp_path / "ratings.txt"
    text.write_text("\n".join(lines) + "\n", encoding="ascii")
    inner = tmp_path / "members" / "0-inner.tar.gz"
    inner.parent.mkdir()
    with tarfile.open(inner, "w:gz") as tar:
        tar.add(text, arcname=path)
    monkeypatch.setattr(builders, "EDITORIALS", sources.Member(path, text.stat().st_size))
    folder = tmp_path / "product"
    folder.mkdir()
    facts = builders.editorial_sentiment({"resources/inner.tar.gz": inner}, folder)
    made = {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").open(encoding="utf-8")]
        for split in ("train", "test")
    }
    counted = {split: len(found) for split, found in made.items()}
    assert facts == {**counted, "finance": 1}
    return made


def numbers(found: Sequence[dict[str, Any]]) -> set[int]:
    return {int(row["text"].split()[1]) for row in found}


def test_no_editorial_is_in_both_splits(editorials: dict[str, list[dict[str, Any]]]) -> None:
    train, test = numbers(editorials["train"]), numbers(editorials["test"])
    assert not train & test
    assert train | test == set(range(60))
    assert len(train) > 40 and len(test) > 3
    # All sentences of all editorials, but what the one on finance says besides.
    assert len(editorials["train"] + editorials["test"]) == 60 * 7 - 6


def test_ratings_are_cut_into_labels(editorials: dict[str, list[dict[str, Any]]]) -> None:
    for row in editorials["train"] + editorials["test"]:
        assert row["label"] == RATINGS[row["text"].split()[-1].removesuffix(".")], row


def test_sentences_on_finance_are_held_out_and_marked(
    editorials: dict[str, list[dict[str, Any]]],
) -> None:
    marked = [row for row in editorials["train"] + editorials["test"] if row["finance"]]
    text = "Editorial 7 says that stocks rose with 3.9."
    assert marked == [{"text": text, "label": "positive", "finance": True}]
    assert [row for row in editorials["test"] if "Editorial 7 " in row["text"]] == marked
    assert 7 not in numbers(editorials["train"])


def test_a_quotation_mark_swallows_nothing(editorials: dict[str, list[dict[str, Any]]]) -> None:
    texts = [row["text"] for row in editorials["train"] + editorials["test"]]
    assert '"Editorial 8 says it with 0.' in texts


@pytest.mark.parametrize(
    ("sentence", "finance"),
    [
        ("The Federal Reserve and the banks", True),
        ("Stocks fell", True),
        ("a new TAX on cigars", True),
        ("Economists disagree", True),
        ("on Wall Street, again", True),
        ("Her stockings were taxing", False),
        ("a riverbank in an economical country", False),
        ("the marketing of traditions", False),
    ],
)
def test_finance_is_known_by_whole_words(sentence: str, finance: bool) -> None:
    assert bool(builders.FINANCE.search(sentence)) == finance
