"""Each technique group is enough for its folder, and brings nothing that only others need.

Every group is installed from nothing, by `make install-<group>`, in a copy of the repository.
With COOKBOOK_RECORD=1 the bytes each adds above core go to results/install/groups.json.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

from tests.contract.importing import AFTER_TRAINING, OF_THE_CONVERTER, import_all
from tests.contract.lock_rules import Target, is_selected, read_lock
from tests.contract.notebook_rules import KNOWN_DISTRIBUTIONS, code_cells
from tests.contract.repository import (
    FOLDER_GROUPS,
    ROOT,
    copy_files,
    group_requirements,
    names,
    notebooks,
)

pytestmark = [pytest.mark.slow, pytest.mark.held("groups")]

RESULTS = ROOT / "results" / "install" / "groups.json"
INSTALL_LIMIT = 1200  # seconds; the first install downloads 3 GB
HERE = Target(platform.system(), platform.machine(), sys.version_info[:2])
LIST_INSTALLED = """
import json
from importlib import metadata
print(json.dumps(sorted(d.metadata["Name"].lower().replace("_", "-").replace(".", "-")
                        for d in metadata.distributions())))
"""


class Measured(NamedTuple):
    """One fresh installation."""

    bytes: int
    seconds: float


MEASURED: dict[str, Measured] = {}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of what a clone would hold; `.poetry` is bootstrapped in it by the first install."""
    folder = tmp_path_factory.mktemp("groups") / "repository"
    copy_files(folder)
    yield folder
    shutil.rmtree(folder)


def install(tree: Path, target: str) -> Measured:
    """`make <target>` with no `.venv` there before."""
    shutil.rmtree(tree / ".venv", ignore_errors=True)
    started = time.monotonic()
    result = subprocess.run(
        ["make", target],
        cwd=tree,
        env=outer_environment(),
        capture_output=True,
        text=True,
        timeout=INSTALL_LIMIT,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return Measured(bytes_of(tree / ".venv"), round(time.monotonic() - started, 1))


def outer_environment() -> dict[str, str]:
    """This process's environment, without the make around it; with the Python that runs now."""
    inner = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "NB", "FOLDER", "MARK", "POETRY"}
    kept = {name: value for name, value in os.environ.items() if name not in inner}
    # The pinned Poetry is what a fresh machine gets.
    return {**kept, "PYTHON": sys.executable, "POETRY": "bootstrap"}


def bytes_of(folder: Path) -> int:
    """Sizes of all regular files below a folder."""
    return sum(
        path.lstat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    )


def run_python(tree: Path, code: str) -> str:
    """Standard output of `code` in the fresh environment, run in the copy."""
    result = subprocess.run(
        [str(tree / ".venv" / "bin" / "python"), "-c", code],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, f"{code}\n{result.stderr[-3000:]}"
    return result.stdout


def foreign_packages(groups: set[str]) -> set[str]:
    """Locked packages that `groups` do not select on this machine."""
    lock = read_lock(ROOT / "poetry.lock")
    wanted = {package["name"] for package in lock if is_selected(package, HERE, groups)}
    return {package["name"] for package in lock} - wanted


def check_packages(tree: Path, groups: set[str]) -> None:
    """What is needed is there, and what only other groups need is not."""
    installed = set(json.loads(run_python(tree, LIST_INSTALLED)))
    lock = read_lock(ROOT / "poetry.lock")
    wanted = {package["name"] for package in lock if is_selected(package, HERE, groups)}
    # venv itself brings pip, which some group may lock for its own use.
    assert installed & foreign_packages(groups) - {"pip"} == set()
    assert wanted - installed == set()


def import_lines(folder: str, group: str) -> str:
    """The imports of the folder's notebooks; of the group's packages where it has none yet."""
    lines = [
        ast.unparse(node)
        for path in notebooks()
        if path.parent.name == folder
        for source in code_cells(nbformat.read(path, as_version=4))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    direct = names(group_requirements(group))
    modules = {name for name, package in KNOWN_DISTRIBUTIONS.items() if package in direct}
    assert len(modules) == len(direct), f"KNOWN_DISTRIBUTIONS lacks one of {direct}"
    return "\n".join([*lines, *(f"import {name}" for name in sorted(modules))])


def test_core_from_nothing(tree: Path) -> None:
    MEASURED["core"] = install(tree, "install")
    check_packages(tree, {"main"})
    run_python(tree, import_all(AFTER_TRAINING))


@pytest.mark.parametrize(("folder", "group"), FOLDER_GROUPS.items())
def test_group_from_nothing(folder: str, group: str, tree: Path) -> None:
    MEASURED[group] = install(tree, f"install-{group}")
    check_packages(tree, {"main", group})
    run_python(tree, import_lines(folder, group))
    run_python(tree, import_all(OF_THE_CONVERTER if group == "serving" else AFTER_TRAINING))
    core = MEASURED.get("core")
    assert core is None or MEASURED[group].bytes > core.bytes


def test_sizes_are_recorded() -> None:
    if os.environ.get("COOKBOOK_RECORD") != "1":
        pytest.skip("COOKBOOK_RECORD=1 records the sizes")
    assert set(MEASURED) == {"core", *FOLDER_GROUPS.values()}, "record with the whole module"
    core = MEASURED["core"]
    record = {
        "core": {"bytes": core.bytes, "seconds": core.seconds},
        "groups": {
            group: {"added_bytes": measured.bytes - core.bytes, "seconds": measured.seconds}
            for group, measured in MEASURED.items()
            if group != "core"
        },
        "platform": f"{HERE.system} {HERE.machine}",
        "python": platform.python_version(),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
