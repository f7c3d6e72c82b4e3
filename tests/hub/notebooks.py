"""Running notebooks, as they are or with a mistake put in, and reading what they said."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbconvert import PythonExporter
from nbmake.nb_result import NotebookResult
from nbmake.nb_run import NotebookRun

from cookbook.commands import record, run
from cookbook.profiles import ROOT, columns
from tests.containers.engine import free_port

NOTEBOOKS = record.notebooks()
DISTRIBUTED = "01-Full-Fine-Tuning/Distributed-Full-Fine-Tuning"
PROFILES = ("gpu16", "gpu80")
TIMEOUT = 300  # seconds per cell
# peft 0.21 asks transformers for an attribute that transformers has renamed.
OF_LIBRARIES = ("`is_gradient_checkpointing` is deprecated",)


def name_of(path: Path) -> str:
    """Return `<folder>/<notebook>` for a test's name."""
    return str(path.relative_to(ROOT).with_suffix(""))


def settings_of(path: Path, profile: str) -> dict[str, Any]:
    """Return a profile's column of a notebook's `SETTINGS` table."""
    return columns(run.parameters(nbformat.read(path, as_version=4))["SETTINGS"])[profile]


def as_if_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell a notebook that it is the one process of a launch by torchrun.

    By itself the distributed recipe starts three, of which each imports for ten seconds or more.
    """
    launch = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))


def execute(path: Path) -> NotebookResult:
    """Run a notebook from its own folder, with this process's environment."""
    return NotebookRun(path, TIMEOUT).execute()


def _outputs(notebook: nbformat.NotebookNode) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(notebook: nbformat.NotebookNode) -> str:
    """Return everything that a notebook printed."""
    return "".join(output.get("text", "") for output in _outputs(notebook))


def complaint(notebook: nbformat.NotebookNode) -> str:
    """Return name and message of the error that stopped a notebook, or nothing."""
    errors = [one for one in _outputs(notebook) if one.output_type == "error"]
    return "\n".join(f"{one.ename}: {one.evalue}" for one in errors)


def deprecations(notebook: nbformat.NotebookNode) -> list[str]:
    """Return what was called deprecated, but for calls between the libraries themselves.

    Some libraries warn, and some log the same without the name of a warning.
    """
    lines = printed(notebook).splitlines()
    marks = ("DeprecationWarning", "FutureWarning", "is deprecated")
    found = [line for line in lines if any(mark in line for mark in marks)]
    return [line for line in found if not any(text in line for text in OF_LIBRARIES)]


def as_script(path: Path, folder: Path) -> Path:
    """Write a notebook into `folder` as the script that `make script` makes of it."""
    code, _ = PythonExporter().from_filename(str(path))
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    return script


def with_changes(path: Path, folder: Path, changes: Mapping[str, str]) -> Path:
    """Write a changed copy of a notebook into `folder` and return its path.

    `cookbook` is installed, so that a copy runs anywhere. Each change must hit: a test of a
    mistake that was not made would prove nothing.
    """
    notebook = nbformat.read(path, as_version=4)
    for old, new in changes.items():
        cells = [cell for cell in notebook.cells if old in cell.source]
        assert cells, f"{path.name} has no {old!r} any more: change this test with it"
        for cell in cells:
            cell.source = cell.source.replace(old, new)
    copy = folder / path.parent.name / path.name
    copy.parent.mkdir(parents=True)
    nbformat.write(notebook, copy)
    return copy
