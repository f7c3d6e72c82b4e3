"""Recorded runs, the tables drawn from them, and the margin that a learning test asks for."""

import copy
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cookbook.commands import proof, record
from cookbook.profiles import CookbookError

pytestmark = pytest.mark.unit

RUN: dict[str, Any] = {
    "recipe": "02-PEFT/X",
    "profile": "cpu",
    "seed": 0,
    "metrics": [
        {
            "name": "loss",
            "higher_is_better": False,
            "before": 3.0,
            "after": 2.0,
            "ci95": {"before": [2.9, 3.1], "after": [1.9, 2.1]},
            "baselines": {"three_shot": 2.5},
        }
    ],
    "forgetting": {
        "name": "general",
        "before": 3.0,
        "after": 3.1,
        "ci95": {"before": [2.9, 3.1], "after": [3.0, 3.2]},
    },
    "train": {"steps": 9, "tokens_per_second": 50.0, "seconds": 60.0, "peak_memory_bytes": 2**31},
    "notebook_seconds": 90.0,
    "comparison": {
        "lora": {
            "weights_trained": 1000,
            "seconds": 30.0,
            "peak_memory_bytes": 2**30,
            "general_text_loss": 3.25,
        }
    },
    "serving": {
        "formats": {
            "q8_0": {
                "bytes": 2**20,
                "peak_memory_bytes": 2**21,
                "tokens_per_second": 50.4,
                "loss": [0.01, 0.0, 0.02],
                "equal_answers": 3,
            }
        },
        "at_once": {"8": {"tokens_per_second": 80.0, "seconds": 1.25}},
        "word_for_word": [4, 4],
        "under_load": [5, 6],
        "under_load_nearest": [6, 6],
    },
    "hardware": {"device": "Some CPU @ 2.80GHz", "count": 1, "threads": 2, "precision": "float32"},
}


def _seeds(*afters: float) -> list[dict[str, Any]]:
    runs = []
    for seed, after in enumerate(afters):
        run = copy.deepcopy(RUN) | {"seed": seed}
        run["metrics"][0]["after"] = after
        runs.append(run)
    return runs


def test_results_are_named_by_recipe_profile_hardware_precision_and_seed() -> None:
    path = record.result_path(RUN).relative_to(record.RESULTS)
    assert path == Path("02-PEFT/X/cpu-2x-some-cpu-2.80ghz-float32-seed0.json")


def test_the_margin_is_half_the_smallest_improvement() -> None:
    assert record.learning_margin(_seeds(2.0, 2.2, 1.5), "loss") == pytest.approx(0.4)


def test_two_seeds_are_no_margin() -> None:
    with pytest.raises(ValueError, match="2 recorded seeds, 3 are needed"):
        record.learning_margin(_seeds(2.0, 2.2), "loss")


def test_tables_are_drawn_from_recorded_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results" / "recipes")
    monkeypatch.setattr(record, "ROOT", tmp_path)
    notebook = new_notebook(
        cells=[
            new_markdown_cell(
                "# A title\n\n[![badge](b.svg)](c)\n\nTrain [it](a.md)\nall: at once."
            ),
            new_code_cell(
                'SETTINGS = {"model": ("small", "big/one", "big/one")}',
                metadata={"tags": ["parameters"]},
            ),
        ]
    )
    (tmp_path / "02-PEFT").mkdir()
    nbformat.write(notebook, tmp_path / "02-PEFT" / "X.ipynb")
    other = copy.deepcopy(RUN) | {"notebook_seconds": 45.0}
    other["hardware"]["precision"] = "bfloat16"
    other["comparison"]["lora"]["seconds"] = 10.0
    seeds = _seeds(2.0, 2.2, 1.5)
    seeds[0]["seal"] = "of the first seed"
    for run in [*seeds, other]:
        path = record.result_path(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run), encoding="utf-8")
    text = "a\n<!-- generated: overview -->\nold\n<!-- end generated -->\nb\n"
    overview = record.with_tables(text)
    assert "old" not in overview
    # Other hardware, or the same at another precision, is not averaged in; most seeds count.
    line = (
        "| [A title](02-PEFT/X.ipynb) | `big/one` | Train it all | loss ↓ 3.000 → **1.900** | {} |"
    )
    assert line.format("") in overview
    assert overview.startswith("a\n") and overview.endswith("b\n")
    assert record.with_tables(overview) == overview
    page = record.RESULTS / "02-PEFT" / "X" / "cpu.md"
    page.write_text('<!-- executed {"seal": "of the first seed"} -->\n', encoding="utf-8")
    link = "[read it executed]({}results/recipes/02-PEFT/X/cpu.md)"
    assert line.format(link.format("")) in record.with_tables(text)
    summary = record.with_tables(text.replace("overview", "02-PEFT/X#summary"))
    where = "| `cpu`, Some CPU @ 2.80GHz, {} | loss ↓ | 3.000 | **{}** | {} |"
    assert where.format("float32 | 3 | 1.5", "1.900", link.format("../")) in summary
    assert where.format("bfloat16 | 1 | 0.8", "2.000", "") in summary
    detail = record.with_tables(text.replace("overview", "02-PEFT/X"))
    line = (
        "| Some CPU @ 2.80GHz, float32 | 1 | loss | 3.000 [2.900, 3.100] | 2.200 [1.900, 2.100] |"
    )
    assert f"{line} three_shot 2.500 |" in detail
    costs = record.with_tables(text.replace("overview", "02-PEFT/X#comparison"))
    assert "float32 | lora | 1,000 | 30 | 1.0 GiB | 3.250 |" in costs
    assert "bfloat16 | lora | 1,000 | 10 | 1.0 GiB | 3.250 |" in costs


def test_what_serving_gave_is_told_over_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = _seeds(2.0, 2.2)
    runs[1]["serving"]["formats"]["q8_0"]["loss"] = [0.03, 0.01, 0.05]
    monkeypatch.setattr(record, "recorded_runs", lambda recipe=None: runs)
    text = "<!-- generated: 02-PEFT/X#{} -->\n<!-- end generated -->"
    where = "| Some CPU @ 2.80GHz, float32 |"
    formats = record.with_tables(text.format("serving"))
    loss = "+0.0200 (+0.0100 to +0.0300)"
    assert f"{where} `q8_0` | 1 | 2 | 50 | {loss} | 6 of 8 answers |" in formats
    assert f"{where} 8 | 80 | 1.25 |" in record.with_tables(text.format("at-once"))
    same = record.with_tables(text.format("same-answers"))
    assert "letter for letter as alone | 10 of 12 |" in same


def test_a_table_without_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="no recorded run"):
        record.with_tables("<!-- generated: 02-PEFT/None -->\n<!-- end generated -->")


@pytest.mark.parametrize("path", record.documents(), ids=lambda path: path.parent.name)
def test_the_committed_tables_are_current(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert (
        record.with_tables(text) == text
    ), "run: .venv/bin/python -m cookbook.commands.record --tables"


@pytest.fixture
def comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Digests of today's code, which a test may change, and two cells that a run has kept."""
    digests: dict[str, Any] = {"notebook": "sha256:1", "cookbook": {"a.b": "sha256:2"}}
    monkeypatch.setattr(record, "_present", lambda recipe, folder: dict(digests))
    cells = tmp_path / "run" / "cells"
    cells.mkdir(parents=True)
    for name in ("full-seed0", "full-rate1e-04"):
        (cells / f"{name}.json").write_text(json.dumps({"method": "full", "seconds": 1.5}))
    return digests


def test_cells_are_kept_with_what_they_depended_on(
    comparison: dict[str, Any], tmp_path: Path
) -> None:
    target, cells = tmp_path / "cpu-2x-some-bfloat16", tmp_path / "run" / "cells"
    kept = record.keep_cells(cells, target, "02-PEFT/X", dict(comparison))
    assert [path.stem for path in kept] == ["full-rate1e-04", "full-seed0"]
    content = json.loads(kept[0].read_text(encoding="utf-8"))
    assert content["seal"] == proof.seal_of(content) and content["profile"] == "cpu"
    assert record.stale_cells(target) == []
    comparison["cookbook"]["a.b"] = "sha256:3"
    assert record.stale_cells(target) == ["cookbook.a.b"]
    with pytest.raises(CookbookError, match="was changed while it ran"):
        record.keep_cells(cells, target, "02-PEFT/X", {"notebook": "sha256:1"})
    (cells / "full-seed0.json").unlink()  # of other code now, and not trained again yet
    kept = record.keep_cells(cells, target, "02-PEFT/X", dict(comparison))
    assert [path.stem for path in kept] == ["full-rate1e-04"], "cells of other code go"


def test_a_comparison_goes_on_with_the_cells_of_today_s_code(
    comparison: dict[str, Any], tmp_path: Path
) -> None:
    target, run = tmp_path / "cpu-2x-some-bfloat16", tmp_path / "run"
    record.keep_cells(run / "cells", target, "02-PEFT/X", dict(comparison))
    (run / "metrics.json").touch()
    record._begin_whole(run, target, dict(comparison))
    cell = json.loads((run / "cells" / "full-seed0.json").read_text(encoding="utf-8"))
    assert cell == {"method": "full", "seconds": 1.5}, "as the notebook had kept it"
    assert not (run / "metrics.json").exists(), "what is finished would move aside"
    record._begin_whole(run, target, {"notebook": "sha256:other"})
    assert not [*(run / "cells").iterdir()], "nothing of other code is taken"
