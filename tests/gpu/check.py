"""Run the recipes at full size on a CUDA GPU: `make gpu-check`, or `python -m tests.gpu.check`.

Each notebook runs unmodified for a few steps, with random weights in the true architecture and data
that fill its profile. What it needed is kept under `results/gpu`. `gpu16` runs under a cap of the
process's GPU memory. Exit status: 0 nothing failed, 1 something failed, 2 there is no GPU, 3
nothing could be run.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from cookbook.profiles import ROOT
from tests.contract.repository import FOLDER_GROUPS
from tests.gpu import machine, records
from tests.gpu.records import GIB, RESULTS, Outcome

PROFILES = ("gpu16", "gpu80")
STEPS = {"full": 12, "tiny": 2}
CAP_GIB = 15.0  # a T4 has 16 GB, of which its driver leaves about so much
CAPPED = "gpu16"


def notebooks() -> dict[str, Path]:
    """Return the cookbook's notebooks by recipe, in the order of their folders."""
    found = sorted(ROOT.glob("[0-9][0-9]-*/*.ipynb"))
    return {f"{path.parent.name}/{path.stem}": path for path in found}


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
    add("--steps", type=int, help="of training (default: 12; 2 for --scale tiny)")
    add(
        "--cap", type=float, default=CAP_GIB, help="GiB that a gpu16 process may take (%(default)s)"
    )
    add("--timeout", type=int, default=3600, help="seconds for one notebook (%(default)s)")
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
    here = machine.describe()
    if options.scale == "full" and not here["cuda"]:
        print(
            "torch sees no CUDA GPU, so nothing can be measured here. Run this on a machine with "
            "one, or rehearse it: python -m tests.gpu.check --scale tiny --results FOLDER",
            file=sys.stderr,
        )
        return 2
    outcomes = []
    for recipe in options.recipe:
        for profile in options.profile:
            print(f"\n== {recipe} on {profile}", flush=True)
            outcome = one(recipe, profile, options, here)
            outcomes.append(outcome)
            if outcome.status != "not run":
                path = records.write(outcome, here["device"], options.results or RESULTS)
                print(f"{outcome.status}: {path}", flush=True)
    print(f"\n{records.table(outcomes)}")
    return records.exit_status(outcomes)


def one(recipe: str, profile: str, options: argparse.Namespace, here: dict[str, Any]) -> Outcome:
    """Try one recipe on one profile, or say what is missing."""
    notebook = notebooks()[recipe]
    group = FOLDER_GROUPS.get(notebook.parent.name)
    if group is None:
        return Outcome(recipe, profile, "not run", f"no group is known for {notebook.parent.name}")
    if names := machine.missing(group):
        why = f"missing packages: {', '.join(names)} (make install-{group})"
        return Outcome(recipe, profile, "not run", why)
    try:  # only now: it imports what may have been missing
        trial: Any = import_module("tests.gpu.trial")
    except ImportError as error:
        return Outcome(recipe, profile, "not run", f"the installed versions do not fit: {error}")
    outcome: Outcome = trial.attempt(
        trial.Trial(
            notebook=notebook,
            profile=profile,
            group=group,
            steps=options.steps or STEPS[options.scale],
            cap=int(options.cap * GIB) if profile == CAPPED else None,
            timeout=options.timeout,
            scale=options.scale,
        ),
        here,
    )
    return outcome


if __name__ == "__main__":
    sys.exit(main())
