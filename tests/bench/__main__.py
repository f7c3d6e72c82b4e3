"""The benchmark: `python -m tests.bench [WORK ...] [--rounds 5] [--contestants ours defaults]`.

Contestants take turns, each in a process of its own, so that a change of the machine's speed meets
all of them. Nothing else should run meanwhile. `--list` names the works. `gpu` is all those of a
CUDA GPU, which run only if they are named.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from datasets import disable_progress_bars

from cookbook.commands.record import notebooks
from cookbook.profiles import ROOT
from tests.bench import documents, gpu, gpu_works, peers, results
from tests.bench.results import CouldNotRun
from tests.bench.works import WORKS, Work

LONGEST = 1200  # seconds for one run


def once(work: Work, contestant: str, scratch: Path, settings: dict[str, str]) -> results.Run:
    """Run one contestant once and return what it measured."""
    result = scratch / "result.json"
    if contestant in peers.PEERS:
        command, given = peers.command(contestant, work, result, scratch)
    else:
        command = [sys.executable, "-m", "tests.bench.run", work.name, contestant, str(result)]
        given = {}
    log = scratch / f"{work.name}-{contestant}.log"
    return results.measured(command, peers.variables() | settings | given, log, result, LONGEST)


def compete(work: Work, contestants: Sequence[str], rounds: int, scratch: Path) -> results.Record:
    """Let the contestants take turns and return the record."""
    settings = warmed_up(scratch) if work.kind == "grpo" else {}
    runs: dict[str, list[results.Run]] = {name: [] for name in contestants}
    failures: dict[str, str] = {}
    for number in range(1, rounds + 1):
        for name in contestants:
            if name in failures:
                continue
            try:
                found = once(work, name, scratch, settings)
            except (CouldNotRun, peers.NotInstalled) as reason:
                failures[name] = str(reason)
                print(f"{work.name} {name}: {reason}", flush=True)
                continue
            runs[name].append(found)
            speed = results.rate(found, work.warm_up_steps)
            print(f"{work.name} round {number} {name}: {speed:.0f} tokens/s", flush=True)
    for name in failures:  # rounds are compared side by side, so one that broke off is left out
        runs[name] = []
    return results.record(work, runs, failures)


def warmed_up(scratch: Path) -> dict[str, str]:
    """Train the model that GRPO goes on from, once, and return the variable that names it."""
    folder = scratch / "warmed-up"
    if not folder.is_dir():
        command = [sys.executable, "-m", "tests.bench.warm_up", str(folder)]
        subprocess.run(command, cwd=ROOT, env=peers.variables(), check=True)
    return {"BENCH_WARMED_UP": str(folder)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", nargs="*", metavar="WORK", help="all of them if none is named")
    parser.add_argument("--rounds", type=int, help="5 of each, on a GPU 3 as the budget allows")
    parser.add_argument("--contestants", nargs="+", help="these alone; nothing is recorded then")
    parser.add_argument("--list", action="store_true", help="name the works and do nothing")
    parser.add_argument("--dry-run", action="store_true", help="measure and record nothing")
    on_gpu = parser.add_argument_group("works on a GPU")
    on_gpu.add_argument("--budget", type=float, default=gpu.BUDGET, help="seconds for all runs")
    on_gpu.add_argument("--scale", choices=gpu_works.SCALES, default="full")
    on_gpu.add_argument("--results", type=Path, help="the folder of a rehearsal's records")
    options = parser.parse_args(arguments)
    gpu_names = [gpu_works.ALL, *gpu_works.SCALES["full"]]
    if options.list:
        titles = {name: work.title for name, work in WORKS.items()}
        titles |= {name: work.title for name, work in gpu_works.SCALES["full"].items()}
        print("\n".join(f"{name:12} {title}" for name, title in titles.items()))
        return 0
    unknown = sorted(set(options.works) - set(WORKS) - set(gpu_names))
    if unknown:
        known = ", ".join([*WORKS, *gpu_names])
        parser.error(f"there is no work {', '.join(unknown)}; there are {known}")
    if chosen := gpu_works.chosen(options.works):
        if not set(options.works) <= set(gpu_names):
            parser.error("works on a GPU run apart from the others: name one kind at a time")
        return gpu.main(chosen, options)
    if options.scale != "full" or options.results:
        parser.error("--scale and --results are for the works on a GPU: name gpu")
    options.rounds = options.rounds or results.FEWEST_ROUNDS
    recorded = not options.dry_run and not options.contestants
    if recorded and options.rounds < results.FEWEST_ROUNDS:
        print(f"nothing is recorded: that takes {results.FEWEST_ROUNDS} rounds or more")
        recorded = False
    disable_progress_bars()
    said = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in options.works or WORKS:
            work = WORKS[name]
            contestants = [
                one for one in work.contestants if one in (options.contestants or work.contestants)
            ]
            new = compete(work, contestants, options.rounds, Path(folder))
            if not new["contestants"]:
                print(f"{name}: no contestant ran", file=sys.stderr)
                return 1
            before = results.add(new) if recorded else None
            said += results.lines(new, before)
    if recorded:
        results.plot(results.latest(), results.RESULTS / "tokens_per_second.png")
        documents.rewrite(results.latest(), notebooks())
    print("\n".join(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
