"""One trial: what it needs, what it gives the notebook, and what counts as a failure."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import psutil
import pytest

from cookbook.profiles import ROOT
from tests.gpu import kernel, trial
from tests.gpu.architectures import ARCHITECTURES
from tests.gpu.process import run_logged
from tests.gpu.records import GIB, Outcome
from tests.gpu.samples import GPT2, H100, NO_GPU, T4, a_trial
from tests.gpu.store import Models, NoRoom, NotBuilt
from tests.gpu.trial import Failed, NotRun, Trial

pytestmark = pytest.mark.unit


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be room on the disk, whatever this machine has."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * GIB))


@pytest.fixture
def models(tmp_path: Path) -> Models:
    """A store with nothing in it."""
    return Models(tmp_path / "models", tiny=False, environment=dict(os.environ))


@pytest.mark.usefixtures("room")
def test_what_is_missing_is_said_before_anything_is_built(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.check_possible(a_trial(), H100, models)
    with pytest.raises(NotRun, match="gpu80 needs a card of 40 GiB; this has 14"):
        trial.check_possible(a_trial(profile="gpu80"), T4, models)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10 * GIB))
        with pytest.raises(NotRun, match="needs 19 GiB of disk in .*, 10 are free: set TMPDIR"):
            trial.check_possible(a_trial(), H100, models)
        with pytest.raises(NotRun, match="needs 32 GiB of disk"):  # and for the merged model
            trial.check_possible(a_trial(profile="gpu80"), H100, models)
        models.built["tiiuae/falcon-7b"] = {}
        trial.check_possible(a_trial(), H100, models)
    with monkeypatch.context() as patched:
        patched.setenv("COOKBOOK_OFFLINE", str(tmp_path))
        with pytest.raises(NotRun, match="general-text.*run `make offline`"):
            trial.check_possible(a_trial(), H100, models)
    with monkeypatch.context() as patched:
        patched.delitem(ARCHITECTURES, "tiiuae/falcon-7b")
        with pytest.raises(NotRun, match="no configuration of tiiuae/falcon-7b"):
            trial.check_possible(a_trial(), H100, models)


def test_what_leads_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COOKBOOK_SEED", "COOKBOOK_MODEL", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.setenv(name, "of another")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    places = (tmp_path, tmp_path / "model", tmp_path / "data")
    found = trial.notebook_environment(a_trial(), H100, *places)
    assert found["COOKBOOK_PRECISION"] == "float16"
    assert found["COOKBOOK_MODEL"] == str(tmp_path / "model")
    assert (found["COOKBOOK_MAX_STEPS"], found["COOKBOOK_SEED"]) == ("4", "0")
    assert found["COOKBOOK_ANY_VERSION"] == found["HF_HUB_OFFLINE"] == "1"
    assert found["CUDA_VISIBLE_DEVICES"] == "2", "one GPU"
    assert found[kernel.CAP] == str(15 * GIB)
    assert found[kernel.NEW_TOKENS] == "32"
    assert "bitsandbytes" in found[kernel.PACKAGES] and "jupyterlab" not in found[kernel.PACKAGES]
    assert not {"HF_ENDPOINT", "HF_TOKEN", "COOKBOOK_ALLOW_CPU"} & set(found)

    big = a_trial(profile="gpu80", cap=None)
    found = trial.notebook_environment(big, H100, tmp_path / "2", *places[1:])
    assert "COOKBOOK_PRECISION" not in found and not found[kernel.CAP]
    found = trial.notebook_environment(a_trial(), NO_GPU, tmp_path / "3", *places[1:])
    assert found["COOKBOOK_ALLOW_CPU"] == "1" and "COOKBOOK_PRECISION" not in found


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize(
    ("error", "status", "why"),
    [
        (Failed(f"no; see {ROOT}/runs/a.log"), "failed", "no; see runs/a.log"),
        (KeyError("train"), "failed", "KeyError: 'train'"),
        (NotRun("too little memory"), "not run", "too little memory"),
        (NoRoom("too little disk"), "not run", "too little disk"),
        (NotBuilt("building the model: no"), "failed", "building the model: no"),
    ],
)
def test_a_failure_is_an_outcome(
    error: Exception, status: str, why: str, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []
    kept: list[Outcome] = []

    def run(_: Trial, __: Any, scratch: Path, record: dict[str, Any], *more: Any) -> None:
        (scratch / "run").mkdir()
        more[-1]()
        folders.append(scratch)
        record["known"] = 1
        raise error

    monkeypatch.setattr(trial, "_run", run)
    outcome = trial.attempt(a_trial(), H100, models, keep=kept.append)
    assert (outcome.status, outcome.why) == (status, why)
    assert not folders[0].exists(), "the run is deleted"
    assert [(one.status, one.why) for one in kept] == [("failed", "was ended while it ran")]
    if status == "failed":
        assert outcome.record["known"] == 1 and outcome.record["versions"]["torch"]


GOOD: dict[str, Any] = {
    "memory": {"memory_cap_bytes": 15 * GIB, "peak_reserved_bytes": 9 * GIB},
    "data": {"filled": 0.97},
    "speed": {"steps": 4},
}


@pytest.mark.parametrize(
    ("part", "wrong", "complaint"),
    [
        ("memory", {}, "did not run the startup file"),
        ("memory", {"memory_cap_bytes": None, "peak_reserved_bytes": 1}, "the cap was None"),
        ("memory", GOOD["memory"] | {"peak_reserved_bytes": 0}, "nothing was allocated"),
        ("data", {"filled": 0.6}, "rows filled 60%.*correct `spare`"),
        ("speed", {"steps": 3}, "3 steps instead of 4"),
    ],
)
def test_a_run_that_shows_nothing_is_a_failure(
    part: str, wrong: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    trial._check(a_trial(), H100, tmp_path, GOOD)
    with pytest.raises(Failed, match=complaint):
        trial._check(a_trial(), H100, tmp_path, GOOD | {part: wrong})


def test_a_vocabulary_that_was_not_learned_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for rows, right in ((50_304, True), (31_000, False)):
        (tmp_path / "model" / "config.json").write_text(json.dumps({"vocab_size": rows}))
        if right:
            trial._check(a_trial(GPT2), H100, tmp_path, GOOD)
        else:
            with pytest.raises(Failed, match="has 31000 tokens"):
                trial._check(a_trial(GPT2), H100, tmp_path, GOOD)


def test_a_command_is_shown_kept_and_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, environment = tmp_path / "log", dict(os.environ)
    # Flushed: what goes into a pipe waits in the process, unless PYTHONUNBUFFERED is set.
    code = "import sys; print('one', flush=True); print('two', file=sys.stderr); sys.exit(3)"
    assert run_logged([sys.executable, "-c", code], environment, log, 60) == (3, "two")
    assert log.read_text() == "one\ntwo\n" == capsys.readouterr().out

    # Like a kernel, the child is in a session of its own.
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', "
        "'import time; time.sleep(60)'], start_new_session=True); print(child.pid, flush=True); "
        "time.sleep(60)"
    )
    status, child = run_logged([sys.executable, "-c", code], environment, log, 4)
    assert status is None
    try:
        assert psutil.Process(int(child)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        pass  # a dead process may wait for its new parent to notice


def test_the_error_of_a_notebook_is_one_line(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("1 / 0")
    path = tmp_path / "a.failed.ipynb"
    for outputs, text in (
        ([], ""),
        (
            [nbformat.v4.new_output("error", ename="OSError", evalue="long\nNo space left\n")],
            "OSError: No space left",
        ),
    ):
        cell.outputs = outputs
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
        assert trial.error_of(path) == text
