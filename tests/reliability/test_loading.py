"""Own files with anything in them: used, dropped with a count, or refused with a message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from cookbook import data
from tests.reliability import files, loading
from tests.reliability.loading import NOTEBOOKS, Recipe

QUICK, MORE = 15, 40  # files for each recipe; `python -m tests.reliability` loads more still


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def recipe(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recipe]:
    """A recipe whose setup was executed."""
    datasets.disable_progress_bars()
    yield loading.ready(request.param, tmp_path_factory.mktemp("runs"))
    datasets.enable_progress_bars()


@pytest.mark.unit
def test_a_right_file_is_used(recipe: Recipe) -> None:
    outcome = loading.load(recipe, "jsonl", files.right(recipe.columns))
    assert outcome.refused is None
    if recipe.columns != ("text",):
        assert list(outcome.supervised())


@pytest.mark.unit
def test_no_file_ends_in_a_traceback(recipe: Recipe) -> None:
    assert loading.fuzz(recipe, QUICK, same_every_time=True).total() >= QUICK


@pytest.mark.slow
def test_no_file_of_many_ends_in_a_traceback(recipe: Recipe) -> None:
    outcomes = loading.fuzz(recipe, MORE, same_every_time=False)
    assert outcomes["refused"] < outcomes.total(), "a fuzzer whose every file is refused at once"


@pytest.mark.unit
def test_a_masked_example_would_be_seen() -> None:
    rows = datasets.Dataset.from_dict({"labels": [[-100, 5], [-100, -100]]})
    with pytest.raises(AssertionError, match="fully masked"):
        loading.check(loading.Outcome(None, "", {"tokenized": {"train": rows}}))


@pytest.mark.unit
def test_texts_are_what_they_were(tmp_path: Path) -> None:
    """What is parsed here comes out as it was written, of whatever script."""
    texts = ["\u00e9", "\u65e5\u672c", "\U0001f600", "\u2028 is no end of a line"]
    path = tmp_path / "mine.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in [*texts, "last"]]
    path.write_text("\n".join(lines), encoding="utf-8")
    splits = data.load_splits(str(path))
    assert sorted([*splits["train"]["text"], *splits["test"]["text"]]) == sorted([*texts, "last"])
