"""Three exercises end each notebook, and their hidden answers are what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from cookbook.commands.run import recipe_of
from tests.contract.repository import notebooks
from tests.exercises import __main__ as measured
from tests.exercises.catalogue import EXERCISES, SEEDS, Exercise
from tests.faults.planting import NotThere

pytestmark = pytest.mark.contract

ANSWER = re.compile(
    r"<details><summary>Measured answer</summary>\n\n<!-- exercise: (\S+) -->\n"
    r"(\|.*\n)+\n+(\S[^<]*)</details>"
)


def name_of(path: Path) -> str:
    """Test id."""
    return path.stem


def exercises_of(path: Path) -> str:
    """Return the text of a notebook's exercises, its last cell."""
    last = nbformat.read(path, as_version=4).cells[-1]
    assert last.source.startswith("### Exercises\n"), "the last cell holds the exercises"
    return str(last.source)


@pytest.mark.parametrize("path", notebooks(), ids=name_of)
def test_three_exercises_each_with_a_hidden_answer(path: Path) -> None:
    text, wanted = exercises_of(path), EXERCISES[recipe_of(path)]
    assert [one[1] for one in ANSWER.finditer(text)] == [one.name for one in wanted]
    assert len(wanted) == 3
    assert re.findall(r"^\*\*(\d)\. ", text, re.MULTILINE) == ["1", "2", "3"]
    tasks = re.split(r"^\*\*\d\. ", ANSWER.sub("", text), flags=re.MULTILINE)[1:]
    for task in tasks:
        title, _, rest = task.partition("**")
        assert title.endswith(".") and "Expect" in rest, "it says what to do and what to expect"


@pytest.mark.parametrize("path", notebooks(), ids=name_of)
def test_the_answers_are_the_measured_ones(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert measured.rewritten(path) == text, "run: python -m tests.exercises --tables"
    content = json.loads((measured.RESULTS / f"{recipe_of(path)}.json").read_text(encoding="utf-8"))
    seeds = {str(seed) for seed in SEEDS.get(recipe_of(path), (0,))}
    for one in EXERCISES[recipe_of(path)]:
        assert content["changes"][one.name] == [list(change) for change in one.changes], one.name
        for found in (content["figures"][name] for name in (measured.AS_IT_IS, one.name)):
            assert found.keys() == seeds
            assert all({*one.shown} <= figures.keys() for figures in found.values())


@pytest.mark.parametrize("path", notebooks(), ids=name_of)
def test_the_changes_fit_the_notebook(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for one in EXERCISES[recipe_of(path)]:
        assert measured.changed(text, one.changes) != text


def test_a_change_that_fits_nothing_is_found_out() -> None:
    nothing = Exercise("none", "none", (("no such line", "another"),), ())
    with pytest.raises(NotThere, match="no such line"):
        measured.changed(notebooks()[0].read_text(encoding="utf-8"), nothing.changes)


def test_a_table_is_drawn_from_what_was_measured() -> None:
    exercise = Exercise("rank", "`r` 4", (), ("loss", "weights"))
    content: dict[str, Any] = {
        "device": "Some CPU",
        "precision": "float32",
        "figures": {
            measured.AS_IT_IS: {"0": {"loss": 3.0321, "weights": 4884480.0}},
            "rank": {"0": {"loss": 3.1, "weights": 1221120.0}},
        },
    }
    assert measured.table(content, exercise).splitlines() == [
        "| Some CPU, float32, seed 0 | loss | weights |",
        "| --- | --- | --- |",
        "| as it is | 3.032 | 4,884,480 |",
        "| `r` 4 | 3.100 | 1,221,120 |",
    ]
    content["figures"][measured.AS_IT_IS]["1"] = {"loss": 3.0521, "weights": 4884480.0}
    content["figures"]["rank"]["1"] = {"loss": 3.1, "weights": 1221120.0}
    assert measured.table(content, exercise).splitlines() == [
        "| Some CPU, float32, mean of 2 seeds | loss | weights |",
        "| --- | --- | --- |",
        "| as it is | 3.042 (3.032 to 3.052) | 4,884,480 |",
        "| `r` 4 | 3.100 | 1,221,120 |",
    ]


def test_what_was_measured_of_this_code_is_kept(tmp_path: Path) -> None:
    notebook = notebooks()[0].read_text(encoding="utf-8")
    run = {"seal": "sha256:1", "hardware": {"device": "Some CPU", "precision": "float32"}}
    target = tmp_path / "kept.json"
    kept = measured.begun(target, notebook, run)
    kept["figures"]["rank"] = {"0": {"loss": 3.1}}
    target.write_text(json.dumps(kept), encoding="utf-8")
    assert measured.begun(target, notebook, run) == kept
    assert measured.begun(target, notebook, {**run, "seal": "sha256:2"})["figures"] == {}
    other = notebook.replace("RECIPE", "RECEIPT")
    assert measured.begun(target, other, run)["figures"] == {}
