"""The recorded comparison of methods: whole, as it was written, each rate a searched one."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import nbformat
import pytest

from cookbook import comparing
from cookbook.commands import proof, record, run
from cookbook.profiles import ROOT
from tests.gpu import check

pytestmark = pytest.mark.contract

NOTEBOOK = ROOT / f"{check.COMPARED}.ipynb"
FOLDERS = record.cell_folders()


def name_of(folder: Path) -> str:
    """Test id."""
    return folder.name


def test_there_is_a_record() -> None:
    assert FOLDERS, "run: make record"


def test_the_tables_know_the_notebook_s_methods() -> None:
    code = proof.notebook_code(nbformat.read(NOTEBOOK, as_version=4))
    ranks = [f"lora_r{rank}" for rank in (2, 8, 32, 128)]
    assert 'f"lora_r{r}": lora(r) for r in (2, 8, 32, 128)' in code
    for name in set(comparing.METHODS) - set(ranks):
        assert f'"{name}":' in code


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_cells_are_as_they_were_written_and_of_one_code(folder: Path) -> None:
    digests = json.loads((folder / record.DIGESTS).read_text(encoding="utf-8"))
    assert digests["seal"] == proof.seal_of(digests)
    del digests["seal"]
    code = record._code_of(digests)
    for cell in comparing.read(folder):
        assert cell["seal"] == proof.seal_of(cell), cell["method"]
        assert cell["code"] == code, "cells of two codes in one table"


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_every_method_has_its_seeds_and_a_rate_between_two_others(folder: Path) -> None:
    """The rate is the best of those tried on rows that no score uses, and lies between two."""
    whole = run.parameters(nbformat.read(NOTEBOOK, as_version=4))["WHOLE"]
    tried: dict[str, dict[float, float]] = defaultdict(dict)
    for cell in comparing.read(folder):
        if "validation_loss" in cell:
            tried[cell["method"]][cell["learning_rate"]] = cell["validation_loss"]
    found = comparing.by_method(comparing.read(folder))
    assert tuple(found) == comparing.METHODS
    for name, own in found.items():
        assert [cell["seed"] for cell in own] == list(range(whole["seeds"])), name
        (rate,) = {cell["learning_rate"] for cell in own}
        rates = tried[name]
        assert rate == min(rates, key=lambda one: rates[one]), name
        assert min(rates) < rate < max(rates), f"{name}: the best rate is at an end"


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_all_methods_saw_the_same_rows(folder: Path) -> None:
    """As many tokens were trained on, and the same ones scored, for each seed."""
    found = comparing.by_method(comparing.read(folder))
    for kind in ("tokens", "steps"):
        assert len({json.dumps(cell[kind]) for own in found.values() for cell in own}) == 1
    for place in range(len(found["full"])):
        assert len({own[place]["trained_tokens"] for own in found.values()}) == 1


def test_a_cell_depends_on_what_trains_it_and_not_on_what_shows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = proof.cell_digests(check.COMPARED)
    read: Any = nbformat.read

    def changed(old: str, new: str) -> Any:
        def reading(path: Path, **named: Any) -> Any:
            notebook = read(path, **named)
            assert any(old in cell.source for cell in notebook.cells), old
            for cell in notebook.cells:
                cell.source = cell.source.replace(old, new)
            return notebook

        monkeypatch.setattr(nbformat, "read", reading)
        return proof.changes(before, proof.cell_digests(check.COMPARED))

    assert (
        changed('"seeds":                       (1, ', '"seeds":                       (2, ') == []
    )
    assert changed("comparing.plot_rates(", "comparing.plot_curves(") == []
    assert changed("loraplus_lr_ratio=16", "loraplus_lr_ratio=4") == ["notebook"]
    assert changed(
        '"max_steps":                   (20, ', '"max_steps":                   (30, '
    ) == ["notebook"]
    assert "methods.make_ready" in before["cookbook"]
    assert not [name for name in before["cookbook"] if name.startswith(("comparing", "sweeps"))]
