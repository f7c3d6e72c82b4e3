"""A finished run: which weights it holds, on which base, and whether that is still the same."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cookbook.data import EMBEDDED
from cookbook.models import identity_of, resolve_model
from cookbook.offline import OfflineNotBuilt
from cookbook.paths import as_typed, typed_path
from cookbook.profiles import ROOT, CookbookError

ADAPTERS = ("adapter", "lora")  # folders in a run, the first that is there
WHOLE = ("merged", "model", "full")
_METRICS = ("recipe", "profile", "seed", "model", "dataset", "metrics", "train")


@dataclass(frozen=True)
class Run:
    """A run's folder with what it wrote. `adapter` and `whole` hold weights; one may be None."""

    folder: Path
    settings: dict[str, Any]
    metrics: dict[str, Any]
    adapter: Path | None
    whole: Path | None
    part: str = ""  # where a run trained several adapters, which one this is

    @property
    def recipe(self) -> str:
        """`<folder>/<notebook>`."""
        return str(self.metrics["recipe"])

    @property
    def name(self) -> str:
        """Return what a server calls its model: the notebook's name, in small letters."""
        own = "" if self.folder.name == self.metrics["profile"] else self.folder.name
        return "-".join(filter(None, (self.recipe.rpartition("/")[2], own, self.part))).lower()

    @property
    def tokenizer(self) -> Path:
        """The folder with its tokenizer and chat template."""
        return self.adapter or self.weights

    @property
    def weights(self) -> Path:
        """The folder of its trained weights: an adapter where there is one, else a whole model."""
        found = self.adapter or self.whole
        assert found is not None  # `read` makes no run without
        return found


def runs_folder() -> Path:
    """Return the folder with all runs: `runs`, or what `COOKBOOK_RUNS` names."""
    named = os.environ.get("COOKBOOK_RUNS")
    return typed_path(named) if named else ROOT / "runs"


def find(named: str = "") -> Run:
    """Return the run in a folder as the shell typed it, or, without one, the newest finished run.

    A folder of weights inside a run stands for the run with these weights, and a recipe's folder
    for its newest run.
    Raises `CookbookError` for a folder that is no run, and for a run that has not finished.
    """
    if not named:
        finished = _finished(runs_folder())
        if not finished:
            raise CookbookError(
                "No run has finished yet. `make quickstart` trains one in minutes; or name the "
                "folder of one that lies elsewhere: RUN=my-runs/02-PEFT/Falcon-7B-LoRA/cpu."
            )
        return read(finished[-1])
    folder = typed_path(named).resolve()
    if not folder.exists():
        raise CookbookError(f"There is no folder {named}. {_there_are()}")
    places = [folder, *list(folder.parents)[:1]]
    found = next((one for one in places if (one / "run.json").is_file()), None)
    if found is None:
        inside = _finished(folder)
        if not inside:
            raise CookbookError(f"{named} holds no run (no run.json). {_there_are()}")
        found = inside[-1]
    return read(found, "" if found == folder else folder.name)


def from_environment() -> Run | None:
    """Return the run that `COOKBOOK_RUN` names, which has to have an adapter; None without it."""
    named = os.environ.get("COOKBOOK_RUN")
    run = find(named) if named else None
    if run and run.adapter is None:
        raise CookbookError(
            f"COOKBOOK_RUN={named} trained all weights; this notebook swaps adapters. Name a run "
            "with one, such as runs/02-PEFT/Falcon-7B-LoRA/cpu, or `make export` and `make serve`."
        )
    return run


def take_settings(run: Run, config: SimpleNamespace) -> None:
    """Give a notebook the model and the data that a run was trained on."""
    config.model, config.dataset = run.settings["model"], run.settings["dataset"]


def read(folder: Path, part: str = "") -> Run:
    """Return the run in `folder`, with the adapter or model of its folder `part` if one is named.

    Raises `CookbookError` where it has not finished, or a file of it is damaged.
    """
    settings = _read(folder / "run.json", ("model",))
    done = (folder / "metrics.json").is_file()
    metrics = _read(folder / "metrics.json", _METRICS) if done else {}
    adapter = _first(folder, ADAPTERS, "adapter_config.json")
    whole = _first(folder, WHOLE, "config.json")
    if metrics and (folder / part / "adapter_config.json").is_file():
        named = "" if folder / part == adapter else part
        return Run(folder, settings, metrics, folder / part, None, named)
    if metrics and (folder / part / "config.json").is_file():
        return Run(folder, settings, metrics, None, folder / part, "" if adapter is None else part)
    if not metrics or not (adapter or whole):
        raise CookbookError(_unfinished(folder, settings))
    return Run(folder, settings, metrics, adapter, whole)


def base_of(run: Run) -> str:
    """Return the folder or Hub id of the model that a run's adapter was trained on.

    Raises `CookbookError` where the base is not there, or is no longer what it was in training.
    """
    base = str(run.settings["model"])
    if Path(base).is_absolute() and not Path(base).exists():
        raise CookbookError(
            f"The base {base} is gone, without which the adapter of {as_typed(run.folder)} is "
            "nothing. Copy it back to where it was."
        )
    try:
        path = resolve_model(base, encoder_decoder=True)
    except (OfflineNotBuilt, ValueError) as error:
        raise CookbookError(str(error)) from error
    known = run.settings.get("model_files")
    if known and identity_of(path)["model_files"] != known:
        mend = "`make offline` builds it anew" if base.startswith(EMBEDDED) else "Fetch it again"
        raise CookbookError(
            f"The base {base} has changed since {as_typed(run.folder)} was trained on it: its "
            f"adapter would be added to other weights. {mend}, or train anew."
        )
    return path


def public_base(run: Run) -> str:
    """Return a base's name for others to read: a Hub id, or the last part of a path."""
    return str(run.metrics["model"]).removeprefix(EMBEDDED)


def _read(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not set(needed) <= set(content):
            raise ValueError(f"it does not name {', '.join(needed)}")
    except (OSError, ValueError) as error:
        raise CookbookError(
            f"{as_typed(path)} is damaged ({error}). Copy the run's folder anew, or train again."
        ) from error
    return content


def _first(folder: Path, names: tuple[str, ...], file: str) -> Path | None:
    return next((folder / name for name in names if (folder / name / file).is_file()), None)


def _finished(folder: Path) -> list[Path]:
    """Return the finished runs below a folder, the newest last."""
    found = sorted(folder.glob("**/metrics.json"), key=lambda path: path.stat().st_mtime)
    # A run that was stopped before its model was saved, or a copy without it, is none.
    return [path.parent for path in found if (path.parent / "run.json").exists() and _saved(path)]


def _saved(path: Path) -> bool:
    kinds = ((ADAPTERS, "adapter_config.json"), (WHOLE, "config.json"))
    return any(_first(path.parent, *kind) for kind in kinds)


def _there_are() -> str:
    found = [str(as_typed(one)) for one in _finished(runs_folder())[-6:]]
    if not found:
        return "No run has finished yet; `make quickstart` trains one."
    return f"Finished runs: {', '.join(found)}."


def _unfinished(folder: Path, settings: dict[str, Any]) -> str:
    steps = [
        int(path.name.rpartition("-")[2])
        for path in folder.glob("checkpoints*/checkpoint-*")
        if path.name.rpartition("-")[2].isdigit()
    ]
    reached = f"step {max(steps)} of {settings.get('max_steps', '?')}" if steps else "no checkpoint"
    recipe = f"{folder.parent.parent.name}/{folder.parent.name}"
    notebook = f"{recipe}.ipynb" if (ROOT / f"{recipe}.ipynb").is_file() else "..."
    return (
        f"{as_typed(folder)} has not finished: it reached {reached} and saved no model. Go on "
        f"with `make notebook NB={notebook}`, which resumes it; or name another run."
    )
