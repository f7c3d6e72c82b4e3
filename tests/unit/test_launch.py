"""Functions of a notebook in several processes: what they take along, and how they end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cookbook.launch import launch
from cookbook.profiles import ROOT, CookbookError

pytestmark = pytest.mark.unit

# As in a notebook: names of all kinds around it, one of them like a module of torch's settings.
NOTEBOOK = """
import os
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

config = SimpleNamespace(dtype=torch.bfloat16, scale=3)


def scaled(number):
    return number * config.scale


def work(folder, number):
    total = torch.tensor([scaled(number)], dtype=config.dtype)
    dist.all_reduce(total)
    rank = dist.get_rank()
    print(f"process {rank} speaks")
    Path(folder, f"{rank} of {dist.get_world_size()}").write_text(str(total.item()))
    dist.destroy_process_group()
"""
FAILS = """
def work(kind):
    from cookbook.profiles import CookbookError

    raise {"ours": CookbookError("No room. Run: make room"), "other": ValueError("a stray")}[kind]
"""
# Processes that wait to be ended, and say how they were.
WAITS = """
import os, signal, sys, time
from pathlib import Path
from cookbook.launch import launch

def work(folder):
    def told(*_):
        Path(folder, f"told {os.environ['RANK']}").touch()
        sys.exit(1)
    signal.signal(signal.SIGTERM, told)
    Path(folder, f"ready {os.getpid()}").touch()
    time.sleep(120)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a background job
    launch(work, sys.argv[1], processes=2)
"""


def function_of(code: str) -> Callable[..., None]:
    """A function that lives in `__main__`, as a notebook's do."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code, names)
    found: Callable[..., None] = names["work"]
    return found


def test_a_function_takes_along_what_it_uses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(function_of(NOTEBOOK), str(tmp_path), 7, processes=2)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "0 of 2": "42.0",
        "1 of 2": "42.0",
    }
    printed = capsys.readouterr().out
    assert "process 0 speaks" in printed and "process 1 speaks" not in printed


def test_an_error_of_ours_says_what_it_would_in_one_process() -> None:
    with pytest.raises(CookbookError, match=r"^No room\. Run: make room$"):
        launch(function_of(FAILS), "ours", processes=2)


def test_any_other_error_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CookbookError, match="One of 2 processes ended early.*Run this cell again"):
        launch(function_of(FAILS), "other", processes=2)
    assert "ValueError: a stray" in capsys.readouterr().out


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(
            signal.SIGKILL,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help"),
        ),
        signal.SIGINT,
    ],
)
def test_no_process_outlives_the_notebook(end: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "notebook.py"
    script.write_text(WAITS, encoding="utf-8")
    folder = tmp_path / "marks"
    folder.mkdir()
    with subprocess.Popen([sys.executable, script, folder], cwd=ROOT) as notebook:
        limit = time.monotonic() + 60
        while len(ready := list(folder.glob("ready *"))) < 2:
            assert notebook.poll() is None and time.monotonic() < limit
            time.sleep(0.05)
        notebook.send_signal(end)
        started = [int(path.name.split()[1]) for path in ready]
        while any(map(psutil.pid_exists, started)):
            assert time.monotonic() < limit + 60, "they go on, and nobody sees it"
            time.sleep(0.05)
    assert {path.name for path in folder.glob("told *")} == {"told 0", "told 1"}, "asked, not shot"
