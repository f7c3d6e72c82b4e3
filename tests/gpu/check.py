"""Run the recipes at full size on a CUDA GPU: `make gpu-check`, or `python -m tests.gpu.check`.

Each notebook runs unmodified for a few steps, with random weights in the true architecture and data
that fill its profile. What it needed is kept under `results/gpu`. `gpu16` runs under a cap of the
process's GPU memory; it comes after every `gpu80`, which others do not have. Exit status: 0 nothing
failed, 1 something failed, 2 there is no GPU, 3 nothing could be run.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import astuple
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

from cookbook.commands.run import parameters
from cookbook.profiles import ROOT, columns
from tests.contract.repository import FOLDER_GROUPS
from tests.gpu import machine, records
from tests.gpu.records import GIB, RESULTS, Outcome

if TYPE_CHECKING:
    from tests.gpu.expected import Seconds

PROFILES = ("gpu80", "gpu16")  # in this order
# The first step allocates and compiles, and begins with the longest rows; the others are timed.
STEPS = {"full": 4, "tiny": 1}
NEW_TOKENS = 32  # of an answer outside of training: random weights would never end one
LEAST = 20.0  # seconds: less than processes and imports take
CAP_GIB = 15.0  # a T4 has 16 GB, of which its driver leaves about so much
CAPPED = "gpu16"
# Of this one the training is that of 02-PEFT on a smaller model. The rest is llama.cpp's, on the
# processor: with random weights, whose answers never end, half an hour of a GPU's time unused.
EXPORT = "05-Export-and-Serving/Export-and-Serve"
# Of the other one every method is trained several times: hours. Its trainings are those of 02-PEFT.
COMPARED = "02-PEFT/PEFT-Methods-Compared"
WITHOUT = (EXPORT, COMPARED)


def notebooks() -> dict[str, Path]:
    """Return the notebooks that are checked by recipe, in the order of their folders."""
    found = sorted(ROOT.glob("[0-9][0-9]-*/*.ipynb"))
    by_recipe = {f"{path.parent.name}/{path.stem}": path for path in found}
    return {recipe: path for recipe, path in by_recipe.items() if recipe not in WITHOUT}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check", description=__doc__)
    add = parser.add_argument
    add(
        "--recipe",
        nargs="+",
        default=[],
        metavar="FOLDER/NAME",
        help="all recipes if none is named",
    )
    add("--profile", nargs="+", choices=PROFILES, default=PROFILES)
    add("--steps", type=int, help="of training (default: 4; 1 for --scale tiny)")
    add(
        "--cap", type=float, default=CAP_GIB, help="GiB that a gpu16 process may take (%(default)s)"
    )
    add("--timeout", type=int, default=3600, help="seconds for one notebook (%(default)s)")
    add("--budget", type=float, help="seconds for all: what would not end in time is left out")
    add("--plan", action="store_true", help="say what each trial should take, and stop")
    add("--results", type=Path, help="where records go (default: results/gpu)")
    add("--scale", choices=STEPS, default="full", help="tiny: a rehearsal, which needs no GPU")
    options = parser.parse_args(arguments)
    known = notebooks()
    named = [name.removesuffix(".ipynb") for name in options.recipe]
    if unknown := [name for name in named if name not in known]:
        parser.error(f"there is no recipe {unknown[0]}; there are {', '.join(known)}")
    if options.scale == "tiny" and _is_real(options.results):
        parser.error("a rehearsal needs --results FOLDER: results/gpu is for real measurements")
    if options.steps is not None and options.steps < 1:
        parser.error("--steps must be 1 or more")
    options.recipe = named or list(known)
    return options


def _is_real(folder: Path | None) -> bool:
    return folder is None or folder.resolve().is_relative_to(RESULTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    options = _options(arguments)
    queue = [(recipe, one) for one in PROFILES for recipe in options.recipe]
    queue = [(recipe, profile) for recipe, profile in queue if profile in options.profile]
    if options.plan:
        print(plan(queue, options))
        return 0
    here = machine.describe()
    if options.scale == "full" and not here["cuda"]:
        print(
            "torch sees no CUDA GPU, so nothing can be measured here. Run this on a machine with "
            "one, or rehearse it: python -m tests.gpu.check --scale tiny --results FOLDER",
            file=sys.stderr,
        )
        return 2
    try:  # only now: it imports what may be missing
        trial: Any = import_module("tests.gpu.trial")
        store: Any = import_module("tests.gpu.store")
    except ImportError as error:
        print(f"The installed versions do not fit: {error}", file=sys.stderr)
        return 3
    tiny = options.scale == "tiny"
    names = [] if tiny else [settings_of(*one)["model"] for one in queue]
    with tempfile.TemporaryDirectory(
        prefix=trial.PREFIX,
        dir=store.scratch_folder(names),
        ignore_cleanup_errors=True,
    ) as scratch:
        models = store.Models(Path(scratch) / "models", tiny, trial.environment())
        outcomes = _all(queue, options, here, models)
    print(f"\n{records.table(outcomes)}")
    return records.exit_status(outcomes)


def _all(
    queue: list[tuple[str, str]], options: argparse.Namespace, here: dict[str, Any], models: Any
) -> list[Outcome]:
    """Try what is in the queue, one after the other, and keep a record of each."""
    started, outcomes = time.monotonic(), []
    for place, (recipe, profile) in enumerate(queue):
        print(f"\n== {recipe} on {profile}", flush=True)
        later = [settings_of(*after)["model"] for after in queue[place + 1 :]]
        left = (options.budget or float("inf")) - (time.monotonic() - started)
        found = (
            None if options.scale == "tiny" else expected(recipe, profile, options, models.built)
        )
        needed = found.total if found else 0.0
        if max(needed, LEAST) > left:
            least, rest = max(needed, LEAST), max(0.0, left)
            why = f"needs about {least:.0f} s, and {rest:.0f} are left of --budget"
            outcomes.append(Outcome(recipe, profile, "not run", why))
            print(why, flush=True)
            continue

        def keep(outcome: Outcome) -> Path:
            return records.write(outcome, here["device"], options.results or RESULTS)

        limit = int(min(options.timeout, left))
        outcome = one(recipe, profile, options, here, limit, models, later, keep)
        outcome.record.setdefault("seconds", {})["expected"] = round(needed, 1)
        outcomes.append(outcome)
        if outcome.status != "not run":
            print(f"{outcome.status}: {keep(outcome)}", flush=True)
    return outcomes


def settings_of(recipe: str, profile: str) -> dict[str, Any]:
    """Return a profile's column of a recipe's table."""
    return columns(parameters(nbformat.read(notebooks()[recipe], as_version=4))["SETTINGS"])[
        profile
    ]


def expected(
    recipe: str, profile: str, options: argparse.Namespace, built: Container[str]
) -> "Seconds | None":
    """Return what a trial should take on an H100, where some models are built already.

    None for a new recipe or model of which something is not known: the trial says what.
    """
    from tests.gpu import expected as arithmetic  # imports what may be missing

    settings = settings_of(recipe, profile)
    steps = options.steps or STEPS["full"]
    there, merged = settings["model"] in built, merges(recipe, profile)
    try:
        return arithmetic.trial(settings, profile, steps, NEW_TOKENS, there, merged)
    except LookupError:
        return None


def merges(recipe: str, profile: str) -> bool:
    """Tell whether a run merges its adapter, for which a capped card has no room."""
    code = notebooks()[recipe].read_text(encoding="utf-8")
    return profile != CAPPED and "merge_and_unload" in code


def plan(queue: list[tuple[str, str]], options: argparse.Namespace) -> str:
    """Return a table of what each trial should take on an H100, by bytes and operations."""
    lines, total = [], 0.0
    built: set[str] = set()
    for recipe, profile in queue:
        found = expected(recipe, profile, options, built)
        built.add(settings_of(recipe, profile)["model"])
        parts = (*astuple(found), found.total) if found else ()
        total += found.total if found else 0.0
        said = " ".join(f"{part:6.0f}" for part in parts) or " not known"
        lines.append(f"{recipe:<52} {profile} {said}")
    head = f"{'expected seconds on an H100':<52} {'':5}  build  start  train  score    all"
    return "\n".join([head, *lines, f"{len(queue)} trials: {total / 60:.1f} minutes"])


def one(
    recipe: str,
    profile: str,
    options: argparse.Namespace,
    here: dict[str, Any],
    limit: int,
    models: Any,
    later: Sequence[str],
    keep: Callable[[Outcome], object],
) -> Outcome:
    """Try one recipe on one profile within `limit` seconds, or say what is missing."""
    notebook = notebooks()[recipe]
    group = FOLDER_GROUPS.get(notebook.parent.name)
    if group is None:
        return Outcome(recipe, profile, "not run", f"no group is known for {notebook.parent.name}")
    if names := machine.missing(notebook):
        why = f"missing packages: {', '.join(names)} (make install-{group})"
        return Outcome(recipe, profile, "not run", why)
    trial: Any = import_module("tests.gpu.trial")
    outcome: Outcome = trial.attempt(
        trial.Trial(
            notebook=notebook,
            profile=profile,
            steps=options.steps or STEPS[options.scale],
            cap=int(options.cap * GIB) if profile == CAPPED else None,
            timeout=limit,
            scale=options.scale,
        ),
        here,
        models,
        later,
        keep,
    )
    return outcome


if __name__ == "__main__":
    sys.exit(main())
