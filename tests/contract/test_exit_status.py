"""What fails in a Make target or in .ci/run is the last thing that it does, and its exit status."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.contract.repository import FOLDER_GROUPS, OTHER_GROUPS, ROOT

pytestmark = pytest.mark.contract

# Tells what it is called with, and fails where that is what shall fail.
STAND_IN = """#!/bin/sh
call="${0##*/} $*"
echo "$call" >> "$CALLS"
test "$call" != "$FAILING"
"""
MAKE_USES = ("black", "isort", "flake8", "mypy", "nbqa", "nbstripout", "python")
# The shared tool, whose engine fills a folder and answers while that is there.
ENGINE = """#!/bin/sh
case "$1" in
start) mkdir "${CONTAINER_ENGINE_ROOT:?}/data" && echo "$CONTAINER_ENGINE_ROOT" > "$CALLS.engine" ;;
esac
"""
ENGINE_IS_THERE = """#!/bin/sh
engine=$(cat "$CALLS.engine" 2>/dev/null) && test -d "$engine/data" && echo "docker $*" >> "$CALLS"
"""
# All that .ci/run looks for, so that it installs nothing.
CI_USES = ("make", "git", "python3", "chromium", "npx", "ip", "docker")


def stand_ins(folder: Path, names: tuple[str, ...]) -> Path:
    """Write programs of these names that do nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    return folder


def run(command: list[str], tree: Path, failing: str = "") -> tuple[int, list[str]]:
    """Run a command while one call of a stand-in fails: its exit status, and all calls."""
    calls = tree / "calls"
    calls.write_text("")
    passed_on = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "NB", "FOLDER", "MARK", "COOKBOOK_INSTALL"}
    inherited = {name: value for name, value in os.environ.items() if name not in passed_on}
    places = {"PATH": f"{tree / 'bin'}:{os.environ['PATH']}", "CALLS": str(calls)}
    done = subprocess.run(
        command,
        cwd=tree,
        env=inherited | places | {"FAILING": failing},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, calls.read_text().splitlines()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The Makefile and .ci/run beside stand-ins for all that they call, everything installed."""
    tree = tmp_path / "tree"
    for folder in (".ci", ".venv", *FOLDER_GROUPS):
        (tree / folder).mkdir(parents=True)
    for folder in FOLDER_GROUPS:
        (tree / folder / "One.ipynb").touch()
    for name in ("pyproject.toml", "poetry.lock"):
        (tree / name).touch()
    for name in ("Makefile", ".ci/run"):
        shutil.copy(ROOT / name, tree / name)
    stand_ins(tree / ".venv" / "bin", MAKE_USES)
    for name in ("core", "dev", "all", *FOLDER_GROUPS.values(), *OTHER_GROUPS):
        (tree / ".venv" / f".installed-{name}").touch()
    return tree


@pytest.mark.parametrize("target", ["lint", "test", "test-all"])
def test_make_ends_with_what_fails_first(target: str, tree: Path) -> None:
    command = ["make", "--no-print-directory", target]
    status, calls = run(command, tree)
    assert status == 0 and len(calls) > 1
    for number, call in enumerate(calls, 1):
        assert run(command, tree, failing=call) == (2, calls[:number])


def test_ci_ends_with_what_fails_first(tree: Path) -> None:
    stand_ins(tree / "bin", CI_USES)
    command = ["bash", str(tree / ".ci" / "run")]
    status, calls = run(command, tree)
    made = [call for call in calls if call.startswith("make ")]
    assert status == 0 and {"make install-all", "make lint", "make test"} <= set(made)
    for call in made:
        status, before = run(command, tree, failing=call)
        assert (status, before[-1]) == (1, call)


@pytest.mark.parametrize("failing", ["", "make docker-test"])
def test_ci_keeps_no_images_beside_what_it_installs_next(failing: str, tree: Path) -> None:
    stand_ins(tree / "bin", CI_USES)
    shared = tree.parent / "shared" / "tools" / "container-engine"
    shared.parent.mkdir(parents=True)
    shared.write_text(ENGINE)
    (tree / "bin" / "docker").write_text(ENGINE_IS_THERE)
    no_record = '#!/bin/sh\ntest "$3" != is-current\n'
    (tree / ".venv" / "bin" / "python").write_text(no_record)
    groups = "make test MARK=slow and not thorough HELD=--held"
    (tree / "bin" / "make").write_text(f"{STAND_IN.rstrip()} && {{ docker info || true; }}\n")
    status, calls = run(["bash", str(tree / ".ci" / "run")], tree, failing)
    assert "docker info" in calls and "make docker-test" in calls
    assert not Path((tree / "calls.engine").read_text().strip()).exists()
    if failing:
        assert status == 1 and groups not in calls
    else:
        assert status == 0 and calls[calls.index(groups) :].count("docker info") == 0
