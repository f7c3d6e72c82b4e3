"""What is executed whenever it changed, and held by its record while it did not.

python -m tests.proofs                  what is not current, one a line (make stale)
python -m tests.proofs is-current AREA  exit status 0 if its record is
python -m tests.proofs record [AREA...] run the tests of areas and record that they passed

`hub/<recipe>` are a recipe's runs against the loopback Hub, `rehearsal/<recipe>` its rehearsals of
the GPU check; `hub` and `rehearsal` are those of all.

Recipes have records of what they measured (`cookbook.commands.record`). The areas here have records
of tests that passed: `results/**/proof-<area>.json`, with digests of what those tests depend on.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import nbformat

from cookbook.commands import proof, record
from cookbook.commands.run import recipe_of
from cookbook.profiles import ROOT, device_name
from tests.gpu import check

RESULTS = ROOT / "results"
# What trains and what tests; a notebook's digests count its own group besides (`serving`).
GROUPS = ("full-finetuning", "peft", "instruction-tuning", "reasoning", "dev")
RECIPES = tuple(recipe_of(path) for path in record.notebooks())
EXPORT = check.EXPORT
CHECKED = tuple(check.notebooks())  # on a GPU, at full size
# Every gate waits for its spot check. This recipe takes twice as long as any other: it is executed
# where something changed on which it depends.
IN_TURN = tuple(one for one in RECIPES if one != EXPORT)
KILLED = ("01-Full-Fine-Tuning/Distributed-Full-Fine-Tuning", "02-PEFT/Falcon-7B-LoRA")


@dataclass(frozen=True)
class Area:
    """Tests with one record: where it lies, and the digests of what they depend on."""

    folder: str
    inputs: Callable[[], dict[str, Any]]


def _files(*patterns: str) -> dict[str, str]:
    """Return path -> digest; of Python files what runs, of others what is no whole-line comment."""
    found = {}
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                text = path.read_text(encoding="utf-8")
                plain = re.sub(r"^\s*(#(?!!)|//).*\n", "", text, flags=re.MULTILINE)
                code = proof.code_of(text) if path.suffix == ".py" else plain
                found[path.relative_to(ROOT).as_posix()] = proof.digest(code)
    return found


def _lines(file: str, pattern: str) -> dict[str, str]:
    """Return the digest of a file's lines in which a pattern is found."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return {file: proof.digest(*(line for line in lines if re.search(pattern, line, re.I)))}


def _used(code: str) -> dict[str, str]:
    return {f"cookbook.{name}": one for name, one in proof.package().used_by(code).items()}


def _lock() -> dict[str, str]:
    return {"packages": proof.locked(GROUPS)}


def _notebooks(recipes: Iterable[str], gpu: bool = False) -> dict[str, Any]:
    """Return the digests of recipes, of what the profile `cpu` runs or with `gpu` of all code."""
    return {one: proof.digests(one, gpu=gpu) for one in recipes}


def _containers() -> dict[str, Any]:
    images = ("Dockerfile", ".dockerignore", "docker-compose.yml", ".devcontainer/**/*")
    return {
        **_files(*images, "scripts/*.sh", "scripts/hugging*.py", "scripts/pip_conf.py"),
        **_files("scripts/poetry.py", "tests/containers/*.py", "poetry.toml", "poetry.lock"),
        **_lines("Makefile", "docker|jupyter|install|poetry|venv"),
    }


def _browser() -> dict[str, Any]:
    tests = ("tests/containers/lab.py", "tests/containers/test_local*.py")
    return {**_files(*tests), **_lines("Makefile", "jupyter"), **_lock()}


def imports(root: Path = ROOT) -> str:
    """Return the digest of all that notebooks and the package import, wherever they do."""
    notebooks = (nbformat.read(path, as_version=4) for path in root.glob("[0-9]*/*.ipynb"))
    modules = (path.read_text(encoding="utf-8") for path in root.glob("cookbook/**/*.py"))
    codes = "\n".join([*map(proof.notebook_code, notebooks), *modules])
    return proof.digest(*sorted(set(re.findall(r"^\s*(?:from|import) .*", codes, re.MULTILINE))))


def _groups() -> dict[str, Any]:
    tests = ("tests/install/test_groups.py", "tests/contract/importing.py")
    return {
        **_files("scripts/poetry.py", "poetry.lock", "poetry.toml", *tests),
        **_lines("Makefile", "install|poetry|venv|stamp|group"),
        "imports": imports(),
    }


def _kills() -> dict[str, Any]:
    return {
        **_files("tests/reliability/kills.py", "tests/reliability/methods.py"),
        **_files("tests/reliability/test_interruptions.py", "tests/recipes/test_killed.py"),
        **_used("from cookbook import training, launch\ntraining, launch"),
        **_notebooks(KILLED),
        **_lock(),
    }


def _processes() -> dict[str, Any]:
    names = ("processes", "hosts", "test_processes")
    return {
        **_files(*(f"tests/reliability/{name}.py" for name in names)),
        **_files("tests/unit/tiny.py", "tests/hub/test_scripts.py", "01-*/*.yaml"),
        **_notebooks(KILLED),
        **_lock(),
    }


def _loading() -> dict[str, Any]:
    names = ("conftest", "files", "loading", "test_loading", "test_forms")
    return {
        **_files(*(f"tests/reliability/{name}.py" for name in names), "tests/unit/templates.py"),
        **_used("from cookbook import chat, data, forms, models\nchat, data, forms, models"),
        **{one: proof.digests(one)["notebook"] for one in RECIPES},
        **_lock(),
    }


def _own() -> dict[str, Any]:
    helpers = ("data_sets", "endings", "notebooks", "texts", "tokenizing")
    tests = ("any_model", "own_model_and_data", "compared")
    return {
        **_files("tests/start/*.py", *(f"tests/hub/{name}.py" for name in helpers)),
        **_files(*(f"tests/recipes/test_{name}.py" for name in tests)),
        **_notebooks(RECIPES, gpu=True),
        **_lock(),
    }


def _hub(recipe: str) -> dict[str, Any]:
    helpers = ("conftest", "data_sets", "endings", "models", "notebooks", "repositories", "server")
    names = (*helpers, "texts", "tokenizing", "test_notebooks")
    return {
        **_files("tests/start/*.py", *(f"tests/hub/{name}.py" for name in names)),
        **_files(*(f"tests/reliability/{name}.py" for name in ("files", "loading"))),
        **_files(f"{recipe.partition('/')[0]}/*.yaml"),
        **_notebooks([recipe], gpu=True),
        **_lock(),
    }


def _rehearsal(recipe: str) -> dict[str, Any]:
    steps = ("architectures", "check", "examples", "kernel", "machine", "models", "process")
    names = (*steps, "records", "samples", "store", "trial", "test_rehearsal")
    helpers = ("data_sets", "endings", "models", "repositories", "texts", "tokenizing")
    return {
        **_files(*(f"tests/gpu/{name}.py" for name in names)),
        **_files(*(f"tests/hub/{name}.py" for name in helpers)),
        **_notebooks([recipe], gpu=True),
        **_lock(),
    }


def _equal_loss() -> dict[str, Any]:
    names = ("contestants", "rows", "works", "run", "meter")
    return {
        **_files(*(f"tests/bench/{name}.py" for name in names), "tests/recipes/test_equal_loss.py"),
        **_used("from cookbook import training, data\ntraining, data"),
        **_lock(),
    }


def against_the_hub(recipe: str) -> str:
    """Return the area of a recipe's runs against the loopback Hub."""
    return f"hub/{recipe}"


AREAS = {
    "containers": Area("containers", _containers),
    "browser": Area("containers", _browser),
    "groups": Area("install", _groups),
    "kills": Area("reliability", _kills),
    "processes": Area("reliability", _processes),
    "loading": Area("reliability", _loading),
    "own": Area("reliability", _own),
    "equal-loss": Area("reliability", _equal_loss),
    **{f"rehearsal/{one}": Area("gpu-rehearsal", partial(_rehearsal, one)) for one in CHECKED},
    **{against_the_hub(one): Area("hub", partial(_hub, one)) for one in RECIPES},
}


def named(name: str) -> list[str]:
    """Return the area of a name, or those below it; the name itself where there is none."""
    return [one for one in AREAS if f"{one}/".startswith(f"{name}/")] or [name]


def path_of(area: str) -> Path:
    """Return where an area's record lies."""
    return RESULTS / AREAS[area].folder / f"proof-{area.rpartition('/')[2]}.json"


@cache
def stale(name: str) -> tuple[str, ...]:
    """Return what changed since a recipe or an area was recorded; nothing where it is current."""
    if name not in AREAS:
        return tuple(record.stale(name))
    path = path_of(name)
    if not path.exists():
        return ("no record",)
    recorded = json.loads(path.read_text(encoding="utf-8"))
    return tuple(proof.changes(recorded["digests"], AREAS[name].inputs()))


def held_by(name: str) -> str:
    """Return what holds the proof of a recipe or an area that is current, in words."""
    if name in AREAS:
        content = json.loads(path_of(name).read_text(encoding="utf-8"))
    else:
        content = record.current(name) or {}
    return f"held by the record of {content['date']}, digest {content['seal'][7:19]}"


def spot_check() -> tuple[str, ...]:
    """Return what is executed though it is current: a recipe, and its runs against the Hub.

    It is another recipe of `IN_TURN` for each commit.
    """
    count = subprocess.run(
        ["git", "rev-list", "--count", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    recipe = in_turn(int(count or 0), lambda recipe: not stale(recipe))
    return (recipe, against_the_hub(recipe)) if recipe else ()


def in_turn(count: int, is_current: Callable[[str], bool]) -> str | None:
    """Return the recipe whose turn it is after so many commits, or the next that is current."""
    turn = count % len(IN_TURN)
    return next(filter(is_current, IN_TURN[turn:] + IN_TURN[:turn]), None)


def write(areas: Iterable[str]) -> int:
    """Run the tests of areas; of each whose tests all passed, write the record."""
    failed = 0
    for area in areas:
        before = AREAS[area].inputs()
        with tempfile.TemporaryDirectory() as folder:
            listing = Path(folder) / "passed.json"
            command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
            command += ["--proof", area, "--proof-to", str(listing), "tests"]
            code = subprocess.run(command, cwd=ROOT, env={**os.environ, "CI": "1"}).returncode
            whole = code == 0 and listing.exists()  # none failed, and none was skipped
            passed = json.loads(listing.read_text(encoding="utf-8")) if whole else {}
        proof.forget()
        if not passed or before != AREAS[area].inputs():
            print(f"{area}: not recorded", file=sys.stderr)
            failed = 1
            continue
        content = {
            "area": area,
            "date": datetime.now(UTC).date().isoformat(),
            "device": device_name(),
            "digests": before,
            "seconds_by_test": passed,
        }
        text = json.dumps(proof.sealed(content), indent=1, sort_keys=True)
        path_of(area).parent.mkdir(parents=True, exist_ok=True)
        path_of(area).write_text(text + "\n", encoding="utf-8")
    return failed


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    command, names = (arguments[0], arguments[1:]) if arguments else ("list", [])
    names = [area for name in names for area in named(name)]
    if unknown := [name for name in names if name not in AREAS]:
        print(f"There is no area {unknown[0]}. Areas: {', '.join(AREAS)}", file=sys.stderr)
        return 2
    if command == "record":
        return write(names or AREAS)
    if command == "is-current":
        return int(any(stale(name) for name in names))
    for name in (*RECIPES, *AREAS):
        if changed := stale(name):
            print(f"{name}  {', '.join(changed)}")
    for folder in record.cell_folders():
        if found := record.stale_cells(folder):
            print(f"{folder.relative_to(ROOT)}  {', '.join(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
