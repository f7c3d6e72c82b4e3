"""The comparison of methods: a kill costs one training and none of those before it."""

import json
from pathlib import Path

import pytest

from tests.gpu.check import COMPARED
from tests.recipes.test_any_model import OWN, environment, tiny
from tests.recipes.test_killed import client_for, killed_once

__all__ = ["environment"]  # a fixture

pytestmark = [pytest.mark.own, pytest.mark.held("own")]


def prepared(environment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a tiny model and its data; return where the run's cells will be."""
    model_type, own, write = OWN[COMPARED]
    monkeypatch.setenv("COOKBOOK_PRECISION", "float32")
    monkeypatch.setenv("COOKBOOK_MODEL", str(tiny(model_type, own, environment / model_type)))
    monkeypatch.setenv("COOKBOOK_DATASET", str(write(environment)))
    return environment / "runs" / COMPARED / "cpu-own" / "cells"


def test_a_killed_comparison_trains_only_what_is_missing(
    environment: Path, monkeypatch: pytest.MonkeyPatch, shared_start: None
) -> None:
    cells = prepared(environment, monkeypatch)
    killed_once(client_for(COMPARED), lambda: len([*cells.glob("*.json")]) >= 2)
    there = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 2 <= len(there) < 4 and not (cells.parent / "metrics.json").exists()
    client_for(COMPARED).execute()
    assert {path: path.stat().st_mtime_ns for path in there} == there, "trained a second time"
    assert len([*cells.glob("*.json")]) == 4
    content = json.loads((cells.parent / "metrics.json").read_text(encoding="utf-8"))
    assert content["train"]["steps"] == 2 and len(content["metrics"]) == 8
