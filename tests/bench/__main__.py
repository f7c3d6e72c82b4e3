"""The benchmark: `python -m tests.bench [WORK ...] [--rounds 5] [--contestants ours defaults]`.

Contestants take turns, each in a process of its own, so that a change of the machine's speed meets
all of them. Nothing else should run meanwhile. `--list` names the works.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from datasets import disable_progress_bars

from cookbook.profiles import ROOT
from cookbook.record import notebooks
from tests.bench import documents, peers, results
from tests.bench.works import WORKS, Work

LONGEST = 1200  # seconds for one run


class CouldNotRun(Exception):
    """A contestant ended without a result; the message is the last thing it said."""


def once(work: Work, contestant: str, scratch: Path, settings: dict[str, str]) -> results.Run:
    """Run one contestant once and return what it measured."""
    result = scratch / "result.json"
    result.unlink(missing_ok=True)
    if contestant in peers.PEERS:
        command, given = peers.command(contestant, work, result, scratch)
    else:
        command = [sys.executable, "-m", "tests.bench.run", work.name, contestant, str(result)]
        given = {}
    log = scratch / f"{work.name}-{contestant}.log"
    with log.open("w", encoding="utf-8") as file:
        try:
            subprocess.run(
                command,
                cwd=ROOT,
                env=peers.variables() | settings | given,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CouldNotRun(f"took longer than {LONGEST} s") from None
    if not result.is_file():
        raise CouldNotRun(last_line(log))
    found: results.Run = json.loads(result.read_text(encoding="utf-8"))
    return found


def last_line(log: Path) -> str:
    """Return the last thing a log says, on one line and without this machine's folders."""
    said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    last = next((line for line in reversed(said) if line), "it said nothing")
    return last.replace(f"{ROOT}/", "").replace(str(Path.home()), "~")[:300]


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
    parser.add_argument("--rounds", type=int, default=results.FEWEST_ROUNDS)
    parser.add_argument("--contestants", nargs="+", help="these alone; nothing is recorded then")
    parser.add_argument("--list", action="store_true", help="name the works and do nothing")
    parser.add_argument("--dry-run", action="store_true", help="measure and record nothing")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(f"{work.name:12} {work.title}" for work in WORKS.values()))
        return 0
    unknown = sorted(set(options.works) - set(WORKS))
    if unknown:
        parser.error(f"there is no work {', '.join(unknown)}; there are {', '.join(WORKS)}")
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
