"""The GitHub workflow is valid, careful, and runs the same Make targets as everyone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.doc_rules import targets_called
from tests.contract.repository import ROOT, make_targets

pytestmark = pytest.mark.contract

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[str, Any]:
    """One workflow."""
    workflow: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return workflow


def file_name(path: Path) -> str:
    """Test id."""
    return path.name


def schema_check(path: Path) -> subprocess.CompletedProcess[str]:
    """Check a file against the workflow schema that check-jsonschema brings along."""
    options = ["--builtin-schema", "vendor.github-workflows"]
    return subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *options, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_is_a_workflow() -> None:
    assert WORKFLOWS


@pytest.mark.parametrize("path", WORKFLOWS, ids=file_name)
def test_workflow_fits_the_schema(path: Path) -> None:
    result = schema_check(path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_schema_finds_a_mistake(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text("on: push\njobs:\n  one:\n    runs-on: ubuntu-24.04\n    step: []\n")
    result = schema_check(bad)
    assert result.returncode == 1 and "step" in result.stdout, result.stdout + result.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=file_name)
def test_jobs_are_limited_and_hide_no_failure(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    assert [name for name, job in workflow["jobs"].items() if "timeout-minutes" not in job] == []
    text = path.read_text(encoding="utf-8")
    assert "|| true" not in text and "continue-on-error" not in text


@pytest.mark.parametrize("path", WORKFLOWS, ids=file_name)
def test_make_targets_exist(path: Path) -> None:
    steps = [step for job in read(path)["jobs"].values() for step in job["steps"]]
    called = {target for step in steps for target in targets_called(step.get("run", ""))}
    assert called, "the workflow calls no Make target"
    assert called - make_targets() == set()


def test_ci_script_calls_existing_targets() -> None:
    called = targets_called((ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert {"lint", "test"} <= called
    assert called - make_targets() == set()
