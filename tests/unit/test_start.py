"""Kernels that are forked from one process are as apart as kernels of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from tests.start.kernel import key

pytestmark = pytest.mark.unit

MARK = """
import os, random, sys, warnings
import numpy, torch, transformers
os.environ["LEFT"] = "behind"
os.chdir("/")
sys.path.insert(0, "/left")
warnings.simplefilter("error")
random.seed(0); numpy.random.seed(0); torch.manual_seed(0)
transformers.left = "behind"
"""
LOOK = """
import os, random, sys, warnings
import numpy, torch, transformers
print(os.environ.get("LEFT"), os.getcwd(), "/left" in sys.path, hasattr(transformers, "left"))
print(warnings.filters[0][0] == "error")
print(random.random(), numpy.random.rand())
transformers.utils.logging.get_logger("transformers").warning("seen in the notebook")
"""


def said(code: str, folder: Path) -> str:
    """Execute one cell in a kernel of its own and return what it printed."""
    notebook = new_notebook(cells=[new_code_cell(code)])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    return "".join(output.get("text", "") for output in notebook.cells[0].outputs)


def test_nothing_is_left_to_the_next_kernel(shared_start: None, tmp_path: Path) -> None:
    said(MARK, tmp_path)
    first, second = said(LOOK, tmp_path), said(LOOK, tmp_path)
    assert first.splitlines()[:2] == [f"None {tmp_path} False False", "False"]
    assert first.splitlines()[2] != second.splitlines()[2], "the same random numbers"
    assert "seen in the notebook" in first, "logs go where a kernel's own would"


def test_the_cookbook_is_imported_anew(shared_start: None, tmp_path: Path) -> None:
    """It reads the environment when it is imported."""
    loaded = said("import sys; print([one for one in sys.modules if 'cookbook' in one])", tmp_path)
    assert loaded == "[]\n"


def test_what_libraries_read_at_their_import_gets_a_process_of_its_own() -> None:
    seen = {"HF_HOME": "/a", "OMP_NUM_THREADS": "1", "COOKBOOK_SEED": "1", "HF_TOKEN": "x"}
    assert key(seen) == key(seen | {"COOKBOOK_SEED": "2", "HF_TOKEN": "y"})
    assert key(seen) != key(seen | {"HF_HOME": "/b"})


def test_a_killed_kernel_ends_and_so_does_one_whose_test_is_gone(
    shared_start: None, tmp_path: Path
) -> None:
    """As Jupyter notices the end of a kernel of its own."""
    kernel = Path(__file__).parents[1] / "start" / "kernel.py"
    start = f"import subprocess, sys, time; subprocess.Popen([sys.executable, {str(kernel)!r}, "
    start += f"{str(tmp_path / 'c.json')!r}]); time.sleep(60)"
    test = subprocess.Popen([sys.executable, "-c", start])
    waited = time.monotonic()
    while not (tmp_path / "c.json").exists():
        assert time.monotonic() - waited < 120
        time.sleep(0.1)
    test.send_signal(signal.SIGKILL)
    test.wait()
    waited = time.monotonic()
    while _holding(tmp_path / "c.json"):
        assert time.monotonic() - waited < 20, "a kernel is left behind"
        time.sleep(0.1)


def _holding(file: Path) -> list[str]:
    """Return the processes that were started with a file's name."""
    found = []
    for one in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", one, "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(file) in command and "-c" not in command.split("\0"):
            found.append(one)
    return found
