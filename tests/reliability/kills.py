"""Kill trainings with SIGKILL, run them again, and compare them with an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch
from safetensors.torch import load_file

from cookbook.profiles import ROOT
from tests.reliability.methods import COMMON, STEPS, WEIGHTS

MOMENTS = ("step", "saving")
SAVES = range(COMMON["save_steps"], STEPS + 1, COMMON["save_steps"])
LATEST = 0.03  # seconds after a step or a save began; both take about as long
LONGEST = 180.0  # seconds until a training has begun, or ended


@dataclass
class Survivor:
    """What was seen of one training that was killed again and again."""

    method: str
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(MOMENTS, 0))
    torn: int = 0  # checkpoints that were not whole and were left out
    steps_lost: int = 0  # steps that were trained twice
    largest_difference: float = 0.0  # of a weight, between the ends


class Process:
    """One run of `tests.reliability.methods`, whose lines are read as they come."""

    def __init__(self, method: str, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "tests.reliability.methods", method, str(folder), *options]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert self._process.stdout is not None
        self._lines: IO[str] = self._process.stdout
        self.printed = ""

    def until(self, pattern: str) -> re.Match[str] | None:
        """Read up to the first line that matches; None if the process ended before."""
        for line in self._lines:
            self.printed += line
            if found := re.match(pattern, line):
                return found
        return None

    def kill(self) -> None:
        """End it as a power cut does."""
        self._process.send_signal(signal.SIGKILL)
        self.printed += self._lines.read()
        self._process.wait(LONGEST)

    def ended(self) -> int:
        """Wait for its end and return the exit status."""
        self.printed += self._lines.read()
        return self._process.wait(LONGEST)


def run_to_the_end(method: str, folder: Path) -> Process:
    """Train until the last step; fails with what was printed."""
    process = Process(method, folder)
    assert process.ended() == 0, process.printed[-3000:]
    return process


def _began_to_save(folder: Path, known: set[str]) -> bool:
    """Tell whether a checkpoint appeared that was not there; looks for half a second."""
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        if {path.name for path in folder.glob("checkpoint-*")} - known:
            return True
    return False


def survive(method: str, folder: Path, kills: int, dice: random.Random) -> Survivor:
    """Kill a training `kills` times, half of them while it saves, then let it end and compare.

    Each time it is run again it has to go on from the last whole checkpoint: at most the steps
    since the last save are trained twice, or since the one before if that was being written.
    """
    seen = Survivor(method)
    whole, cut = folder / "whole", folder / "cut"
    run_to_the_end(method, whole)
    killed_at = 1  # the step that was interrupted
    process = Process(method, cut)
    while sum(seen.kills.values()) < kills:
        start = _resumed(process, killed_at, seen)
        if start == STEPS:  # its last checkpoint was whole already: begin another training
            _finish(process, whole, cut, seen)
            shutil.rmtree(cut)
            killed_at, start = 1, 0
            process = Process(method, cut)
        moment = MOMENTS[sum(seen.kills.values()) % len(MOMENTS)]
        saves = [one for one in SAVES if one > start]
        killed_at = dice.choice(saves) if moment == "saving" else dice.randint(start + 1, STEPS)
        _kill(process, cut / "checkpoints", killed_at, moment, dice)
        seen.kills[moment] += 1
        process = Process(method, cut)
    _resumed(process, killed_at, seen)
    _finish(process, whole, cut, seen)
    return seen


def _finish(process: Process, whole: Path, cut: Path, seen: Survivor) -> None:
    """Let a run end, and compare it with the one that nothing happened to."""
    assert process.ended() == 0, process.printed[-3000:]
    seen.largest_difference = max(seen.largest_difference, _compare(whole, cut))


def _resumed(process: Process, killed_at: int, seen: Survivor) -> int:
    """Return the step that a run goes on from, after checking that no more was lost than may be."""
    began = process.until(r"from step (\d+)$")
    assert began, process.printed[-3000:]
    start, torn = int(began[1]), process.printed.count("is not whole")
    saved = [0, *(one for one in SAVES if one < killed_at)]
    assert start >= saved[-1] and torn <= 1, (killed_at, process.printed)
    seen.torn += torn
    seen.steps_lost += max(0, killed_at - 1 - start)
    return start


def _kill(process: Process, checkpoints: Path, at: int, moment: str, dice: random.Random) -> None:
    """Kill a run in a step, or while it saves the checkpoint after that step."""
    known = {path.name for path in checkpoints.glob("checkpoint-*")}
    assert process.until(rf"step {at}$"), process.printed[-3000:]
    if moment == "step" or _began_to_save(checkpoints, known):
        time.sleep(dice.uniform(0, LATEST))
    process.kill()


def _compare(whole: Path, cut: Path) -> float:
    """Assert equal losses at every step; return the largest difference of a weight."""
    curves = []
    for folder in (whole, cut):
        history = json.loads((folder / "end.json").read_text(encoding="utf-8"))["log_history"]
        curves.append({one["step"]: one["loss"] for one in history if "loss" in one})
    assert curves[0] == curves[1] and len(curves[0]) == STEPS, curves
    ends = [load_file(folder / WEIGHTS) for folder in (whole, cut)]
    assert ends[0].keys() == ends[1].keys()
    differences = [(ends[0][name] - ends[1][name]).abs().max() for name in ends[0]]
    return float(torch.stack(differences).max())
