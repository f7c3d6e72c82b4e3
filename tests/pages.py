"""A small executed notebook with its record and its page, for tests of pages."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from matplotlib.figure import Figure
from nbformat import NotebookNode
from nbformat.v4 import new_notebook

from cookbook.commands import pages, proof, record


def png() -> str:
    """Return a picture as a notebook holds it."""
    figure = Figure(figsize=(2, 2), facecolor="white")
    figure.subplots().plot([1, 3, 2])
    figure.savefig(packed := io.BytesIO(), format="png")
    return base64.b64encode(packed.getvalue()).decode()


def use(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a folder be the repository, with one technique."""
    monkeypatch.setattr(pages, "ROOT", root)
    monkeypatch.setattr(record, "ROOT", root)
    monkeypatch.setattr(record, "RESULTS", root / "results" / "recipes")
    (root / "02-PEFT").mkdir()


def written(root: Path, cells: list[NotebookNode], **content: Any) -> Path:
    """Write a notebook of these cells, the record of its run, and the page; return the page."""
    executed = new_notebook(cells=cells)
    run = {
        "recipe": "02-PEFT/X",
        "profile": "cpu",
        "seed": 0,
        "date": "2026-11-29",
        "notebook_seconds": 90.0,
        "hardware": {"device": "Some CPU", "threads": 2, "precision": "float32"},
        "digests": {"notebook": proof.digest(proof.code_of(proof.code_for_cpu(executed)))},
    }
    run = proof.sealed(run | content)
    target = record.result_path(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(run), encoding="utf-8")
    nbformat.write(executed, root / "02-PEFT" / "X.ipynb")
    return pages.write(executed, run, target)
