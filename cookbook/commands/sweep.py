"""Try settings of a notebook on rows that no score uses.

`python -m cookbook.commands.sweep 02-PEFT/<name>.ipynb "learning_rate=1e-4,3e-4,1e-3"` is what
`make sweep` calls. Each combination of values is a trial: a copy of the notebook with these
settings, executed up to its metrics. The rows that score it are cut from the training rows, and the
test split is not read. A sweep that was killed goes on with the next call. The trials, their table
and a plot lie in `runs/sweeps`.
"""

import argparse
import ast
import difflib
import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import torch

from cookbook import report, sweeps
from cookbook.commands import proof, record
from cookbook.commands.run import parameters, recipe_of, with_settings
from cookbook.paths import as_typed, start_command
from cookbook.profiles import ROOT, CookbookError, choose_profile

EXAMPLE = 'SET="learning_rate=1e-4,3e-4,1e-3"'
APART = (
    "from cookbook import sweeps\n\nsweeps.keep_rows_apart()  # this copy is a trial of make sweep"
)
KEPT = {".json", ".png", ".ipynb"}  # of a trial; not its weights
# What else makes a trial another one.
_VARIABLES = (
    "MODEL",
    "DATASET",
    "MAX_STEPS",
    "MAX_LENGTH",
    "SEED",
    "COLUMNS",
    "SPLITS",
    "PRECISION",
)

Settings = dict[str, Any]
Content = dict[str, Any]


class TrialFailed(CookbookError):
    """A trial's notebook did not come to its end."""


def asked(text: str, config: SimpleNamespace) -> list[Settings]:
    """Return all combinations of the values that a text like `r=8,16 alpha=32` asks for.

    Raises `CookbookError` for a setting that the notebook has not, and for a value of another type.
    """
    there = {name: value for name, value in vars(config).items() if name not in ("profile", "own")}
    found: dict[str, list[Any]] = {}
    for part in text.split():
        name, equals, values = part.partition("=")
        if not equals or not values:
            raise CookbookError(f"{part!r} names no values. Such as: {EXAMPLE}")
        if name in ("model", "dataset"):
            raise CookbookError(
                f"Another {name} is no setting to sweep: set COOKBOOK_{name.upper()}."
            )
        if name not in there:
            like = difflib.get_close_matches(name, there, 1)
            mend = f"Is {like[0]} meant? " if like else ""
            raise CookbookError(f"There is no setting {name}. {mend}There are: {', '.join(there)}")
        if name in found:
            raise CookbookError(f"{name} is named twice.")
        each = [_value(name, value, there[name]) for value in values.split(",") if value]
        found[name] = list(dict.fromkeys(each))
    if not found:
        raise CookbookError(f"Name settings and their values: {EXAMPLE}")
    return [dict(zip(found, values)) for values in product(*found.values())]


def _value(name: str, text: str, present: Any) -> Any:
    """Return the value that a text stands for, of the type that the setting has now."""
    if isinstance(present, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(present, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(present):
        raise CookbookError(
            f"{name} is {present!r} now, which is {type(present).__name__}; {text!r} is none."
        )
    return value


def trial_notebook(notebook: nbformat.NotebookNode, settings: Mapping[str, Any]) -> None:
    """Make a notebook a trial of settings: other rows score it, and it ends with its metrics."""
    with_settings(notebook, settings)
    starts = [str(cell.source).partition("\n")[0] for cell in notebook.cells]
    last = next(n for n, cell in enumerate(notebook.cells) if "write_metrics(" in cell.source)
    del notebook.cells[last + 1 :]
    notebook.cells.insert(starts.index("## Data Loading"), nbformat.v4.new_code_cell(APART))


class Sweep:
    """The trials of one notebook on one profile, each in a folder of its own."""

    def __init__(self, notebook: Path) -> None:
        self.path = notebook
        content = nbformat.read(notebook, as_version=4)
        given = parameters(content)
        self.recipe = given.get("RECIPE", recipe_of(notebook))
        self.config = choose_profile(given["SETTINGS"])
        run = report.run_folder(self.recipe, self.config)
        self.within = run.relative_to(run.parents[2])  # of any folder for runs
        self.folder = run.parents[2] / "sweeps" / self.within
        source = proof.notebook_code(content)
        self._code = [proof.code_digest(content), proof.package().used_by(source)]
        # A GPU for each trial that runs; a recipe of several processes takes all there are.
        count = 1 if hasattr(self.config, "processes") else torch.cuda.device_count()
        self._devices: queue.Queue[int | None] = queue.Queue()
        for place in range(count) if count > 1 else [None]:
            self._devices.put(place)
        self.at_once = self._devices.qsize()

    def place(self, settings: Settings) -> Path:
        """Return a trial's folder: of these settings, this code and what the environment names."""
        named = {name: os.environ.get(f"COOKBOOK_{name}") for name in _VARIABLES}
        which = proof.digest(json.dumps([self._code, settings, named], sort_keys=True))
        said = "-".join(f"{name}={value}" for name, value in settings.items())
        return self.folder / f"{said[:80].replace('/', '_')}-{which[7:13]}"

    def metrics(self, settings: Settings) -> Content | None:
        """Return the metrics of a trial that came to its end, None of another."""
        path = self.place(settings) / "metrics.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def measure(self, settings: Settings) -> float:
        """Run a trial, if it was not run before, and return its first metric."""
        if self.metrics(settings) is None:
            print(f"== {_said(settings)}", flush=True)
            device = self._devices.get()
            try:
                self._run(settings, device)
            finally:
                self._devices.put(device)
        content = self.metrics(settings)
        assert content
        return float(content["metrics"][0]["after"])

    def _run(self, settings: Settings, device: int | None) -> None:
        """Execute a trial's copy of the notebook, and keep what is to be read of it.

        One that was killed goes on from its last checkpoint, as any run does.
        """
        folder = self.place(settings)
        run, copy = folder / self.within, folder / "copy" / f"{self.recipe}.ipynb"
        copy.parent.mkdir(parents=True, exist_ok=True)
        notebook = nbformat.read(self.path, as_version=4)
        trial_notebook(notebook, settings)
        nbformat.write(notebook, copy)
        there = os.environ.get("PYTHONPATH")
        own = {
            "COOKBOOK_RUNS": str(folder),
            "COOKBOOK_PROFILE": self.config.profile,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), there))),
        }
        own |= {"CUDA_VISIBLE_DEVICES": str(device)} if device is not None else {}
        command = [sys.executable, "-m", "cookbook.commands.run", str(copy)]
        if subprocess.run(command, env=os.environ | own).returncode:
            raise TrialFailed(f"{_said(settings)} failed: {as_typed(run)}")
        if sweeps.APART not in (run / copy.name).read_text(encoding="utf-8"):
            shutil.rmtree(folder)
            raise CookbookError(
                f"{self.recipe} streams the data of {self.config.profile}, and rows that no score "
                "uses cannot be kept apart from a stream. Name a data set: COOKBOOK_DATASET=..."
            )
        for path in run.iterdir():
            if path.suffix in KEPT:
                path.rename(folder / path.name)
        for part in ("copy", self.within.parts[0]):
            shutil.rmtree(folder / part)


def _said(settings: Settings) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def table(found: Sequence[tuple[Settings, Content | None]]) -> str:
    """Return the trials as a table: settings, what each score came to, forgetting, seconds."""
    some = next(content for _, content in found if content)
    names = [one["name"] for one in some["metrics"]]
    rows = [[*found[0][0], *names, some["forgetting"]["name"], "seconds"]]
    for settings, content in found:
        cells = ["failed"] * (len(names) + 2)
        if content:
            forgotten = content["forgetting"]["after"]
            after = [report.cells(one)[1] for one in content["metrics"]]
            cells = [*after, f"{forgotten:.3f}", f"{content['train']['seconds']:.0f}"]
        rows.append([*map(str, settings.values()), *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    padded = (" | ".join(cell.ljust(size) for cell, size in zip(row, widths)) for row in rows)
    return "\n".join(f"| {row} |" for row in padded)


def best(found: Sequence[tuple[Settings, Content | None]]) -> str:
    """Return in words which trial's first metric is best, and which are not told apart from it."""
    there = [(settings, content["metrics"][0]) for settings, content in found if content]
    first = there[0][1]
    sign = 1 if first["higher_is_better"] else -1
    chosen, top = max(there, key=lambda one: sign * one[1]["after"])

    def near(one: dict[str, Any]) -> bool:
        ends = {"before": one["after"], "after": top["after"]}
        ci95 = {"before": one["ci95"]["after"], "after": top["ci95"]["after"]}
        return report.verdict(one | ends | {"ci95": ci95}) == "within noise"

    like = [_said(settings) for settings, one in there if settings != chosen and near(one)]
    text = f"Best {first['name']}: {_said(chosen)} ({top['after']:.3f})."
    return text + (
        f" Not told apart from it by their intervals: {'; '.join(like)}." if like else ""
    )


def plot(found: Sequence[tuple[Settings, Content | None]], path: Path) -> None:
    """Plot each score over the setting, or over the trials where several settings change."""
    there = [(settings, content) for settings, content in found if content]
    names = list(there[0][0])
    panels = [one["name"] for one in there[0][1]["metrics"]]
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.4), squeeze=False)
    values = [settings[names[0]] for settings, _ in there]
    numbers = len(names) == 1 and all(type(one) in (int, float) for one in values)
    places = values if numbers else list(range(len(there)))
    for number, axis in enumerate(axes.flat):
        ends = [content["metrics"][number] for _, content in there]
        after = [one["after"] for one in ends]
        errors = [[abs(one["after"] - one["ci95"]["after"][end]) for one in ends] for end in (0, 1)]
        axis.errorbar(places, after, yerr=errors, marker="o", capsize=4, color=report.COLORS[0])
        direction = "higher" if ends[0]["higher_is_better"] else "lower"
        axis.set_title(f"{panels[number].replace('_', ' ')}\n({direction} is better)", fontsize=10)
        axis.grid(alpha=0.3)
        if numbers:
            axis.set_xlabel(names[0])
            if min(values) > 0 and max(values) / min(values) >= 4:
                axis.set_xscale("log")
                axis.set_xticks(values, [f"{one:g}" for one in values], minor=False)
                axis.minorticks_off()
        else:
            labels = [_said(settings).replace(", ", "\n") for settings, _ in there]
            axis.set_xticks(places, labels, fontsize=7, rotation=30, ha="right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 1 where a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("settings", nargs="?", default="", help=EXAMPLE)
    options = parser.parse_args(arguments)
    start_command()
    try:
        sweep = Sweep(options.notebook)
        grid = asked(options.settings, sweep.config)
        runs = record.recorded_runs(sweep.recipe)
        higher = any(run["metrics"][0]["higher_is_better"] for run in runs)
        name = proof.digest(json.dumps([str(sweep.place(one)) for one in grid]))
        study = sweeps.open_study(sweep.folder, name, minimize=not higher)
        sweeps.try_all(study, grid, sweep.measure, sweep.at_once, passed_over=(TrialFailed,))
    except CookbookError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    found = [(settings, sweep.metrics(settings)) for settings in grid]
    failed = [settings for settings, content in found if content is None]
    if len(failed) < len(found):
        said = "-".join(grid[0])
        picture, page = (sweep.folder / f"{said}.{ending}" for ending in ("png", "md"))
        plot(found, picture)
        text = f"{table(found)}\n\n{best(found)}\n"
        page.write_text(f"# {sweep.recipe}, {sweep.config.profile}\n\n{text}", encoding="utf-8")
        print(f"\n{text}\nTable and plot: {as_typed(page)}, {as_typed(picture)}")
    for settings in failed:
        print(f"failed: {_said(settings)}; see {as_typed(sweep.place(settings))}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
