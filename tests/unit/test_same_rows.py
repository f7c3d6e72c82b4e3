"""What has to be the same in every run: the rows of the test split, and where runs lie."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import set_seed

from cookbook import data, report
from cookbook.commands import run
from cookbook.profiles import ROOT

pytestmark = pytest.mark.unit


def test_the_cut_test_split_follows_no_seed(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": f"question number {n}", "completion": f"answer {n * n}"} for n in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tests = []
    for seed in (0, 1, 2):
        set_seed(seed)
        tests.append(data.load_splits(str(path))["test"]["prompt"][:])
    assert tests[0] == tests[1] == tests[2]


def test_runs_lie_in_the_repository_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COOKBOOK_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    config = SimpleNamespace(profile="cpu", own=False)
    assert report.run_folder("02-PEFT/X", config) == ROOT / "runs" / "02-PEFT" / "X" / "cpu"


def test_a_recipe_has_one_name_wherever_one_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "02-PEFT")
    for path in ("Falcon-7B-LoRA.ipynb", "../02-PEFT/Falcon-7B-LoRA.ipynb"):
        assert run.recipe_of(Path(path)) == "02-PEFT/Falcon-7B-LoRA"
