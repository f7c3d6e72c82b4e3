"""A sweep of every recipe finds rows to score a trial with, none of which scores the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from cookbook import data, sweeps
from tests.reliability.loading import NOTEBOOKS, ready

pytestmark = pytest.mark.unit


def texts_of(found: Any) -> set[str]:
    """Return what the rows say that hold the embedded data's text, in a split or a row."""
    rows = found if isinstance(found, Dataset) else Dataset.from_list([])
    name = next((one for one in ("text", "document", "prompt") if one in rows.column_names), None)
    return {data.plain(one) for one in rows[name]} if name else set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_trial_of_a_recipe_loads_rows_kept_apart(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole = ready(path, tmp_path / "runs"), data.load_splits
    loaded: list[tuple[str, Any]] = []

    def watched(source: str, *given: Any, **named: Any) -> Any:
        splits = whole(source, *given, **named)
        loaded.append((source, splits))
        return splits

    monkeypatch.setattr(data, "load_splits", watched)
    sweeps.keep_rows_apart()
    outcome = recipe.load_embedded(tmp_path)
    assert outcome.refused is None, outcome.refused
    assert outcome.printed.count(sweeps.APART) == len({name for name, _ in loaded}) > 0
    held_out = set().union(*(texts_of(splits["test"]) for _, splits in loaded))
    assert held_out
    names = ("test", "held_out", "splits", "conversations", "labelled", "tokenized")
    tables = [outcome.defined[name] for name in names if name in outcome.defined]
    tables += [one for table in tables if isinstance(table, dict) for one in table.values()]
    seen = set().union(*map(texts_of, tables))
    assert not seen & held_out, "a row that scores the recipe was read"
