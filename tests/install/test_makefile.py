"""The Makefile's messages and choices, seen without installing anything."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.contract.repository import FOLDER_GROUPS, ROOT

pytestmark = pytest.mark.contract


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run make, without what a make around this test passes on."""
    passed_on = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "NB", "FOLDER", "MARK", "COOKBOOK_INSTALL"}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in passed_on},
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with nothing installed, and one notebook in each folder."""
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    for name in ("pyproject.toml", "poetry.lock"):
        (tmp_path / name).touch()
    for folder in FOLDER_GROUPS:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "One.ipynb").touch()
    return tmp_path


@pytest.mark.parametrize("target", ["notebook", "script"])
def test_a_notebook_must_be_named(target: str, tree: Path) -> None:
    result = make(target, folder=tree)
    assert result.returncode == 2
    assert f"Name a notebook: make {target} NB=" in result.stderr
    assert not (tree / ".venv").exists(), "nothing was installed first"


@pytest.mark.parametrize("target", ["notebook", "script"])
@pytest.mark.parametrize("path", ["02-PEFT/Two.ipynb", "02-PEFT", "a b/c.ipynb"])
def test_a_notebook_must_exist(target: str, path: str, tree: Path) -> None:
    result = make(target, f"NB={path}", folder=tree)
    assert result.returncode == 2
    assert f"There is no notebook {path}." in result.stderr
    assert "02-PEFT/One.ipynb" in result.stderr


def test_a_folder_without_notebooks_is_named(tree: Path) -> None:
    result = make("notebooks", "FOLDER=05-None", folder=tree)
    assert result.returncode == 2
    assert "no notebook in FOLDER=05-None" in result.stderr


def poetry_calls(printed: str) -> list[str]:
    """The arguments of each call of Poetry in what `make -n` printed."""
    return re.findall(r"scripts/poetry\.py (.*)", printed)


@pytest.mark.parametrize(("folder", "group"), FOLDER_GROUPS.items())
@pytest.mark.parametrize("prefix", ["", "./"])
def test_the_folder_decides_the_group(folder: str, group: str, prefix: str, tree: Path) -> None:
    result = make("-n", "notebook", f"NB={prefix}{folder}/One.ipynb", folder=tree)
    assert result.returncode == 0, result.stderr
    assert poetry_calls(result.stdout) == [f"install --with {group}"]
    result = make("-n", "notebooks", f"FOLDER={folder}/", folder=tree)
    assert poetry_calls(result.stdout) == [
        f"install --with {group}",
        "install --with dev",
        "install",
    ]


def test_a_second_install_does_nothing(tree: Path) -> None:
    (tree / ".venv").mkdir()
    stamp = tree / ".venv" / ".installed-peft"
    stamp.touch()
    assert make("-q", "install-peft", folder=tree).returncode == 0
    assert make("-q", "install-reasoning", folder=tree).returncode == 1
    os.utime(tree / "poetry.lock", (stamp.stat().st_mtime + 5,) * 2)
    assert make("-q", "install-peft", folder=tree).returncode == 1


def test_installing_all_covers_each_group() -> None:
    (call,) = poetry_calls(make("-n", "-B", "install-all").stdout)
    wanted = [f"--with {group}" for group in (*FOLDER_GROUPS.values(), "dev")]
    assert call == "install " + " ".join(wanted)


def test_jupyter_listens_on_this_machine_only(tree: Path, tmp_path: Path) -> None:
    # A stand-in that says what it was given; tests/containers looks at the real one.
    (tree / ".venv").mkdir()
    (tree / ".venv" / ".installed-core").touch()
    show = tmp_path / "jupyter"
    show.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    show.chmod(0o755)
    given = make("jupyter", f"BIN={tmp_path}", "JUPYTER_PORT=9999", folder=tree).stdout.splitlines()
    assert {"lab", "--no-browser", "--ip=127.0.0.1", "--port=9999"} <= set(given)
    assert "token" not in str(given).lower(), "Jupyter reads it, or makes one when it is empty"


def test_python_may_keep_its_bytecode(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tree / "show.mk").write_text(
        'include Makefile\nshow:\n\t@echo "[$$PYTHONDONTWRITEBYTECODE]"\n'
    )
    assert make("-f", "show.mk", "show", folder=tree).stdout == "[]\n"


def test_a_missing_python_is_named(tree: Path) -> None:
    result = make("install", "PYTHON=no-such-python", folder=tree)
    assert result.returncode == 2
    assert "There is no no-such-python. Install Python 3.11, 3.12 or 3.13" in result.stderr


def test_parallel_installs_take_turns(tree: Path) -> None:
    (tree / "scripts").mkdir()
    (tree / "scripts" / "poetry.py").write_bytes((ROOT / "scripts" / "poetry.py").read_bytes())
    fake = tree / "poetry"
    fake.write_text(
        '#!/bin/sh\ntest "$1" = --version && { echo "Poetry (version 2.4.0)"; exit; }\n'
        f'echo "begin $3" >> {tree}/log; sleep 0.3; echo "end $3" >> {tree}/log\n'
    )
    fake.chmod(0o755)
    result = make("-j4", "install-peft", "install-dev", f"POETRY={fake}", folder=tree)
    assert result.returncode == 0, result.stderr
    first, second = [line.split()[1] for line in (tree / "log").read_text().splitlines()[::2]]
    assert {first, second} == {"peft", "dev"}
    assert (tree / "log").read_text().splitlines() == [
        *(f"begin {first}", f"end {first}"),
        *(f"begin {second}", f"end {second}"),
    ]
    stamps = {path.name for path in (tree / ".venv").glob(".installed-*")}
    assert stamps == {".installed-core", ".installed-peft", ".installed-dev"}
