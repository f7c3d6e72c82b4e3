"""The distributed recipe in one process, in two, and on two machines, on a tiny model.

It is the notebook itself, as the script that `make script` writes, in float32, so that sums in
another order are all that may differ.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cookbook import training
from cookbook.profiles import ROOT
from tests.hub.notebooks import as_script
from tests.reliability import hosts
from tests.unit import tiny

RECIPE = "01-Full-Fine-Tuning/Distributed-Full-Fine-Tuning"
STEPS = 40  # ten epochs; a checkpoint every ten steps, the last two are kept
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
SHAPE = {"hidden_size": 64, "intermediate_size": 128}


class Job:
    """The recipe's script, its tiny model and its data."""

    def __init__(self, folder: Path) -> None:
        self.script = as_script(ROOT / f"{RECIPE}.ipynb", folder)
        self.model = folder / "model"
        tiny.model(**SHAPE).save_pretrained(self.model)
        tiny.tokenizer().save_pretrained(self.model)
        draw = random.Random(0)
        self.data = folder / "data"
        self.data.mkdir()
        for name, count in (("train", 37), ("test", 12)):
            lines = []
            for _ in range(count):
                words = draw.sample(tiny.WORDS, draw.randint(2, 9))
                row = {"prompt": " ".join(words), "completion": " ".join(sorted(words))}
                lines.append(json.dumps(row))
            text = "\n".join(lines) + "\n"
            (self.data / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def environment(self, runs: Path, **more: str) -> dict[str, str]:
        """Return what a process of the job is told."""
        return os.environ | {
            "COOKBOOK_PROFILE": "cpu",
            "COOKBOOK_PRECISION": "float32",
            "COOKBOOK_MODEL": str(self.model),
            "COOKBOOK_DATASET": str(self.data),
            "COOKBOOK_MAX_STEPS": str(STEPS),
            "COOKBOOK_RUNS": str(runs),
            "OMP_NUM_THREADS": "1",
            "TQDM_DISABLE": "1",
            "PYTHONPATH": str(ROOT),
            **more,
        }

    def start(self, command: Sequence[str], runs: Path) -> subprocess.Popen[str]:
        """Start the script by a launcher."""
        return subprocess.Popen(
            [*command, str(self.script)],
            env=self.environment(runs),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: Sequence[str], runs: Path) -> str:
        """Run the script to its end by a launcher, and return what was printed."""
        with self.start(command, runs) as launched:
            printed = launched.communicate(timeout=300)[0]
        assert launched.returncode == 0, printed[-4000:]
        return printed

    def resume(self, source: Path, step: int, number: int, runs: Path) -> None:
        """Go on from a checkpoint of another run in so many processes."""
        checkpoint = run_of(source) / "checkpoints" / f"checkpoint-{step}"
        shutil.copytree(checkpoint, run_of(runs) / "checkpoints" / checkpoint.name)
        self.run(processes(number), runs)

    def preempt(self, runs: Path) -> tuple[str, int]:
        """Send SIGTERM in mid-run; return what was printed, and the step that was saved."""
        with self.start(processes(2), runs) as launched:
            checkpoints = run_of(runs) / "checkpoints"
            wait_for_whole(checkpoints, [launched])
            launched.terminate()
            printed = launched.communicate(timeout=60)[0]
        assert launched.returncode != 0
        return printed, training.step_of(training.newest_whole_checkpoint(checkpoints))

    def lose_a_machine(self, runs: Path) -> int:
        """Train on two machines, cut the power of one, let it come back; return the step of the
        checkpoint from which both go on.
        """
        with hosts.two_hosts() as machines:
            first, second = machines

            def start(host: hosts.Host) -> subprocess.Popen[str]:
                log = (runs / f"{host.card}.log").open("a", encoding="utf-8")
                return host.start(
                    [
                        *TORCHRUN,
                        *("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"),
                        *("--rdzv-backend", "c10d", "--rdzv-id", "a-run"),
                        *("--rdzv-endpoint", f"{first.address}:29500"),
                        # Else found out by the machine's name, which both have from this one.
                        *("--rdzv-conf", f"is_host={int(host is first)}"),
                        *("--local-addr", host.address, str(self.script)),
                    ],
                    env=self.environment(
                        runs,
                        GLOO_SOCKET_IFNAME=host.card,
                        # Else torch 2.15 tells a machine that comes back no address to join at.
                        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
                    ),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )

            launched = [start(host) for host in machines]
            checkpoints = run_of(runs) / "checkpoints"
            wait_for_whole(checkpoints, launched)
            assert second.kill() >= 2, "torchrun and what it launched"
            assert launched[1].wait(timeout=10) == -signal.SIGKILL
            newest = training.step_of(training.newest_whole_checkpoint(checkpoints))
            launched[1] = start(second)  # the machine is back
            for one in launched:
                log = runs / f"{first.card}.log"
                assert one.wait(timeout=240) == 0, log.read_text(encoding="utf-8")[-4000:]
        return newest


def processes(number: int) -> list[str]:
    """Return the launcher's command for so many processes of this machine."""
    return [*TORCHRUN, "--standalone", "--nproc-per-node", str(number)]


def has_whole(checkpoints: Path) -> bool:
    """Tell whether a checkpoint was written to its end; looks into none before its last files."""
    written = any(checkpoints.glob("checkpoint-*/trainer_state.json"))
    return written and training.newest_whole_checkpoint(checkpoints) is not None


def wait_for_whole(checkpoints: Path, launched: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until each process has written its part of a checkpoint, while the processes run."""
    limit = time.monotonic() + 120
    while not has_whole(checkpoints):
        for one in launched:
            assert one.poll() is None, f"{one.args!r} ended with {one.returncode}"
        assert time.monotonic() < limit, f"no checkpoint came below {checkpoints}"
        time.sleep(0.01)


def run_of(runs: Path) -> Path:
    """Return the run's folder below `runs`."""
    return runs / RECIPE / "cpu-own"


def read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def metrics(runs: Path) -> dict[str, Any]:
    """Return what a run measured."""
    return read(run_of(runs) / "metrics.json")


def losses(runs: Path) -> dict[int, float]:
    """Return the loss by step; each step comes once."""
    state = read(run_of(runs) / "checkpoints" / "trainer_state.json")
    curve = training.loss_curve(state["log_history"])
    assert [step for step, _ in curve] == list(range(1, STEPS + 1))
    return dict(curve)


def weights(runs: Path) -> dict[str, torch.Tensor]:
    """Return the consolidated model."""
    return load_file(run_of(runs) / "model" / "model.safetensors")


def held(runs: Path, number: int) -> list[dict[str, int]]:
    """Return the bytes that each of a run's processes held."""
    places = [run_of(runs) / f"process-{one}-of-{number}.json" for one in range(number)]
    return [read(place)["held"] for place in places]


@dataclass(frozen=True)
class Difference:
    """How far two trainings of the same thing lie apart, and how far they went."""

    loss: float  # at the step where they differ most
    weight: float
    learned: float  # from the first loss to the last
    moved: float  # the weight that moved most


def difference(one: Path, other: Path) -> Difference:
    """Compare two runs."""
    first, second = losses(one), losses(other)
    model = Path(read(run_of(one) / "run.json")["model"])
    start, ends, others = load_file(model / "model.safetensors"), weights(one), weights(other)

    def largest(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
        return max((left[name] - right[name]).abs().max().item() for name in left)

    return Difference(
        loss=max(abs(first[step] - second[step]) for step in first),
        weight=largest(ends, others),
        learned=first[1] - first[STEPS],
        moved=largest(start, ends),
    )


def record(folder: Path) -> dict[str, Any]:
    """Train in every way, and return what differed and what each process held."""
    (folder / "job").mkdir()
    job = Job(folder / "job")

    def place(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    alone, together = place("alone"), place("together")
    job.run(processes(1), alone)
    job.run(processes(2), together)
    ways: dict[str, Difference] = {"2 processes, against 1": difference(alone, together)}
    for wrote, reads, source in ((2, 1, together), (1, 2, alone)):
        runs = place(f"{wrote} to {reads}")
        job.resume(source, 30, reads, runs)
        name = f"a checkpoint of {wrote} resumed in {reads}, against {wrote} to the end"
        ways[name] = difference(source, runs)
    runs = place("preempted")
    job.preempt(runs)
    job.run(processes(2), runs)
    ways["2 processes, SIGTERM and resumed, against undisturbed"] = difference(together, runs)
    if why := hosts.impossible():
        raise RuntimeError(why)
    runs = place("machines")
    job.lose_a_machine(runs)
    name = "2 machines, one lost and back, against 2 processes of one undisturbed"
    ways[name] = difference(together, runs)
    return {
        "steps": STEPS,
        "ways": {name: vars(one) for name, one in ways.items()},
        "held": {str(number): held(runs, number) for number, runs in ((1, alone), (2, together))},
    }
