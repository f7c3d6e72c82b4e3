"""The table of losses compares like with like; once measured it stands in the README."""

import json
from typing import Any

import pytest

from tests.losses import __main__ as losses

pytestmark = pytest.mark.unit


def content(gain: float) -> dict[str, Any]:
    """Two seeds of five problems, `ipo` better by `gain` in each."""
    sampled = [[0.0, 0.25, 0.5, 0.5, 0.75], [0.25, 0.0, 0.0, 1.0, 0.5]]

    def scores(values: list[float], more: float) -> dict[str, Any]:
        away = {"chosen": 0.5, "rejected": -2.0}
        moved = [one + more for one in values]
        return {"sampled": moved, "greedy": moved, "pairs": [1.0, 0.0], "away": away}

    names = {losses.BEFORE: -0.1, "sigmoid": 0.0, "ipo": gain}
    found = {
        str(seed): {name: scores(values, more) for name, more in names.items()}
        for seed, values in enumerate(sampled)
    }
    betas = {"sigmoid": 1.0, "ipo": 0.5}
    return {"device": "AMD EPYC", "precision": "bfloat16", "betas": betas, "found": found}


def test_the_table_has_means_and_differences_of_the_same_problems() -> None:
    lines = losses.table(content(0.05)).splitlines()
    assert lines[0].startswith("| AMD EPYC, bfloat16, seeds 0, 1 | `beta` |")
    assert [one.split(" | ")[0] for one in lines[2:]] == [
        "| fine-tuning alone",
        "| `sigmoid`",
        "| `ipo`",
    ]
    before, first, other = (one.strip("| ").split(" | ") for one in lines[2:])
    assert before[2] == "0.275" and "-0.100 [-0.100, -0.100]" in before
    assert first[2] == "0.375" and "+0." not in first[3]
    assert other[1:4] == ["0.5", "0.425", "+0.050 [+0.050, +0.050]"]
    assert other[-2:] == ["+0.50", "-2.00"]


def test_an_interval_holds_zero_where_problems_disagree() -> None:
    one, other = [[1.0, 0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0, 1.0]]
    said = losses.difference(one, other)
    low, high = said.partition("[")[2].strip("]").split(", ")
    assert said.startswith("+0.000") and float(low) < -0.3 and float(high) > 0.3
    assert losses.difference(one, other) == said


def test_the_cells_are_found_and_the_first_loss_is_the_recipes() -> None:
    cells = losses.Cells()
    assert cells.place("trainer = DPOTrainer(") < cells.place("keys = (")
    with pytest.raises(LookupError, match="0 cells"):
        cells.place("no cell begins so")
    settings = cells.code[cells.place('RECIPE = "06')]
    first, beta = next(iter(losses.LOSSES.items()))
    assert f'("{first}",' in settings and f"({beta}, " in settings


def test_the_readme_shows_what_was_measured() -> None:
    text = losses.README.read_text(encoding="utf-8")
    assert losses.with_tables(text) == text, "run: python -m tests.losses --tables"
    measured = [*losses.RESULTS.glob("*.json")]
    assert bool(measured) is bool(losses.MARKED.search(text)), "a table, or no marks for one"
    for path in measured:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert found["betas"] == losses.LOSSES
        assert all({*found["betas"], losses.BEFORE} == {*one} for one in found["found"].values())
