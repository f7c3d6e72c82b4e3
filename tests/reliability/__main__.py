"""Record what recipes do with any file, and what trainings do that are killed or shared.

python -m tests.reliability           all
python -m tests.reliability loading   one of them: loading, kills, processes
python -m tests.reliability loading DPO-Preference-Tuning    of one recipe; the others' stay
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cookbook.profiles import device_name
from tests.reliability import fuzzed, kills, loading, processes
from tests.reliability.methods import METHODS
from tests.reliability.tables import PAGE, RESULTS, recorded, with_tables

KILLS = 10  # for each method


def loaded(only: list[str]) -> dict[str, Any]:
    """Return the outcomes of files of any content, by recipe; several recipes at a time.

    Of recipes that are not in `only`, if any are, it is what was recorded.
    """
    found = recorded("loading")["outcomes"] if only else {}
    chosen = [one for one in loading.NOTEBOOKS if not only or one.stem in only]
    # A notebook leaves traces in its process, so each gets one of its own.
    with ProcessPoolExecutor(max_tasks_per_child=1, mp_context=get_context("spawn")) as pool:
        for name, outcomes in pool.map(fuzzed.outcomes_of, chosen):
            found[name] = outcomes
            print(name, outcomes, flush=True)
    return {"files": sum(sum(one.values()) for one in found.values()), "outcomes": found}


def killed(_: list[str]) -> dict[str, Any]:
    """Return what became of trainings by each method that were killed."""
    found = {}
    for method in METHODS:
        with tempfile.TemporaryDirectory() as folder:
            found[method] = asdict(kills.survive(method, Path(folder), KILLS, random.Random()))
        print(found[method], flush=True)
    return {"kills": sum(sum(one["kills"].values()) for one in found.values()), "methods": found}


def shared(_: list[str]) -> dict[str, Any]:
    """Return how far trainings in several processes and on several machines lie apart."""
    with tempfile.TemporaryDirectory() as folder:
        return processes.record(Path(folder))


RECORDS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "loading": loaded,
    "kills": killed,
    "processes": shared,
}


def main(names: list[str]) -> int:
    """Write the records; what should not be ends this with a traceback, and writes nothing."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    only = [name for name in names if name not in RECORDS]
    for name in [name for name in names if name in RECORDS] or RECORDS:
        content = {
            "date": datetime.now(UTC).date().isoformat(),
            "device": device_name(),
            "versions": {one: version(one) for one in ("torch", "transformers", "trl", "datasets")},
            **RECORDS[name](only),
        }
        path = RESULTS / f"{name}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
