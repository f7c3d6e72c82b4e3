"""Every command that a document shows is called as it stands there, with stand-ins for long work.

The shell, make and its recipes are the real ones. What a recipe calls only tells how it was called;
what a notebook's kernel makes of that is then seen in a real kernel.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from tests.contract import doc_rules
from tests.contract.repository import FOLDER_GROUPS, ROOT, make_targets, notebooks

DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *(ROOT / folder / "README.md" for folder in FOLDER_GROUPS),
    *notebooks(),
]
# Program -> why a test does not call it itself.
STAND_INS = {
    "python": "trains, installs or runs these very tests for minutes",
    "python3": "as python",
    "python3.12": "as python, and is not on each machine",
    "pip": "gigabytes; tests/install/test_beside_torch.py installs",
    "jupyter": "a server that does not end",
    "docker": "a container engine and gigabytes; tests/containers uses it",
    "torchrun": "eight GPUs, or two machines; tests/reliability and tests/hub launch processes",
    "accelerate": "as torchrun",
    "pre-commit": "writes a hook into the repository's .git; its checks are those of make lint",
    "pip-audit": "asks a database; tests/install/test_audit.py calls it against one of its own",
    "nbqa": "as black",
    "black": "make lint checks all files",
    "isort": "as black",
    "flake8": "as black",
    "mypy": "as black",
    "nbstripout": "as black",
}
# Command -> why not even its stand-ins are called here.
ELSEWHERE = {
    ".ci/run": "tests/contract/test_exit_status.py runs it",
    "COOKBOOK_RECORD=1 .ci/run": "as .ci/run",
}
# Targets that are spoken of by name: called like this they ask for a notebook, or for a run.
NAMES = {f"make {name}" for name in ("notebook", "script", "sweep", "check-data")}
NAMES |= {f"make {name}" for name in ("chat", "export", "serve", "push")}
# What a reader has of their own, by the names in the documents.
OWN = ("my.jsonl", "my.csv", "my-model/config.json")
STAND_IN = """#!{python} -S
import hashlib, json, os, sys
told = {{name: os.environ[name] for name in os.environ if name.startswith(("COOKBOOK_", "PYTHON"))}}
files = [name for name in sys.argv[1:] if name.endswith(".ipynb") and os.path.isfile(name)]
content = [hashlib.sha256(open(name, "rb").read()).hexdigest() for name in files]
call = dict(program=os.path.basename(sys.argv[0]), arguments=sys.argv[1:], told=told)
call |= dict(folder=os.getcwd(), notebooks=content)
open({log!r}, "a").write(json.dumps(call) + "\\n")
"""
COMMAND = re.compile(r"(\w+=\S* )*(make [a-z]|(\.venv/bin/)?python3? -m |\.ci/)")


@dataclass(frozen=True)
class Call:
    """How a stand-in was called."""

    program: str
    arguments: list[str]
    told: dict[str, str]
    folder: str
    notebooks: list[str]


def commands(path: Path) -> list[str]:
    """What a document shows as shell: its blocks, and the commands in its text."""
    found = []
    for token in doc_rules.PARSER.parse(doc_rules.markdown_of(path)):
        if token.type == "fence" and token.info in {"bash", "sh", "shell", "console"}:
            found.append(token.content)
        spans = [one.content for one in token.children or [] if one.type == "code_inline"]
        found += [text for text in spans if COMMAND.match(text) and text not in NAMES]
    return list(dict.fromkeys(found))


def settings(path: Path) -> set[str]:
    """The variables that a document sets, for make or for the cookbook."""
    text = doc_rules.markdown_of(path)
    found = set(re.findall(r"\bCOOKBOOK_[A-Z_]*[A-Z]\b", text))
    for line in "\n".join(commands(path)).replace("\\\n", " ").splitlines():
        if re.search(r"\bmake [a-z]", line):
            found |= set(re.findall(r"\b([A-Z][A-Z_]+)=", line.partition("#")[0]))
    return found


Shell = Callable[[str], list[Call]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The notebooks and the Makefile beside stand-ins and a reader's files."""
    tree = tmp_path / "a checkout"
    (tree / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tree / "Makefile")
    for name in ("pyproject.toml", "poetry.lock"):
        (tree / name).touch()
    for path in notebooks():
        (tree / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tree / path.parent.name)
    for name in OWN:
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).touch()
    text = STAND_IN.format(python=sys.executable, log=str(tmp_path / "calls"))
    for folder in (tree / ".venv" / "bin", tmp_path / "bin"):
        folder.mkdir(exist_ok=True)
        for name in STAND_INS:
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o755)
    return tree


@pytest.fixture
def shell(tree: Path, tmp_path: Path) -> Shell:
    """A function that runs a text as bash would after `cd tree`, and returns the calls."""
    log = tmp_path / "calls"
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}

    def run(text: str, folder: Path = tree) -> list[Call]:
        log.write_text("", encoding="utf-8")
        # Nothing is installed, so that each target that installs has something to do.
        for stamp in (tree / ".venv").glob(".installed-*"):
            stamp.unlink()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=folder,
            env=kept | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path)},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        lines = log.read_text(encoding="utf-8").splitlines()
        return [Call(**json.loads(line)) for line in lines]

    return run


def relative(path: Path) -> str:
    """Test id."""
    return str(path.relative_to(ROOT))


@pytest.mark.contract
@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_what_a_document_shows_can_be_called(path: Path, shell: Shell) -> None:
    for text in commands(path):
        if text in ELSEWHERE:
            continue
        targets = doc_rules.targets_called(text)
        assert targets <= make_targets(), text
        # $script is a line of an earlier block.
        calls = shell("script=runs/scripts/x.py\n" + text)
        assert calls or targets <= {"help"}, f"nothing was called by: {text}"
        assert [problem for call in calls if (problem := unknown(call))] == [], text


def unknown(call: Call) -> str | None:
    """What is wrong with how Python was called: no such module, or no such option of it."""
    if call.program not in {"python", "python3"} or call.arguments[:1] != ["-m"]:
        return None
    module, *rest = call.arguments[1:]
    if module.split(".")[0] not in {"cookbook", "scripts", "tests"}:
        return None
    place = ROOT / module.replace(".", "/")
    files = [one for one in (place.with_suffix(".py"), place / "__main__.py") if one.is_file()]
    if not files:
        return f"there is no module {module}"
    source = files[0].read_text(encoding="utf-8")
    options = [word for word in rest if word.startswith("--") and f'"{word}"' not in source]
    return f"{module} has no {', '.join(options)}" if options else None


@pytest.mark.contract
@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_what_a_document_sets_is_read_by_something(path: Path) -> None:
    readers = [ROOT / "Makefile", ROOT / "docker-compose.yml", ROOT / ".ci" / "run"]
    for folder in ("cookbook", "scripts", "tests"):
        readers += [one for one in (ROOT / folder).rglob("*.py") if one != Path(__file__)]
    text = "\n".join(one.read_text(encoding="utf-8") for one in readers)
    assert {name for name in settings(path) if not re.search(rf"\b{name}\b", text)} == set()


@pytest.mark.contract
def test_settings_of_a_loop_reach_each_run(shell: Shell) -> None:
    """Loops over changed copies of a notebook change it, and no run lands on another's."""
    for path in DOCUMENTS:
        for text in commands(path):
            runs = [
                call
                for call in shell_loop(shell, text)
                if "cookbook.commands.run" in call.arguments
            ]
            assert len({call.told["COOKBOOK_RUNS"] for call in runs}) == len(runs), text
            assert len({str(call.notebooks) for call in runs}) == len(runs), text


def shell_loop(shell: Shell, text: str) -> list[Call]:
    """The calls of a text that is a loop; none for others."""
    return shell(text) if re.search(r"\bfor \w+ in\b", text) else []


@pytest.mark.contract
def test_a_broken_command_is_found_out(shell: Shell) -> None:
    with pytest.raises(AssertionError, match="There is no notebook 02-PEFT/Gone.ipynb"):
        shell("make notebook NB=02-PEFT/Gone.ipynb")
    (call,) = shell(".venv/bin/python -m tests.bench --no-such-option")
    assert unknown(call) == "tests.bench has no --no-such-option"
    (call,) = shell("python -m cookbook.gone")
    assert unknown(call) == "there is no module cookbook.gone"


SAYS = """
from cookbook.profiles import choose_profile
from cookbook.report import run_folder
config = choose_profile(SETTINGS)
print(config.model, config.dataset, run_folder("99-Test/Small", config), sep="\\n")
"""
TABLE = (
    'SETTINGS = {"model": ("offline:m", "m", "m"), "dataset": ("offline:d", "d", "d"), '
    '"max_steps": (1, 1, 1)}'
)


def tiny(path: Path) -> None:
    """Write a notebook that only tells what it was led to."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(text) for text in (TABLE, SAYS)]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, path)


def seen_by_a_kernel(call: Call, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Do what a call of `make notebook` asks for, and return what its kernel printed."""
    from cookbook.commands import run

    for name in [name for name in os.environ if re.match("COOKBOOK_(?!TEST_)", name)]:
        monkeypatch.delenv(name)
    for name, value in {**call.told, "COOKBOOK_PROFILE": "cpu"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(call.folder)
    path = Path(call.arguments[-1])
    tiny(path)
    assert run.main([str(path)]) == 0
    recipe = f"{path.parent.name}/{path.stem}"
    (executed,) = Path(call.folder, call.told["COOKBOOK_RUNS"], recipe).glob("*/*.ipynb")
    outputs = nbformat.read(executed, as_version=4).cells[-1].outputs
    return "".join(one.text for one in outputs if one.get("name") == "stdout").splitlines()


@pytest.mark.unit
def test_a_kernel_sees_own_files_where_the_shell_has_them(
    shell: Shell, tree: Path, monkeypatch: pytest.MonkeyPatch, shared_start: None
) -> None:
    shown = {text for path in DOCUMENTS for text in commands(path)}
    wanted = sorted(text for text in shown if re.search(r"COOKBOOK_(DATASET|MODEL)=", text))
    calls = [call for text in wanted for call in shell(f"export COOKBOOK_RUNS='my runs'\n{text}")]
    calls = [call for call in calls if "cookbook.commands.run" in call.arguments]
    assert len(calls) >= len(FOLDER_GROUPS), "each folder's README shows own data"
    for call in calls:
        told = call.told
        model, data = told.get("COOKBOOK_MODEL"), told.get("COOKBOOK_DATASET")
        assert seen_by_a_kernel(call, monkeypatch) == [
            str(tree / model) if model else "offline:m",
            str(tree / data) if data else "offline:d",
            str(tree / told["COOKBOOK_RUNS"] / "99-Test" / "Small" / "cpu-own"),
        ]
