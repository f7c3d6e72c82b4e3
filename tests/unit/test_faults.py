"""A fault counts as caught if a test fails of it that passes without it, and only then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import __main__ as faults
from tests.faults.catalogue import FAULTS
from tests.faults.planting import Fault, swap

pytestmark = pytest.mark.unit

TESTS = """
from sums import add

def test_add(): assert add(2, 3) == 5
def test_zero(): assert add(0, 0) == 0
def test_other(): assert add(2, 3) == 6
"""


def fault(*tests: str, old: str = "a + b", new: str = "a - b") -> Fault:
    """Return a fault of the module `sums`."""
    names = tuple(f"test_sums.py::{name}" for name in tests)
    return Fault("one", "wrong sums", "sums.py", swap(old, new), names)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # plugins take seconds to start
    (tmp_path / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "test_sums.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    return tmp_path


def test_the_first_test_that_fails_is_named(tree: Path) -> None:
    sound: set[str] = set()
    found = faults.caught_by(tree, fault("test_gone", "test_zero", "test_add"), sound)
    assert found == "test_sums.py::test_add"
    assert sound == {"test_sums.py::test_zero", "test_sums.py::test_add"}
    assert "a + b" in (tree / "sums.py").read_text(), "it was taken away again"


def test_a_fault_that_no_test_fails_of_is_not_caught(tree: Path) -> None:
    assert faults.caught_by(tree, fault("test_zero"), set()) is None
    assert faults.caught_by(tree, fault("test_gone"), set()) is None


def test_a_test_that_fails_anyway_catches_nothing(tree: Path) -> None:
    with pytest.raises(faults.CatalogueError, match="ends with 1 without the fault"):
        faults.caught_by(tree, fault("test_other"), set())


def test_tests_are_sound_together_or_looked_at_one_by_one(tree: Path) -> None:
    good, bad = fault("test_gone", "test_add", "test_other"), fault("test_other")
    assert faults.sound_together(tree, [good]) == {"test_sums.py::test_add"}
    assert faults.sound_together(tree, [good, bad]) == set()
    assert faults.sound_together(tree, [fault("test_gone")]) == set()


def test_what_keeps_a_test_from_running_is_no_catch(tree: Path) -> None:
    sound = {"test_sums.py::test_add"}
    with pytest.raises(faults.CatalogueError, match="not in a failure"):
        faults.caught_by(tree, fault("test_add", new="a +"), sound)
    with pytest.raises(faults.CatalogueError, match="cannot be planted"):
        faults.caught_by(tree, fault("test_add", old="a * b"), sound)


def test_the_package_is_that_of_the_copy(tmp_path: Path) -> None:
    package = tmp_path / "tree" / "cookbook" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.touch()
    command = [sys.executable, "-c", "import cookbook; print(cookbook.__file__)"]
    settings = faults.environment(tmp_path / "tree")
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert Path(done.stdout.strip()) == package


def test_what_is_known_of_others_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "RESULTS", tmp_path / "faults.json")
    first, second, third = FAULTS[:3]
    faults.keep("now", [first, second], {first.name: "a test", second.name: None})
    faults.keep("before", [third], {third.name: "a test"})
    faults.keep("now", [first, third], {third.name: "another"})  # the first is unknown by now
    caught = json.loads(faults.RESULTS.read_text(encoding="utf-8"))["caught"]
    assert caught["now"] == {second.name: None, third.name: "another"}
    assert caught["before"] == {third.name: "a test"}
