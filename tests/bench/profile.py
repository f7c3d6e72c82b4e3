"""Where the time of a step goes: `python -m tests.bench.profile WORK`.

One step of the defaults and one of ours, each in a process of its own, under torch's profiler. The
profiler itself takes time, so its seconds are for comparing operations and not for a benchmark.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from cookbook.profiles import ROOT, device_name
from tests.bench import contestants, documents, meter, peers, results
from tests.bench.meter import Meter
from tests.bench.works import WORKS

PROFILED_STEP = 2  # the first ones touch memory and choose kernels
KEPT = 20  # operations


class Profiled(Meter):
    """Profiles one of the steps that it times."""

    def __init__(self, started: float) -> None:
        super().__init__(started)
        self.profiler = profile(activities=[ProfilerActivity.CPU])

    def begin_step(self) -> None:
        """Start the profiler at the step that it is for."""
        super().begin_step()
        if len(self.ends) == PROFILED_STEP:
            self.profiler.start()

    def end_step(self) -> None:
        """Stop the profiler after that step."""
        if len(self.ends) == PROFILED_STEP:
            self.profiler.stop()
        super().end_step()

    def operations(self) -> dict[str, Any]:
        """Return the seconds of the step by operation, most first, each without what it calls."""
        found = self.profiler.key_averages()
        spent = sorted(found, key=lambda one: -one.self_cpu_time_total)[:KEPT]
        return {
            "seconds": sum(one.self_cpu_time_total for one in found) / 1e6,
            "operations": [
                {
                    "name": one.key,
                    "seconds": one.self_cpu_time_total / 1e6,
                    "calls": one.count,
                }
                for one in spent
            ],
        }


def profile_of(work: str, contestant: str) -> dict[str, Any]:
    """Profile one step in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "tests.bench.profile", work]
        command += ["--contestant", contestant, "--result", str(result)]
        subprocess.run(command, cwd=ROOT, env=peers.variables(), check=True)
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--contestant", help="profile this one in this process")
    parser.add_argument("--result", type=Path)
    options = parser.parse_args()
    if options.contestant:
        seen = Profiled(meter.process_start())
        contestants.train(options.contestant, WORKS[options.work], seen, None)
        meter.write(options.result, seen.operations() | {"versions": meter.installed(meter.NAMED)})
        return
    content = {
        "work": options.work,
        "title": WORKS[options.work].title,
        "device": device_name(),
        "profiles": {one: profile_of(options.work, one) for one in ("defaults", "ours")},
    }
    documents.PROFILES.mkdir(parents=True, exist_ok=True)
    path = documents.PROFILES / f"{options.work}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    documents.rewrite(results.latest(), [])


if __name__ == "__main__":
    main()
