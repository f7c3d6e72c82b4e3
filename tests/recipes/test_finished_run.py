"""Export-and-Serve with a finished run: `COOKBOOK_RUN` takes the place of its first training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cookbook.profiles import ROOT
from tests.hub.notebooks import complaint, execute, printed
from tests.proofs import EXPORT
from tests.recipes.test_any_model import tiny
from tests.serving import finished


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of a tiny model that was trained on a file of a person's own."""
    values = {"PROFILE": "cpu", "MAX_STEPS": "2", "SEED": "0", "RUNS": str(tmp_path / "runs")}
    for name, value in values.items():
        monkeypatch.setenv(f"COOKBOOK_{name}", value)
    base = tiny("llama", {"num_key_value_heads": 1}, tmp_path / "base")
    tokenizer = finished.tokenizer_of(base)
    model = finished.adapted(base, tokenizer)
    with torch.no_grad():  # little, so that it says something and ends, as its base does
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.mul_(0.01)
    folder = tmp_path / "runs" / "02-PEFT" / "Mine" / "cpu-own"
    finished.write_run(folder, base, model, tokenizer)
    rows = [{"prompt": f"What is {n} and {n}?", "completion": str(2 * n)} for n in range(60)]
    data = tmp_path / "mine.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    finished.write_json(folder / "run.json", settings | {"dataset": str(data)})
    return folder


@pytest.mark.own
@pytest.mark.held(EXPORT)
def test_a_finished_run_is_exported_and_served(
    run: Path, monkeypatch: pytest.MonkeyPatch, shared_start: None
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setenv("COOKBOOK_RUN", str(run))
    result = execute(ROOT / f"{EXPORT}.ipynb")
    assert complaint(result.nb) == ""
    said = printed(result.nb)
    assert "mine: its adapter is served, on " in said
    assert said.count(" answers are those of transformers") == 4
    exports = run.parents[2] / "exports" / "02-PEFT" / "Mine" / "cpu-own"
    assert {one.name for one in exports.glob("gguf-*")} >= {"gguf-bf16", "gguf-q4_k_m"}
    # One adapter is trained beside it, and what was finished stays as it was.
    own = run.parents[2] / EXPORT
    assert [path.name for path in own.glob("*/*") if (path / "adapter_config.json").exists()] == [
        "second"
    ]
    assert before == {path: path.read_bytes() for path in before}
