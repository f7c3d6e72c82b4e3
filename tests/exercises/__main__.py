"""Measure the answers of the notebooks' exercises, and write them into the notebooks.

python -m tests.exercises                       all notebooks
python -m tests.exercises 02-PEFT/Falcon-7B-LoRA.ipynb --only rank
python -m tests.exercises --tables              only rewrite the tables

Each exercise changes a few lines of its notebook, which is then executed on the profile `cpu`.
What came of it is kept in results/exercises, beside the same figures of the notebook as it is. Of
that the record on the same hardware has to be current: an answer compares runs of one code. What
was measured of this code is not measured again, so an interrupted measurement can go on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import nbformat

from cookbook.commands import record
from cookbook.commands.proof import code_digest
from cookbook.commands.run import recipe_of
from cookbook.profiles import ROOT, compute_dtype, device_name
from tests.bench.documents import with_markdown
from tests.exercises.catalogue import EXERCISES, SEEDS, Exercise
from tests.faults.planting import swap

RESULTS = ROOT / "results" / "exercises"
AS_IT_IS = "as it is"
MEASURED = re.compile(r"(<!-- exercise: (\S+) -->\n)(?:\|.*\n?)*")

Content = dict[str, Any]


def changed(notebook: str, changes: Sequence[tuple[str, str]]) -> str:
    """Return a notebook's text with the lines changed that an exercise changes."""
    for old, new in changes:
        notebook = swap(old, new)(notebook)
    return notebook


def figures(folder: Path, exercises: Sequence[Exercise]) -> Content:
    """Return what the exercises compare of an executed notebook and its metrics."""
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    found = {one["name"]: one["after"] for one in content["metrics"]}
    found[content["forgetting"]["name"]] = content["forgetting"]["after"]
    found["seconds"] = content["train"]["seconds"]
    found["peak_memory_gib"] = content["train"]["peak_memory_bytes"] / 2**30
    executed = nbformat.read(next(folder.glob("*.ipynb")), as_version=4)
    outputs = [one for cell in executed.cells for one in cell.get("outputs", [])]
    printed = "".join(one.get("text", "") for one in outputs)
    for exercise in exercises:
        for name, pattern in exercise.printed.items():
            if match := re.search(pattern, printed):
                found[name] = float(match[1].replace(",", ""))
    return found


def current(recipe: str) -> record.Run:
    """Return the recipe's record on this hardware with seed 0, which has to be current."""
    run = record.current(recipe)
    here = (device_name(), str(compute_dtype()).removeprefix("torch."))
    if run is None or (run["hardware"]["device"], run["hardware"]["precision"]) != here:
        raise SystemExit(f"{recipe} has no current record of this machine: record it first.")
    return run


def executed(path: Path, notebook: str, seed: int, exercises: Sequence[Exercise]) -> Content:
    """Execute a notebook's text in a folder of its own and return what the exercises compare."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.parent.name, path.name)
        copy.parent.mkdir()
        copy.write_text(notebook, encoding="utf-8")
        own = {
            "COOKBOOK_RUNS": f"{folder}/runs",
            "COOKBOOK_PROFILE": "cpu",
            "COOKBOOK_SEED": str(seed),
        }
        command = [sys.executable, "-m", "cookbook.commands.run", str(copy)]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | own)
        return figures(Path(folder, "runs", recipe_of(path), "cpu"), exercises)


def begun(target: Path, notebook: str, run: record.Run) -> Content:
    """Return what was measured of this code before, or nothing yet."""
    of = {
        "notebook": code_digest(nbformat.reads(notebook, as_version=4)),
        "record": run["seal"],
        "device": run["hardware"]["device"],
        "precision": run["hardware"]["precision"],
    }
    kept = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    if {name: kept.get(name) for name in of} != of:
        kept = of | {"changes": {}, "figures": {}}
    return dict(kept)


def measure(path: Path, only: Sequence[str]) -> None:
    """Execute the exercises of a notebook, and itself with other seeds, and keep their figures."""
    recipe, target = recipe_of(path), RESULTS / path.parent.name / f"{path.stem}.json"
    exercises, notebook = EXERCISES[recipe], path.read_text(encoding="utf-8")
    kept = begun(target, notebook, current(recipe))
    recorded = figures(ROOT / "runs" / recipe / "cpu-seed0", exercises)
    kept["figures"].setdefault(AS_IT_IS, {})["0"] = recorded
    wanted = {AS_IT_IS: (), **{one.name: one.changes for one in exercises}}
    for name, changes in wanted.items():
        if only and name not in (AS_IT_IS, *only):
            continue
        told = [list(change) for change in changes]
        if kept["changes"].get(name, told) != told:
            del kept["figures"][name]
        kept["changes"][name] = told
        text = changed(notebook, changes)
        for seed in SEEDS.get(recipe, (0,)):
            if str(seed) in kept["figures"].setdefault(name, {}):
                continue
            kept["figures"][name][str(seed)] = executed(path, text, seed, exercises)
            kept["date"] = datetime.now(UTC).date().isoformat()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            print(f"measured {recipe}: {name}, seed {seed}", flush=True)


def table(content: Content, exercise: Exercise) -> str:
    """Return an exercise's figures as a table: the notebook as it is, and changed.

    Of several seeds the mean, with the least and the most of them.
    """
    names, found = exercise.shown, content["figures"]
    seeds = sorted(found[exercise.name])
    said = f"seed {seeds[0]}" if len(seeds) == 1 else f"mean of {len(seeds)} seeds"
    where = f"{content['device']}, {content['precision']}, {said}"
    lines = [f"| {where} | {' | '.join(names)} |"]
    lines.append("| --- |" + " --- |" * len(names))
    rows = {AS_IT_IS: AS_IT_IS, exercise.name: exercise.title}
    columns = [
        numbers([[found[row][seed][name] for seed in seeds] for row in rows]) for name in names
    ]
    for title, *cells in zip(rows.values(), *columns, strict=True):
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def numbers(column: Sequence[Sequence[float]]) -> list[str]:
    """Return the mean of each row's values, and their range, with digits that say something."""
    every = [value for values in column for value in values]
    digits = 3 if any(value != round(value, 1) for value in every) else 1
    if max(map(abs, every)) >= 10:
        digits = 0
    cells = []
    for values in column:
        mean, least, most = (
            f"{value:,.{digits}f}" for value in (fmean(values), min(values), max(values))
        )
        cells.append(mean if least == most else f"{mean} ({least} to {most})")
    return cells


def with_tables(text: str, recipe: str) -> str:
    """Return a Markdown text of a notebook with the tables of its exercises filled in."""
    path = RESULTS / f"{recipe}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"figures": {}}

    def fill(found: re.Match[str]) -> str:
        one = next(one for one in EXERCISES[recipe] if one.name == found[2])
        return found[1] + table(content, one) if one.name in content["figures"] else found[0]

    return MEASURED.sub(fill, text)


def rewritten(path: Path) -> str:
    """Return the text of a notebook file with the tables of its exercises filled in."""
    text = path.read_text(encoding="utf-8")
    return with_markdown(text, lambda cell: with_tables(cell, recipe_of(path)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="all notebooks if none is named")
    parser.add_argument("--only", nargs="+", default=[], help="names of exercises")
    parser.add_argument("--tables", action="store_true", help="only rewrite the tables")
    options = parser.parse_args(arguments)
    for path in options.notebooks or record.notebooks():
        if not options.tables:
            measure(path.resolve(), options.only)
        path.write_text(rewritten(path.resolve()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
