"""The phases of `.ci/run` as a table, and kept with the machine.

python -m tests.times NAME=SECONDS ...  print it; with COOKBOOK_RECORD=1 record it too
python -m tests.times                   print what is recorded on this machine

The record is `results/gate/<machine>.json`. Beside the phases it has the seconds of each test
file, by which the time with more recipes and with the slowest spot check is calculated: what is run
for each recipe grows, the rest stays. And what a newcomer waits before anything is seen: the
quickstart's imports.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import torch

from cookbook.commands import proof, record
from cookbook.profiles import ROOT, compute_dtype, device_name
from tests import proofs

LAST = ROOT / "runs" / "tests"  # what the last `make test` took, one file for each part
RESULTS = ROOT / "results" / "gate"
RECIPES = len(record.notebooks())
TO_THE_FIRST_CELL = "imports to the quickstart's first cell: {quickstart} s, torch alone {torch} s"
QUICKSTART = ROOT / "02-PEFT" / "Falcon-7B-LoRA.ipynb"
# Times as long as in bfloat16: in float32, on a processor without units for it.
SLOWEST = 6
AGAINST_THE_HUB = "tests/hub/test_notebooks.py"
# Files whose tests are there once for each recipe, or nearly so, and held by no record of its own.
GROW = {
    "tests/hub/test_mistakes.py",
    "tests/hub/test_repositories.py",
    "tests/recipes/test_any_model.py",
    "tests/contract/test_notebooks.py",
}


def keep(part: str, seconds: float, by_test: dict[str, float]) -> None:
    """Keep how long a part of the tests took, and each of its files."""
    LAST.mkdir(parents=True, exist_ok=True)
    files: defaultdict[str, float] = defaultdict(float)
    for test, took in by_test.items():
        files[test.partition("::")[0]] += took
    content = {"seconds": round(seconds), "files": {k: round(v, 1) for k, v in files.items()}}
    (LAST / f"{part}.json").write_text(json.dumps(content), encoding="utf-8")


def kept() -> dict[str, Any]:
    """Return what the last tests took."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in LAST.glob("*.json")}


def with_recipes(tests: dict[str, Any], recipes: int, held: int = RECIPES) -> float:
    """Return the seconds of `make test` with so many recipes, of which one is executed.

    Small tests: what is there once for each recipe grows with them, in the share that it has of all
    test time. Large tests: the spot check is one recipe, however many there are.
    """
    small, large = tests["small"], tests["large"]
    all_files = sum(small["files"].values())
    growing = sum(took for name, took in small["files"].items() if name in GROW)
    share = growing / all_files
    return float(small["seconds"] * (1 + share * (recipes / held - 1)) + large["seconds"])


def at_worst(tests: dict[str, Any], recipes: int, precision: str, held: int = RECIPES) -> float:
    """Return the same with the slowest spot check, by the records in a precision.

    A spot check is a recipe, and its runs against the Hub, two at a time among the small tests.
    With units for bfloat16 on two cores recipes take what was recorded there, and the rest is no
    slower than here.
    """
    executed = tests["large"]["files"].get("tests/recipes/test_recipes.py", 0)
    executed += tests["small"]["files"].get(AGAINST_THE_HUB, 0) / 2
    slowest = max(_spot_seconds(recipe, precision) for recipe in proofs.IN_TURN)
    return with_recipes(tests, recipes, held) - float(executed) + slowest


def _spot_seconds(recipe: str, precision: str) -> float:
    path, runs = proofs.path_of(proofs.against_the_hub(recipe)), record.recorded_runs(recipe)
    small = json.loads(path.read_text(encoding="utf-8"))["seconds_by_test"] if path.exists() else {}
    # Where a precision was not recorded, any: a processor with units for bfloat16 is no slower.
    slowest = max(seconds_in(runs, precision) or seconds_in(runs) or [0.0])
    return slowest + sum(map(float, small.values())) / 2


def seconds_in(runs: Iterable[record.Run], precision: str | None = None) -> list[float]:
    """Return what recorded notebooks took, in a precision or in any; the oldest have no time."""
    return [
        float(one["notebook_seconds"])
        for one in runs
        if "notebook_seconds" in one and precision in (None, one["hardware"]["precision"])
    ]


def expected_seconds(runs: Sequence[record.Run], dtype: torch.dtype) -> float:
    """Return how long a recipe will take in a precision: as its slowest run in it did.

    Where none was recorded, `SLOWEST` times as long as the slowest of all.
    """
    alike = seconds_in(runs, str(dtype).removeprefix("torch."))
    return max(alike) if alike else SLOWEST * max(seconds_in(runs))


def imports_of(notebook: Path) -> str:
    """Return the import statements of a notebook, in their order."""
    code = proof.notebook_code(nbformat.read(notebook, as_version=4))
    found = [one for one in ast.parse(code).body if isinstance(one, ast.Import | ast.ImportFrom)]
    return "\n".join(map(ast.unparse, found))


def seconds_of(code: str) -> float:
    """Return the seconds that code takes in an interpreter of its own, its start not counted."""
    timed = f"import time\nbegun = time.perf_counter()\n{code}\nprint(time.perf_counter() - begun)"
    ran = subprocess.run(
        [sys.executable, "-c", timed], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return round(float(ran.stdout.split()[-1]), 2)


def imports_seconds() -> dict[str, float]:
    """Return what the quickstart's imports take, and torch's alone, by which machines compare."""
    return {"torch": seconds_of("import torch"), "quickstart": seconds_of(imports_of(QUICKSTART))}


def table(phases: dict[str, int], tests: dict[str, Any], precision: str) -> str:
    """Return the phases, their sum, and `make test` calculated with the slowest spot check."""
    rows = [*phases.items(), ("all phases", sum(phases.values()))]
    if {"small", "large"} <= tests.keys():
        rows += [(f"  of the tests: {name}", one["seconds"]) for name, one in tests.items()]
        rows += [
            (f"  {recipes} recipes, {dtype}, calculated", round(at_worst(tests, recipes, dtype)))
            for recipes in (RECIPES, 2 * RECIPES)
            for dtype in sorted({"bfloat16", precision})
        ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{width}}  {took // 60:3d} min {took % 60:2d} s" for name, took in rows
    )


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    phases = {name: int(took) for name, _, took in (one.rpartition("=") for one in arguments)}
    precision = str(compute_dtype()).removeprefix("torch.")
    machine = f"{os.cpu_count()}x {device_name()} {precision}"
    path = RESULTS / f"{record.in_file_names(machine)}.json"
    if phases:
        content: dict[str, Any] = {
            "date": datetime.now(UTC).date().isoformat(),
            "device": device_name(),
            "cores": os.cpu_count(),
            "precision": precision,
            "system": platform.machine(),
            "recipes": RECIPES,
            "phases": phases,
            "imports_seconds": imports_seconds(),
            "tests": kept(),
        }
    else:
        content = json.loads(path.read_text(encoding="utf-8"))
    print(table(content["phases"], content["tests"], content["precision"]))
    print(TO_THE_FIRST_CELL.format(**content["imports_seconds"]))
    if phases and os.environ.get("COOKBOOK_RECORD"):
        RESULTS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
