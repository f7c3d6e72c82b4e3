"""Every recipe's script in two processes, as `make script` and torchrun run it, on a GPU profile.

Each process reads rows of its own and the gradients are averaged (the distributed recipe: summed
and sharded). That its losses are those of one process is tested in tests/reliability.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cookbook.profiles import ROOT
from tests.gpu.check import COMPARED
from tests.hub.notebooks import NOTEBOOKS, as_script, name_of
from tests.hub.server import LoopbackHub
from tests.reliability import processes

IN_CI = ("01-Full-Fine-Tuning/GPT-2-From-Scratch", "02-PEFT/Falcon-7B-LoRA")
PROFILE = "gpu16"
HELD = pytest.mark.held("processes")


def marked(path: Path) -> object:
    """Two of them in every run of the layer; the others take minutes."""
    if name_of(path) in IN_CI:
        return pytest.param(path, id=name_of(path), marks=[pytest.mark.hub, HELD])
    return pytest.param(path, id=name_of(path), marks=[pytest.mark.slow, pytest.mark.thorough])


# A comparison is of trainings in one process, and refuses several.
SCRIPTS = [one for one in NOTEBOOKS if name_of(one) != COMPARED]


@pytest.mark.parametrize("path", [marked(one) for one in SCRIPTS])
def test_the_script_runs_in_two_processes(
    path: Path, hub: LoopbackHub, lead_to: Callable[[LoopbackHub, str], Path], tmp_path: Path
) -> None:
    runs = lead_to(hub, PROFILE)
    done = subprocess.run(
        [*processes.processes(2), str(as_script(path, tmp_path))],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    shown = re.findall(rf"^profile +{PROFILE}$", done.stdout, re.MULTILINE)
    assert len(shown) == 1, "the first process speaks for both"

    folder = runs / name_of(path) / PROFILE
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert content["train"]["steps"] == 2
    # Written once, by one: every file of weights can be read to its end.
    for weights in folder.rglob("*.safetensors"):
        assert load_file(weights)
