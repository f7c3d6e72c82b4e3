"""The Makefile's messages and choices, seen without installing anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.repository import FOLDER_GROUPS, OTHER_GROUPS, ROOT

pytestmark = pytest.mark.contract


def make(*arguments: str, folder: Path = ROOT, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run make, without what a make around this test passes on."""
    passed_on = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "NB", "FOLDER", "MARK", "COOKBOOK_INSTALL"}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        env={name: value for name, value in os.environ.items() if name not in passed_on} | settings,
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


@pytest.mark.parametrize("target", ["notebook", "script", "sweep"])
def test_a_notebook_must_be_named(target: str, tree: Path) -> None:
    result = make(target, folder=tree)
    assert result.returncode == 2
    assert f"Name a notebook: make {target} NB=" in result.stderr
    assert not (tree / ".venv").exists(), "nothing was installed first"


@pytest.mark.parametrize("target", ["notebook", "script", "sweep"])
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


def test_a_sweep_installs_the_folder_s_group_and_its_own(tree: Path) -> None:
    asked = ("NB=03-Instruction-Tuning/One.ipynb", "SET=learning_rate=1e-4,3e-4 r=8")
    result = make("-n", "sweep", *asked, folder=tree)
    wanted = ["install --with instruction-tuning", "install --with sweep"]
    assert poetry_calls(result.stdout) == wanted
    assert '-m cookbook.commands.sweep "$NB" "$SET"' in result.stdout, "not a word of it is split"


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
    wanted = [f"--with {group}" for group in (*FOLDER_GROUPS.values(), *OTHER_GROUPS, "dev")]
    assert call == "install " + " ".join(wanted)


def test_jupyter_listens_on_this_machine_only(tree: Path, tmp_path: Path) -> None:
    # A stand-in that says what it was given; tests/containers looks at the real one.
    (tree / ".venv").mkdir()
    (tree / ".venv" / ".installed-core").touch()
    show = tmp_path / "jupyter"
    show.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    show.chmod(0o755)
    (tmp_path / "python").symlink_to("/bin/true")
    given = make("jupyter", f"BIN={tmp_path}", "JUPYTER_PORT=9999", folder=tree).stdout.splitlines()
    assert {"lab", "--no-browser", "--ip=127.0.0.1", "--port=9999"} <= set(given)
    assert "token" not in str(given).lower(), "Jupyter reads it, or makes one when it is empty"


def test_python_may_keep_its_bytecode(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tree / "show.mk").write_text(
        'include Makefile\nshow:\n\t@echo "[$$PYTHONDONTWRITEBYTECODE]"\n'
    )
    assert make("-f", "show.mk", "show", folder=tree).stdout == "[]\n"


@pytest.mark.parametrize("writable", [True, False])
def test_jupyterlab_starts_only_where_it_can_write(
    writable: bool, tree: Path, tmp_path: Path
) -> None:
    (tree / ".venv").mkdir()
    (tree / ".venv" / ".installed-core").touch()
    for name, body in {
        "python": f'exec "{sys.executable}" "$@"',
        "jupyter": "echo started",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    folder = str(tmp_path) if writable else "/proc/nope"
    result = make("jupyter", f"BIN={tmp_path}", folder=tree, JUPYTER_RUNTIME_DIR=folder)
    assert (result.returncode, result.stdout) == ((0, "started\n") if writable else (2, ""))
    assert ("export JUPYTER_RUNTIME_DIR=" in result.stderr) != writable


# --- Paths, typed here or elsewhere ---------------------------------------------------------

SHOWN = ("NB", "FOLDER", "DATA", "RUN", "PIP_CONF", "PYTHON", "COOKBOOK_OFFLINE", "COOKBOOK_RUNS")


def paths(*arguments: str, folder: Path, **settings: str) -> dict[str, str]:
    """What paths come to: make's variables, and a recipe's environment in capitals."""
    lines = "".join(f"\t@printf '%s=%s\\n' {name} '$({name})'\n" for name in SHOWN)
    lines += "\t@env | grep '^COOKBOOK_' | sed 's/^/env /'\n"
    (folder / "show.mk").write_text(f"include Makefile\nshow:\n{lines}")
    call = ("make", "--no-print-directory", *arguments)
    named = {name: "" for name in (*SHOWN, "COOKBOOK_INSTALL", "COOKBOOK_FROM")} | settings
    done = subprocess.run(
        ["sh", "-c", 'cd "$0" && "$@"', str(folder), *call],
        env={name: value for name, value in os.environ.items() if name not in named} | settings,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a shell outside the repository, with files of a reader's."""
    folder = tmp_path_factory.mktemp("elsewhere") / "Ordner mit $x für «mich»"
    folder.mkdir()
    for name in ("my nb.ipynb", "my data.jsonl"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("option", [["-C"], ["-sC"], ["-j2", "-C"]])
def test_paths_typed_elsewhere_mean_the_folder_they_were_typed_in(
    option: list[str], tree: Path, elsewhere: Path
) -> None:
    typed = ["NB=my nb.ipynb", "DATA=my data.jsonl", "FOLDER=02-PEFT", "RUN=runs/gone"]
    shown = paths(
        *(*option, str(tree), "-f", str(elsewhere / "show.mk"), "show", *typed),
        folder=elsewhere,
        COOKBOOK_RUNS="my runs",
        COOKBOOK_OFFLINE="~/off",
        HOME="/home/me",
        PIP_CONF="pip.conf",
        COOKBOOK_FROM="/of/a/terminal/in/JupyterLab",
    )
    assert shown["env COOKBOOK_FROM"] == str(elsewhere)
    assert shown["NB"] == str(elsewhere / "my nb.ipynb")
    assert shown["DATA"] == str(elsewhere / "my data.jsonl")
    assert shown["COOKBOOK_RUNS"] == shown["env COOKBOOK_RUNS"] == str(elsewhere / "my runs")
    assert shown["COOKBOOK_OFFLINE"] == shown["env COOKBOOK_OFFLINE"] == "/home/me/off"
    assert shown["PIP_CONF"] == str(elsewhere / "pip.conf")
    assert (shown["FOLDER"], shown["RUN"]) == ("02-PEFT", "runs/gone"), "names in the repository"
    assert shown["PYTHON"] == "python3", "a command, which PATH finds"


def test_a_recipe_typed_in_its_own_folder_is_found(tree: Path) -> None:
    shown = paths(
        *("--directory=..", "-f", "02-PEFT/show.mk", "show", "NB=One.ipynb", "FOLDER=."),
        folder=tree / "02-PEFT",
    )
    assert (shown["NB"], shown["FOLDER"]) == (str(tree / "02-PEFT" / "One.ipynb"), "02-PEFT")


def test_paths_typed_here_stay_as_they_are(tree: Path) -> None:
    typed = ["NB=02-PEFT/One.ipynb", "FOLDER=02-PEFT/", "COOKBOOK_RUNS=r", "DATA=../x"]
    shown = paths("-f", "show.mk", "show", *typed, folder=tree, COOKBOOK_FROM="/stale")
    assert (shown["NB"], shown["FOLDER"]) == ("02-PEFT/One.ipynb", "02-PEFT")
    assert (shown["COOKBOOK_RUNS"], shown["DATA"]) == ("r", "../x")
    assert shown["env COOKBOOK_FROM"] == str(tree)


def test_a_folder_that_a_program_left_in_pwd_does_not_count(tree: Path) -> None:
    (tree / "show.mk").write_text('include Makefile\nshow:\n\t@echo "$$COOKBOOK_FROM"\n')
    assert make("-f", "show.mk", "show", folder=tree, PWD="/").stdout == f"{tree}\n"


def test_a_notebook_in_a_folder_with_spaces_gets_its_packages(tree: Path) -> None:
    (tree / "my own").mkdir()
    (tree / "my own" / "One.ipynb").touch()
    result = make("-n", "notebook", "NB=my own/One.ipynb", folder=tree)
    assert poetry_calls(result.stdout) == ["install"]


@pytest.mark.parametrize(
    ("name", "value", "wanted"), [("PYTHONUTF8", "0", "1"), ("PYTHONHOME", "/x", "")]
)
def test_python_is_started_with_utf_8_and_its_own_library(
    name: str, value: str, wanted: str, tree: Path
) -> None:
    (tree / "show.mk").write_text(f'include Makefile\nshow:\n\t@echo "$${name}"\n')
    assert make("-f", "show.mk", "show", folder=tree, **{name: value}).stdout == f"{wanted}\n"


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
