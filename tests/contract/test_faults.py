"""Each fault of the catalogue can be planted in the tree as it is, and is no mistake in writing."""

from __future__ import annotations

import ast
import json
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from tests.contract.notebook_rules import plain_python
from tests.contract.repository import ROOT
from tests.faults.__main__ import RESULTS
from tests.faults.catalogue import FAULTS
from tests.faults.planting import Fault, NotThere, swap

pytestmark = pytest.mark.contract

FEWEST = 22


def check_syntax(path: Path, text: str) -> None:
    """Raise an error for a text that is none of its kind: every test would fail of it."""
    if path.suffix == ".py":
        ast.parse(text)
    elif path.suffix == ".ipynb":
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
        assert plain_python(notebook) == []
    elif path.suffix in {".yml", ".yaml"}:
        yaml.safe_load(text)
    elif path.suffix == ".lock":
        tomllib.loads(text)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_it_can_be_planted(fault: Fault) -> None:
    path = ROOT / fault.file
    before = path.read_text(encoding="utf-8")
    after = fault.planted(before)
    assert after != before
    check_syntax(path, after)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_tests_named_exist(fault: Fault) -> None:
    assert fault.tests
    for test in fault.tests:
        path, _, name = test.partition("[")[0].partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test


def test_each_is_of_another_kind() -> None:
    assert len({one.name for one in FAULTS}) == len({one.kind for one in FAULTS}) == len(FAULTS)
    assert len(FAULTS) >= FEWEST


def test_each_was_seen_to_be_caught() -> None:
    caught = json.loads(RESULTS.read_text(encoding="utf-8"))["caught"]["now"]
    missed = [one.name for one in FAULTS if caught.get(one.name) not in one.tests]
    assert missed == [], "run: .venv/bin/python -m tests.faults --only NAME"


@pytest.mark.parametrize("text", ["", "a b a"])
def test_a_text_that_is_not_there_once_is_no_place(text: str) -> None:
    with pytest.raises(NotThere):
        swap("a", "c")(text)
