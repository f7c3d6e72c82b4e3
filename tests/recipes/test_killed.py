"""A notebook whose kernel is killed in the middle of its training, and run again from its top.

Tiny random models and own data, as in test_any_model: what is tested is that nothing but the steps
since the last checkpoint is lost, and that the results tell of it.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from cookbook import training
from cookbook.profiles import ROOT
from tests.gpu.check import COMPARED
from tests.recipes.test_any_model import OWN, environment, tiny
from tests.reliability.processes import has_whole

__all__ = ["environment"]  # a fixture

STEPS = 12  # a checkpoint after every third
# Of several trainings in a notebook, the one whose steps `metrics.json` tells of.
CHECKPOINTS = {"03-Instruction-Tuning/Summarization-FLAN-T5": "checkpoints/full"}
HELD = pytest.mark.held("kills")
IN_CI = ("01-Full-Fine-Tuning/Distributed-Full-Fine-Tuning", "02-PEFT/Falcon-7B-LoRA")


def marked(recipe: str) -> object:
    """Two of them whenever recipes are executed; the others take minutes."""
    if recipe in IN_CI:
        return pytest.param(recipe, id=recipe, marks=[pytest.mark.recipes, HELD])
    return pytest.param(recipe, id=recipe, marks=[pytest.mark.slow, pytest.mark.thorough])


def client_for(recipe: str) -> NotebookClient:
    """The notebook, to be executed from its top in a kernel of its own."""
    path = ROOT / f"{recipe}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    return NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}})


def killed_once(client: NotebookClient, is_time: Callable[[], bool]) -> None:
    """Execute a notebook and end its kernel by SIGKILL as soon as it is time."""

    def watch() -> None:
        limit = time.monotonic() + 240
        while not is_time():
            if time.monotonic() > limit:
                return
            time.sleep(0.01)
        assert client.km is not None
        os.kill(client.km.provisioner.pid, signal.SIGKILL)  # type: ignore[union-attr]

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(DeadKernelError):
        client.execute()
    watcher.join()


# A comparison writes no checkpoints: what a kill leaves of it is in tests/recipes/test_compared.py.
@pytest.mark.parametrize("recipe", [marked(one) for one in OWN if one != COMPARED])
def test_a_killed_notebook_goes_on(
    recipe: str, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_type, own, write = OWN[recipe]
    monkeypatch.setenv("COOKBOOK_PRECISION", "float32")
    monkeypatch.setenv("COOKBOOK_MAX_STEPS", str(STEPS))
    monkeypatch.setenv("COOKBOOK_MODEL", str(tiny(model_type, own, environment / model_type)))
    monkeypatch.setenv("COOKBOOK_DATASET", str(write(environment)))
    run = environment / "runs" / recipe / "cpu-own"

    checkpoints = run / CHECKPOINTS.get(recipe, "checkpoints")

    killed_once(client_for(recipe), lambda: has_whole(checkpoints))
    assert not (run / "metrics.json").exists()
    client_for(recipe).execute()
    train = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["train"]
    assert 0 < train["resumed_from_step"] < STEPS
    assert train["steps"] == STEPS
    assert [step for step, _ in train["loss_curve"]] == list(range(1, STEPS + 1))
    assert training.step_of(training.newest_whole_checkpoint(checkpoints)) == STEPS
