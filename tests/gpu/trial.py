"""One recipe on one profile at full size: build, run the unmodified notebook, read what it used."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Timer
from typing import Any, Literal

import nbformat
import psutil
import transformers
from transformers import AutoTokenizer

from cookbook.offline import OfflineNotBuilt, offline_path
from cookbook.profiles import ROOT, SMALL_CARD
from cookbook.run import parameters, recipe_of
from tests.gpu import examples, kernel, machine, models, records
from tests.gpu.architectures import ARCHITECTURES
from tests.gpu.records import GIB, Outcome
from tests.hub.repositories import REPOSITORIES

Facts = dict[str, Any]

PREFIX = "gpu-check-"
TINY_ROWS = 8  # of the test split in a rehearsal
SPARE_DISK = 6 * GIB  # beside the weights: adapters, checkpoints, the data set
# What leads a process to other data, models or a network.
FOREIGN = ("COOKBOOK_", "HF_", "TRANSFORMERS_", "IPYTHONDIR")


class NotRun(Exception):
    """This machine cannot run it; the message says why."""


class Failed(Exception):
    """It was run, and did not do what it should."""


@dataclass(frozen=True)
class Trial:
    """What is tried, and how."""

    notebook: Path
    profile: str
    group: str  # of packages
    steps: int
    cap: int | None  # bytes that the process may take on the GPU; for the profile gpu16 alone
    timeout: int  # seconds for the notebook
    scale: Literal["full", "tiny"] = "full"

    @property
    def recipe(self) -> str:
        """`<folder>/<notebook>`."""
        return recipe_of(self.notebook)

    @property
    def settings(self) -> Facts:
        """The profile's column of the notebook's table."""
        table = parameters(nbformat.read(self.notebook, as_version=4))["PROFILES"]
        return dict(table[self.profile])

    @property
    def model(self) -> str:
        """The id of the headline model."""
        return str(self.settings["model"])


def check_possible(trial: Trial, here: Facts, scratch: Path) -> None:
    """Raise NotRun for what can be known to be missing before anything is built."""
    model = trial.model
    if trial.recipe not in examples.EXAMPLES:
        raise NotRun("no data for it: add the recipe to EXAMPLES in tests/gpu/examples.py")
    if model not in ARCHITECTURES:
        raise NotRun(f"no configuration of {model}: add it to tests/gpu/architectures.py")
    if f"models/{model}" not in REPOSITORIES:
        raise NotRun(f"no tokenizer for {model}: add it to tests/hub/repositories.py")
    architecture = ARCHITECTURES[model]
    if not hasattr(transformers, architecture.model_class):
        raise NotRun(f"transformers {transformers.__version__} has no {architecture.model_class}")
    try:
        examples.length_of(trial.settings)
        offline_path("general-text")
    except OfflineNotBuilt as error:
        raise NotRun(f"{error} (for the forgetting check; it needs the package index once)")
    except LookupError as error:
        raise NotRun(str(error))
    if trial.scale == "tiny":
        return
    memory = int(here["memory_bytes"])
    if trial.profile == "gpu80" and memory < SMALL_CARD:
        raise NotRun(
            f"gpu80 needs a card of {SMALL_CARD / GIB:.0f} GiB; this has {memory / GIB:.0f}"
        )
    needed, free = architecture.size + SPARE_DISK, shutil.disk_usage(scratch).free
    if free < needed:
        raise NotRun(
            f"needs {needed / GIB:.0f} GiB of disk in {scratch}, {free / GIB:.0f} are free: "
            "set TMPDIR to a larger one"
        )


def attempt(trial: Trial, here: Facts) -> Outcome:
    """Try it and say how it went; the model and the run are gone afterwards."""
    record: Facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "scale": trial.scale,
        "machine": here,
    }
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as scratch:
            check_possible(trial, here, Path(scratch))
            record |= _versions(trial)
            _run(trial, here, Path(scratch), record)
    except NotRun as reason:
        return Outcome(trial.recipe, trial.profile, "not run", str(reason))
    except Exception as error:  # the next recipe is tried all the same
        why = str(error) if isinstance(error, Failed) else f"{type(error).__name__}: {error}"
        return Outcome(trial.recipe, trial.profile, "failed", _without_paths(why), record)
    return Outcome(trial.recipe, trial.profile, "passed", "", record)


def _without_paths(text: str) -> str:
    """Return a message without this machine's folders: records are kept in the repository."""
    return text.replace(f"{ROOT}/", "").replace(f"{Path.home()}/", "~/")


def _versions(trial: Trial) -> Facts:
    versions = machine.installed(machine.asked_for(trial.group))
    return {"versions": versions, "differs_from_lock": machine.differing(versions)}


def _run(trial: Trial, here: Facts, scratch: Path, record: Facts) -> None:
    """Fill `record` step by step, so that a failure's record holds what was known."""
    started = time.monotonic()
    model = scratch / Path(trial.model).name
    record["model"] = {"name": trial.model, "weights": "random"}
    record["model"]["parameters"] = _build(trial, model)
    data, rows = scratch / "data", TINY_ROWS if trial.scale == "tiny" else None
    counts = examples.write_examples(
        data, trial.recipe, trial.settings, _tokenizer(trial, model), trial.steps, rows
    )
    asked = {key: value for key, value in trial.settings.items() if key.endswith("_examples")}
    record["data"] = {"rows": counts, "instead_of": asked}
    record["seconds"] = {"build": round(time.monotonic() - started, 1)}

    started = time.monotonic()
    try:
        _execute(trial, here, scratch, model, data)
    finally:
        record["seconds"]["notebook"] = round(time.monotonic() - started, 1)
        record["memory"] = kernel.with_launched(scratch / "memory.json")
    run = scratch / "runs" / trial.recipe / f"{trial.profile}-own"
    _take_over(trial, run, record)
    _check(trial, here, run, record)


def _build(trial: Trial, folder: Path) -> int:
    command = [sys.executable, "-m", "tests.gpu.models", trial.model, str(folder)]
    command += ["--tiny"] if trial.scale == "tiny" else []
    print(f"Building {trial.model} with random weights", flush=True)
    result = subprocess.run(
        command, cwd=ROOT, env=_environment(trial), capture_output=True, text=True, check=False
    )
    if result.returncode == models.NO_ROOM:
        raise NotRun(result.stderr.splitlines()[-1])
    if result.returncode:
        raise Failed(f"building the model: {_last_line(result.stderr.splitlines())}")
    count = int(json.loads(result.stdout.splitlines()[-1])["parameters"])
    published = ARCHITECTURES[trial.model].parameters
    if trial.scale == "full" and count != published:
        raise Failed(f"the model has {count:,} weights, the published one {published:,}")
    return count


def _tokenizer(trial: Trial, model: Path) -> Any:
    """Return the model's tokenizer; None where the recipe trains one of its own."""
    if not ARCHITECTURES[trial.model].weights:
        return None
    return AutoTokenizer.from_pretrained(model)


def _environment(trial: Trial) -> dict[str, str]:
    """Return this process's environment, with one GPU, without a network, and without settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN) or name == "COOKBOOK_OFFLINE"
    }
    first = kept.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    path = [str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {
        "CUDA_VISIBLE_DEVICES": first,
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_OFFLINE": "1",
    }


def notebook_environment(
    trial: Trial, here: Facts, scratch: Path, model: Path, data: Path
) -> dict[str, str]:
    """Return what leads the unmodified notebook to the model and the data, under the cap."""
    cookbook = {
        "PROFILE": trial.profile,
        "MODEL": str(model),
        "DATASET": str(data),
        "MAX_STEPS": str(trial.steps),
        "SEED": "0",
        "RUNS": str(scratch / "runs"),
        "ANY_VERSION": "1",
    }
    if here["cuda"] and trial.profile == "gpu16":
        cookbook["PRECISION"] = "float16"  # the card that is meant, a T4, has no bfloat16
    if not here["cuda"]:
        cookbook["ALLOW_CPU"] = "1"
    own = _environment(trial)
    startup = kernel.write_startup(scratch / "ipython", scratch / "memory.json", trial.cap)
    startup["PYTHONPATH"] = os.pathsep.join([str(scratch / "ipython"), own["PYTHONPATH"]])
    named = {f"COOKBOOK_{name}": value for name, value in cookbook.items()}
    return own | named | startup | {"HF_HOME": str(scratch / "hf")}


def _execute(trial: Trial, here: Facts, scratch: Path, model: Path, data: Path) -> None:
    environment = notebook_environment(trial, here, scratch, model, data)
    command = [sys.executable, "-m", "cookbook.run", str(trial.notebook)]
    kept = _kept_folder(trial)
    kept.mkdir(parents=True, exist_ok=True)
    log = kept / f"{trial.profile}.log"
    status, last = run_logged(command, environment, log, trial.timeout)
    if status == 0:
        return
    stopped = next((scratch / "runs").rglob("*.failed.ipynb"), None)
    if stopped is not None:
        shutil.copy(stopped, kept / f"{trial.profile}.failed.ipynb")
    if status is None:
        raise Failed(f"took longer than {trial.timeout} s; see {log}")
    raise Failed(f"{(stopped and error_of(stopped)) or last}; see {log}")


def _kept_folder(trial: Trial) -> Path:
    runs = Path(os.environ.get("COOKBOOK_RUNS") or ROOT / "runs")
    return runs / "gpu-check" / trial.recipe


def run_logged(
    command: Sequence[str], environment: dict[str, str], log: Path, timeout: float
) -> tuple[int | None, str]:
    """Run a command, showing and keeping what it prints; return its status and last line.

    The status is None where it took longer than `timeout` seconds. It and what it started, the
    kernel among them, are ended with it, so that the GPU is free for the next.
    """
    last: deque[str] = deque(maxlen=20)
    late: list[bool] = []
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

        def stop() -> None:
            late.append(True)
            _end(process.pid)

        timer = Timer(timeout, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                file.write(line)
                last.append(line)
            process.wait()
        finally:
            timer.cancel()
            if late:
                timer.join()  # what it ends is gone only then
            if process.poll() is None:
                _end(process.pid)
    return (None if late else process.returncode), _last_line(last)


def _end(pid: int) -> None:
    """End a process that we started, and every process below it."""
    try:
        root = psutil.Process(pid)
        root.suspend()  # or it could start one more between our looking and our ending
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for one in family:
        _signal(one, "terminate")
    _signal(root, "resume")
    _, alive = psutil.wait_procs(family, timeout=10)
    for one in alive:
        _signal(one, "kill")
    psutil.wait_procs(alive, timeout=10)


def _signal(process: psutil.Process, name: str) -> None:
    try:
        getattr(process, name)()
    except psutil.NoSuchProcess:
        pass


def _last_line(lines: Sequence[str]) -> str:
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "it said nothing"


def error_of(notebook: Path) -> str:
    """Return the error that stopped an executed notebook in one line, or nothing."""
    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    errors = [one for one in outputs if one.output_type == "error"]
    if not errors:
        return ""
    return f"{errors[-1].ename}: {_last_line(errors[-1].evalue.splitlines())}"


def _read(path: Path) -> Facts:
    try:
        content: Facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def _take_over(trial: Trial, run: Path, record: Facts) -> None:
    """Add what the notebook measured to the record."""
    metrics = _read(run / "metrics.json")
    if not metrics:
        raise Failed("the notebook ended without metrics.json")
    train = metrics["train"]
    step = records.steady_seconds(run)
    record["speed"] = {
        "steps": train["steps"],
        "tokens": train["tokens"],
        "seconds": train["seconds"],
        "tokens_per_second": train["tokens_per_second"],
        "steady_seconds_per_step": step,
        "steady_tokens_per_second": train["tokens"] / train["steps"] / step if step else None,
    }
    record["data"]["filled"] = examples.fill_of(trial.recipe, trial.settings, train)
    record["metrics_json"] = metrics


def _check(trial: Trial, here: Facts, run: Path, record: Facts) -> None:
    """Raise Failed where the notebook went through but did not show what it should."""
    memory, filled = record["memory"], record["data"]["filled"]
    if not memory:
        raise Failed("the kernel did not run the startup file, so no peak was noted")
    if here["cuda"]:
        wanted = None if trial.cap is None else min(trial.cap, int(here["memory_bytes"]))
        if memory["memory_cap_bytes"] != wanted:
            raise Failed(f"the cap was {memory['memory_cap_bytes']} bytes and not {wanted}")
        if not memory["peak_reserved_bytes"]:
            raise Failed("nothing was allocated on the GPU")
    if record["speed"]["steps"] != trial.steps:
        raise Failed(f"{record['speed']['steps']} steps instead of {trial.steps}")
    if filled is not None and not examples.FULL <= filled <= 1.001:
        raise Failed(
            f"rows filled {filled:.0%} of the allowed length, so that the memory is no worst case: "
            "correct `spare` in tests/gpu/examples.py"
        )
    architecture = ARCHITECTURES[trial.model]
    if trial.scale == "full" and not architecture.weights:
        rows = _read(run / "model" / "config.json").get("vocab_size")
        if rows != architecture.config["vocab_size"]:
            raise Failed(f"the trained model has {rows} tokens, not the published number")
