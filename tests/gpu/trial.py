"""One recipe on one profile at full size: build, run the unmodified notebook, read what it used."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import nbformat
import transformers
from transformers import AutoTokenizer

from cookbook.commands.run import recipe_of
from cookbook.offline import OfflineNotBuilt, offline_path
from cookbook.profiles import ROOT, SMALL_CARD
from tests.gpu import examples, kernel, machine, records
from tests.gpu.architectures import ARCHITECTURES
from tests.gpu.check import NEW_TOKENS, merges, settings_of
from tests.gpu.process import last_line, run_logged
from tests.gpu.records import GIB, Outcome
from tests.gpu.store import SPARE_DISK, Models, NoRoom, NotBuilt
from tests.hub.repositories import REPOSITORIES

Facts = dict[str, Any]

PREFIX = "gpu-check-"
TINY_ROWS = 8  # of the test split in a rehearsal
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
    steps: int
    cap: int | None  # bytes that the process may take on the GPU; for the profile gpu16 alone
    timeout: int  # seconds, building included
    scale: Literal["full", "tiny"] = "full"

    @property
    def recipe(self) -> str:
        """`<folder>/<notebook>`."""
        return recipe_of(self.notebook)

    @property
    def settings(self) -> Facts:
        """The profile's column of the notebook's table."""
        return settings_of(self.recipe, self.profile)

    @property
    def model(self) -> str:
        """The id of the headline model."""
        return str(self.settings["model"])


def check_possible(trial: Trial, here: Facts, models: Models) -> None:
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
    merged = merges(trial.recipe, trial.profile) * architecture.size
    needed = models.size(model) + SPARE_DISK + merged
    if (free := models.make_room(needed, model)) < needed:
        raise NotRun(
            f"needs {needed / GIB:.0f} GiB of disk in {models.root.parent}, {free / GIB:.0f} are "
            "free: set TMPDIR to a larger one"
        )


def attempt(
    trial: Trial,
    here: Facts,
    models: Models,
    later: Sequence[str] = (),
    keep: Callable[[Outcome], object] = lambda _: None,
) -> Outcome:
    """Try it and say how it went; the run is gone afterwards, and its model unless needed `later`.

    `keep` is given what is known each time that something more is, since the machine may be taken
    away at any time.
    """
    record: Facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "scale": trial.scale,
        "machine": here,
        "new_tokens": NEW_TOKENS,
    }

    def note() -> None:
        keep(Outcome(trial.recipe, trial.profile, "failed", "was ended while it ran", record))

    try:
        with tempfile.TemporaryDirectory(
            prefix=PREFIX, dir=models.root.parent, ignore_cleanup_errors=True
        ) as scratch:
            check_possible(trial, here, models)
            record |= _versions(trial)
            _run(trial, here, Path(scratch), record, models, later, note)
    except (NotRun, NoRoom) as reason:
        return Outcome(trial.recipe, trial.profile, "not run", str(reason))
    except Exception as error:  # the next recipe is tried all the same
        said = isinstance(error, (Failed, NotBuilt))
        why = str(error) if said else f"{type(error).__name__}: {error}"
        return Outcome(trial.recipe, trial.profile, "failed", _without_paths(why), record)
    return Outcome(trial.recipe, trial.profile, "passed", "", record)


def _without_paths(text: str) -> str:
    """Return a message without this machine's folders: records are kept in the repository."""
    return text.replace(f"{ROOT}/", "").replace(f"{Path.home()}/", "~/")


def _versions(trial: Trial) -> Facts:
    versions = machine.installed(machine.asked_for(trial.notebook))
    return {"versions": versions, "differs_from_lock": machine.differing(versions)}


def _run(
    trial: Trial,
    here: Facts,
    scratch: Path,
    record: Facts,
    models: Models,
    later: Sequence[str],
    note: Callable[[], None],
) -> None:
    """Fill `record` step by step, so that a failure's record holds what was known."""
    begin = time.monotonic()
    model, built = models.get(trial.model, later)
    record["model"] = {"name": trial.model, "weights": "random"} | built
    note()  # not before: what could not be built was not run, and leaves no record
    published = ARCHITECTURES[trial.model].parameters
    if trial.scale == "full" and built["parameters"] != published:
        raise Failed(f"the model has {built['parameters']:,} weights, the published {published:,}")

    started = time.monotonic()
    data, rows = scratch / "data", TINY_ROWS if trial.scale == "tiny" else None
    counts = examples.write_examples(
        data, trial.recipe, trial.settings, _tokenizer(trial, model), trial.steps, rows
    )
    asked = {key: value for key, value in trial.settings.items() if key.endswith("_examples")}
    record["data"] = {"rows": counts, "instead_of": asked}
    record["seconds"] = {"data": round(time.monotonic() - started, 1)}
    note()

    started = time.monotonic()
    run = scratch / "runs" / trial.recipe / f"{trial.profile}-own"
    try:
        left = max(1, trial.timeout - round(time.monotonic() - begin))
        _execute(replace(trial, timeout=left), here, scratch, model, data)
    finally:
        record["seconds"]["notebook"] = round(time.monotonic() - started, 1)
        record["memory"] = kernel.with_launched(scratch / "memory.json")
        record["speed"] = {"steady_seconds_per_step": records.steady_seconds(run)}
        note()
    _take_over(trial, run, record)
    _check(trial, here, run, record)


def _tokenizer(trial: Trial, model: Path) -> Any:
    """Return the model's tokenizer; None where the recipe trains one of its own."""
    if not ARCHITECTURES[trial.model].weights:
        return None
    return AutoTokenizer.from_pretrained(model)


def environment() -> dict[str, str]:
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
    own = environment()
    startup = kernel.write_startup(
        scratch / "ipython",
        scratch / "memory.json",
        trial.cap,
        machine.asked_for(trial.notebook),
        NEW_TOKENS,
    )
    startup["PYTHONPATH"] = os.pathsep.join([str(scratch / "ipython"), own["PYTHONPATH"]])
    named = {f"COOKBOOK_{name}": value for name, value in cookbook.items()}
    return own | named | startup | {"HF_HOME": str(scratch / "hf")}


def _execute(trial: Trial, here: Facts, scratch: Path, model: Path, data: Path) -> None:
    variables = notebook_environment(trial, here, scratch, model, data)
    command = [sys.executable, "-m", "cookbook.commands.run", str(trial.notebook)]
    kept = _kept_folder(trial)
    kept.mkdir(parents=True, exist_ok=True)
    log = kept / f"{trial.profile}.log"
    status, last = run_logged(command, variables, log, trial.timeout)
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


def error_of(notebook: Path) -> str:
    """Return the error that stopped an executed notebook in one line, or nothing."""
    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    errors = [one for one in outputs if one.output_type == "error"]
    if not errors:
        return ""
    return f"{errors[-1].ename}: {last_line(errors[-1].evalue.splitlines())}"


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
    step = record["speed"]["steady_seconds_per_step"]
    record["speed"] |= {
        "steps": train["steps"],
        "tokens": train["tokens"],
        "seconds": train["seconds"],
        "tokens_per_second": train["tokens_per_second"],
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
        if rows != trial.settings["vocab_size"]:
            raise Failed(f"the trained model has {rows} tokens, not {trial.settings['vocab_size']}")
