"""`make bench WORK=gpu`: our GPU settings beside TRL's defaults, on one card, within a budget.

Each run is a process of its own. Every work first gets its two main contestants, then the others,
then further rounds, and each run is in its record before the next begins: what the budget cuts off
is the least missed. A rehearsal without a GPU: `python -m tests.bench gpu --scale tiny --results
FOLDER`.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cookbook.profiles import ROOT
from tests.bench import documents, gpu_records, peers, results
from tests.bench.gpu_works import DEFAULT, OURS, SCALES, GpuWork, why_absent
from tests.bench.results import CouldNotRun, Record, Run

BUDGET = 540.0  # seconds: within the ten minutes of one command on a lent machine
ROUNDS = 3
NO_GPU = 2  # exit status
SHOWN = 15  # lines of the log of a contestant that could not run
MAIN = (OURS, DEFAULT)

Turn = tuple[int, GpuWork, str]


@dataclass
class Budget:
    """Seconds for all runs together, and what each contestant's runs took so far."""

    seconds: float
    begin: float = field(default_factory=time.monotonic)
    took: dict[tuple[str, str], float] = field(default_factory=dict)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.seconds - (time.monotonic() - self.begin)

    def expected(self, work: GpuWork, contestant: str) -> float:
        """Return the seconds that a run will take.

        As long as its last one; else as the longest of its work so far; else the work's guess.
        """
        if (work.name, contestant) in self.took:
            return self.took[work.name, contestant]
        like = [taken for (name, _), taken in self.took.items() if name == work.name]
        return max(like, default=work.expected_seconds)


def turns(works: Sequence[GpuWork], rounds: int, only: Sequence[str] | None) -> Iterator[Turn]:
    """Yield rounds, works and contestants in the order in which they run."""

    def of(work: GpuWork, main: bool) -> list[str]:
        names = [name for name in work.contestants if only is None or name in only]
        return [name for name in names if (name in MAIN) == main]

    for main in (True, False):
        yield from ((1, work, name) for work in works for name in of(work, main))
    for number in range(2, rounds + 1):
        for work in works:
            yield from ((number, work, name) for main in (True, False) for name in of(work, main))


def variables(scale: str) -> dict[str, str]:
    """Return the environment of a run: one card, no Hub, none of a person's settings."""
    cards = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    found = peers.variables() | {"CUDA_VISIBLE_DEVICES": cards.split(",")[0]}
    if scale != "full":  # nothing is measured: leave the machine to others
        found["OMP_NUM_THREADS"] = "1"
    return found


def once(work: GpuWork, contestant: str, scale: str, scratch: Path, seconds: float) -> Run:
    """Run one contestant once, for at most so many seconds, and return what it measured."""
    result, log = scratch / "result.json", scratch / f"{work.name}-{contestant}.log"
    command = [sys.executable, "-m", "tests.bench.gpu_run", work.name, contestant, scale]
    try:
        return results.measured([*command, str(result)], variables(scale), log, result, seconds)
    except CouldNotRun:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(said[-SHOWN:]), flush=True)
        raise


def compete(
    order: Iterator[Turn], scale: str, budget: Budget, folder: Path, scratch: Path
) -> list[Record]:
    """Let the contestants take their turns and return the records, written run by run."""
    records: dict[str, Record] = {}
    for number, work, name in order:
        one = records.setdefault(work.name, gpu_records.new(work, scale))
        if name in one["left_out"]:
            continue
        try:
            run = _turn(work, name, scale, budget, scratch)
        except CouldNotRun as reason:
            print(f"{work.name} round {number} {name}: {reason}", flush=True)
            if name not in one["contestants"]:  # what it measured in an earlier round stays
                one["left_out"][name] = str(reason)
        else:
            gpu_records.add_run(one, name, number, run)
            speed = gpu_records.tokens_per_second(run)
            print(
                f"{work.name} round {number} {name}: {speed:,.0f} tokens/s, MFU "
                f"{gpu_records.mfu(run):.1%}, {budget.left():.0f} s of the budget left",
                flush=True,
            )
        gpu_records.write(one, folder)
    return list(records.values())


def _turn(work: GpuWork, name: str, scale: str, budget: Budget, scratch: Path) -> Run:
    """Run a contestant if it can run and the budget has room. Raises CouldNotRun."""
    if why := why_absent(name):
        raise CouldNotRun(why)
    expected, left = budget.expected(work, name), budget.left()
    if expected > left:
        raise CouldNotRun(
            f"left out: expected to take {expected:.0f} s, {max(left, 0):.0f} s of the budget are "
            "left (`--budget SECONDS`)"
        )
    begin = time.monotonic()
    run = once(work, name, scale, scratch, left)
    budget.took[work.name, name] = time.monotonic() - begin
    return run


def refusal(scale: str, folder: Path | None, contestants: Sequence[str] | None) -> str | None:
    """Return why nothing is measured, with what to do instead; None if all is well."""
    import torch  # takes seconds, and the works of a processor need none of it here

    if scale == "full" and not torch.cuda.is_available():
        return (
            "This machine has no CUDA GPU, so nothing is measured. Rehearse with: "
            "python -m tests.bench gpu --scale tiny --results FOLDER"
        )
    partly = scale != "full" or contestants
    if partly and folder is None:
        return "A rehearsal or a part is no record: name a folder for it with --results FOLDER."
    if partly and folder and folder.resolve().is_relative_to(ROOT / "results"):
        return "A rehearsal or a part is no record: name a folder outside results/ with --results."
    return None


def main(names: Sequence[str], options: argparse.Namespace) -> int:
    """Measure the works of these names and return the exit status."""
    if why := refusal(options.scale, options.results, options.contestants):
        print(why, file=sys.stderr)
        return NO_GPU
    works = [SCALES[options.scale][name] for name in names]
    folder = options.results or results.RESULTS
    order = turns(works, options.rounds or ROUNDS, options.contestants)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        if options.dry_run:
            folder = Path(scratch) / "results"
        budget = Budget(options.budget)
        records = compete(order, options.scale, budget, folder, Path(scratch))
        said = [
            line
            for one in records
            for line in gpu_records.lines(one, gpu_records.before(one, folder))
        ]
    if folder == results.RESULTS:
        documents.rewrite(results.latest(), [])
    if options.scale != "full":
        print("A rehearsal: its figures show that everything runs, and measure nothing.")
    print("\n".join(said))
    return 0 if any(one["contestants"] for one in records) else 1
