"""What is said of speed is what was measured, and what was measured is what the notebooks do."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from tests.bench import contestants, documents, results
from tests.bench.works import WITH, WITHOUT, WORKS
from tests.contract.repository import notebooks

pytestmark = pytest.mark.contract

RECORDS = results.latest()


def name_of(path: Path) -> str:
    """Test id."""
    return path.stem


def cells(path: Path, kind: str) -> list[str]:
    """Return the sources of a notebook's cells of one kind."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(one["source"]) for one in content["cells"] if one["cell_type"] == kind]


def why_fast(path: Path) -> str:
    """Return the one cell that explains a notebook's speed."""
    found = [one for one in cells(path, "markdown") if one.startswith("**Why it is fast.**")]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("path", notebooks(), ids=name_of)
def test_the_gains_are_those_of_the_newest_record(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert documents.rewritten(text, RECORDS) == text, "run: make bench"
    assert documents.MEASURED.search(why_fast(path))


@pytest.mark.parametrize("path", notebooks(), ids=name_of)
def test_what_is_explained_is_what_is_set(path: Path) -> None:
    """The notebook sets it, and the benchmark's `ours` sets it too."""
    code = "\n".join(cells(path, "code"))
    listed = {row[2] for row in documents.ROW.finditer(why_fast(path))}
    assert len(listed) >= 3
    for setting in listed:
        assert re.search(rf"\b{setting}\b", code), f"{setting} is explained and not set"
        assert re.search(rf"\b{setting}\b", inspect.getsource(contestants))


def test_architecture_shows_the_newest_records() -> None:
    text = documents.ARCHITECTURE.read_text(encoding="utf-8")
    assert documents.with_tables(text, RECORDS) == text, "run: make bench"
    assert {found[2] for found in documents.GENERATED.finditer(text)} == {
        "contestants",
        "profile",
        "choices",
        "growth",
    }


def test_every_work_was_measured_in_enough_rounds() -> None:
    assert {one["work"] for one in RECORDS} >= {"choices", "grpo", "pretrain", "seq2seq"}
    for one in RECORDS:
        rounds = min(found["rounds"] for found in one["contestants"].values())
        assert rounds >= results.FEWEST_ROUNDS
        found = {*map(choice, one["contestants"]), *one["could_not_run"]}
        assert found >= set(map(choice, WORKS[one["work"]].contestants))


def choice(contestant: str) -> str:
    """Return a contestant's name, or that of the choice that it has and `ours` has not."""
    return contestant.removeprefix(WITHOUT).removeprefix(WITH)
