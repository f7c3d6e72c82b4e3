"""The cookbook package stays small, and importing it imports no technique group's package."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import tokenize
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from cookbook.commands import proof, sweep
from tests.contract.importing import AFTER_TRAINING, OF_THE_CONVERTER, import_all, is_within
from tests.contract.notebook_rules import KNOWN_DISTRIBUTIONS, code_cells, imports
from tests.contract.repository import (
    ROOT,
    core_requirements,
    names,
    optional_packages,
)

pytestmark = pytest.mark.contract

# Lines of code: the design's "about a thousand" for what recipes use, grown by what keeps a run
# and its data safe (1,850 before trainings were guarded and own JSON was parsed without the reader
# that can end the kernel, 2,000 before records told what they depend on, and 2,260 before they left
# out what only a GPU runs and rows with padding could train with PyTorch's flash kernel; 2,470 to
# take people's own files, forms, templates and models as they are, and half of today's is there for
# them alone; 5,200 with `run`, `record`, `proof` and `cpu_code`, 700 lines that count as commands
# now: figures, counting and plans by timing came, and what is no lesson left the notebooks; 5,100
# before preferences: twenty forms of pairs, ratings and thumbs, and their prompts read once; 5,500
# before those became single answers, too, 5,560 before what three notebooks began with moved here,
# a hundred lines from each, and a reward model came; 5,975 before sixteen methods were compared:
# their cells, table and pictures, and the trials of a sweep), what
# commands run (1,030 before chat, export, serve and push came, 1,500 before sweeps and records of
# cells), the doctor, the embedded default,
# and what comes after training: a third of it is the server, which handles hostile input.
MOST_LINES = {"cookbook": 6470, "commands": 1825, "offline": 1050, "doctor": 1300, "serving": 2400}
# Which packages the modules of cookbook themselves import: transformers, for one, loads peft
# where that is installed, and that is not ours to forbid.
WATCH = """
import builtins, json
wanted = set()
import_module = builtins.__import__
def watch(name, globals=None, locals=None, fromlist=(), level=0):
    if (globals or {}).get("__name__", "").split(".")[0] == "cookbook" and level == 0:
        wanted.add(name.split(".")[0])
    return import_module(name, globals, locals, fromlist, level)
builtins.__import__ = watch
"""
REPORT = 'print(json.dumps({"modules": names, "imported": sorted(wanted)}))'


def optional_modules() -> set[str]:
    """Import names of the packages that only technique groups have."""
    packages = optional_packages()
    modules = {name for name, source in KNOWN_DISTRIBUTIONS.items() if source in packages}
    assert len(modules) == len(packages), f"KNOWN_DISTRIBUTIONS lacks one of {packages}"
    return modules


def imported_by_the_package(folder: Path) -> dict[str, list[str]]:
    """Import every module of the `cookbook` in `folder`: which those are, and what they import."""
    result = subprocess.run(
        [sys.executable, "-c", WATCH + import_all(AFTER_TRAINING) + REPORT],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr
    report: dict[str, list[str]] = json.loads(result.stdout.splitlines()[-1])
    return report


def code_lines(text: str) -> int:
    """Lines with code on them; blank lines, comments and docstrings are free."""
    silent = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {
        line
        for token in tokens
        if token.type not in silent
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


@pytest.mark.unit  # it imports torch and transformers: too slow for the layer that takes seconds
def test_import_loads_no_group_package() -> None:
    report = imported_by_the_package(ROOT)
    assert {"cookbook.profiles", "cookbook.commands.run", "cookbook.offline"} <= set(
        report["modules"]
    )
    assert "torch" in report["imported"], "the watch sees imports"
    assert optional_modules().intersection(report["imported"]) == set()


def test_an_import_of_a_group_package_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "cookbook" / "inner").mkdir(parents=True)
    (tmp_path / "cookbook" / "__init__.py").touch()
    (tmp_path / "cookbook" / "inner" / "__init__.py").write_text("import peft\n")
    (tmp_path / "peft.py").touch()
    report = imported_by_the_package(tmp_path)
    assert report["modules"] == ["cookbook.inner"]
    assert "peft" in report["imported"]


def test_imports_are_declared() -> None:
    """What any module imports is a direct dependency of core or of a group for users."""
    allowed = names(core_requirements()) | optional_packages()
    complaints = {
        str(path.relative_to(ROOT)): imports(
            new_notebook(cells=[new_code_cell(path.read_text(encoding="utf-8"))]), allowed
        )
        for path in sorted((ROOT / "cookbook").rglob("*.py"))
        if module_of(path) not in OF_THE_CONVERTER
    }
    assert {path: found for path, found in complaints.items() if found} == {}


def test_only_what_comes_after_training_needs_the_group_serving() -> None:
    for name, theirs in imported_within(ROOT).items():
        if not is_within(name, AFTER_TRAINING):
            assert not [one for one in theirs if one.startswith("cookbook.serving")], name


def test_the_package_is_small() -> None:
    lines = dict.fromkeys(MOST_LINES, 0)
    for path in sorted((ROOT / "cookbook").rglob("*.py")):
        lines[path.parent.name] += code_lines(path.read_text(encoding="utf-8"))
    assert all(0 < lines[part] <= most for part, most in MOST_LINES.items()), lines


def module_of(path: Path, folder: Path = ROOT) -> str:
    """Return the name under which a file of the package is imported."""
    return ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")


def imported_within(folder: Path) -> dict[str, set[str]]:
    """Return module -> modules of the same package that it imports, at any depth of its code."""
    files = {module_of(path, folder): path for path in folder.glob("cookbook/**/*.py")}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        imports = [one for one in nodes if isinstance(one, ast.ImportFrom) and one.module]
        whole = {f"{one.module}.{part.name}" for one in imports for part in one.names}
        found[name] = (whole | {str(one.module) for one in imports}) & {*files} - {name}
    return found


def circles(imports: dict[str, set[str]]) -> list[str]:
    """Return modules that end up importing themselves."""
    reached = {name: set(theirs) for name, theirs in imports.items()}
    for _ in reached:
        for theirs in reached.values():
            theirs |= {far for near in theirs for far in reached[near]}
    return sorted(name for name, theirs in reached.items() if name in theirs)


def test_no_module_imports_itself_in_the_end() -> None:
    # A package imports what it passes on, and its modules lie inside of it.
    inner = {k: v - {"cookbook", "cookbook.offline"} for k, v in imported_within(ROOT).items()}
    assert circles(inner) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


def test_notebooks_and_what_they_import_use_no_command() -> None:
    for name, theirs in imported_within(ROOT).items():
        if "commands" not in name:
            assert not [one for one in theirs if "commands" in one], name
    for path in ROOT.glob("0*/*.ipynb"):
        assert "cookbook.commands" not in path.read_text(encoding="utf-8"), path.name


def unused(root: Path, sources: list[str]) -> list[str]:
    """Return functions and classes of the modules for notebooks that `sources` do not lead to."""
    package = proof.Package(root)
    used = {name for source in sources for name in package.used_by(source, apart=())}
    defined = {
        f"{path.stem}.{node.name}"
        for path in root.glob("cookbook/*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    return sorted(defined - used)


def test_what_only_tests_use_is_not_there(tmp_path: Path) -> None:
    files = [
        *ROOT.glob("cookbook/commands/**/*.py"),
        *ROOT.glob("cookbook/offline/*.py"),
        *ROOT.glob("scripts/*.py"),
        ROOT / "cookbook" / "paths.py",  # make check-caches runs it
    ]
    sources = [path.read_text(encoding="utf-8") for path in files]
    sources.append(sweep.APART)  # a cell of the notebooks' copies
    for path in ROOT.glob("0*/*.ipynb"):
        sources.append("\n".join(code_cells(nbformat.read(path, as_version=4))))
    assert unused(ROOT, sources) == []
    (tmp_path / "cookbook").mkdir()
    module = "def used():\n    return _part()\n\ndef _part(): ...\n\ndef idle(): ...\n"
    (tmp_path / "cookbook" / "one.py").write_text(module)
    (tmp_path / "cookbook" / "__init__.py").write_text("")
    assert unused(tmp_path, ["from cookbook import one\none.used()\n"]) == ["one.idle"]


def test_code_lines() -> None:
    assert code_lines('"""Doc\n\nmore."""\n\n# why\nx = [\n    1,  # one\n]\n') == 3
