"""The GPU check as a rehearsal on a CPU: every recipe and profile, with tiny models.

A record holds it while nothing that it depends on changed: see `tests.proofs`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from cookbook.profiles import ROOT
from tests.gpu import check, examples, machine, trial
from tests.gpu.samples import NO_GPU


@pytest.mark.unit
@pytest.mark.parametrize(
    "recipe",
    [pytest.param(one, marks=pytest.mark.held(f"rehearsal/{one}")) for one in check.notebooks()],
)
def test_a_rehearsal_from_end_to_end(
    recipe: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The unmodified notebook in a real kernel, with a tiny model; nothing but the record stays."""
    monkeypatch.setattr(machine, "describe", lambda: NO_GPU)
    monkeypatch.setenv("COOKBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = ROOT / f"{recipe}.ipynb"
    before = notebook.read_bytes()
    results = tmp_path / "results"
    arguments = ["--scale", "tiny", "--results", str(results), "--recipe", recipe]
    assert check.main(arguments) == 0
    assert notebook.read_bytes() == before
    assert not list(tmp_path.glob(f"{trial.PREFIX}*")), "the models are deleted"

    for profile in check.PROFILES:
        record = json.loads((results / recipe / f"{profile}-some-processor.json").read_text())
        assert record["status"] == "passed" and record["scale"] == "tiny"
        filled = record["data"]["filled"]
        assert filled is None or filled > examples.FULL
        assert record["memory"]["memory_cap_bytes"] is None, "noted by the kernel; there is no GPU"
        assert record["speed"]["steps"] == 1 and record["speed"]["tokens_per_second"] > 0
        name = check.settings_of(recipe, profile)["model"]
        assert record["metrics_json"]["model"] == Path(name).name
