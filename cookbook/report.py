"""What a run leaves behind: `metrics.json`, plots and tables."""

import html
import json
import math
import os
import platform
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import Trainer

from cookbook import cpu
from cookbook.evaluation import Score
from cookbook.memory import peak_memory_bytes
from cookbook.models import digest_of, identity_of
from cookbook.paths import typed_path
from cookbook.profiles import ROOT, compute_dtype, device_name, place_in_launch
from cookbook.training import loss_curve, moving_mean, prepare_run, step_of, write_atomically

FORGOTTEN = 0.3  # nats a token; a rise of the loss on general text that asks for a change
COLORS = ("#30638e", "#d1495b", "#edae49")
_VERSIONS = "torch transformers datasets accelerate peft trl bitsandbytes deeplake".split()


def run_folder(recipe: str, config: SimpleNamespace) -> Path:
    """Return `runs/<recipe>/<profile>`, with `-own` for the reader's own model or data.

    `COOKBOOK_RUNS` replaces `runs`.
    """
    named = os.environ.get("COOKBOOK_RUNS")
    runs = typed_path(named) if named else ROOT / "runs"
    return runs / recipe / f"{config.profile}{'-own' if config.own else ''}"


def begin_run(
    recipe: str, config: SimpleNamespace, model: str | None, rows: Iterable[Any] = ()
) -> Path:
    """Return the folder of this run of a recipe, ready: see `training.prepare_run`.

    `model` and `rows` are what is trained, and on what: a run made of others moves aside. None is a
    model of random weights. Of a stream of rows nothing is known before they are read.
    """
    there = [one for one in rows if isinstance(one, Dataset)]
    made_of = identity_of(model, there) if model else {"rows": digest_of(there)}
    return prepare_run(run_folder(recipe, config), config, made_of)


def bookkeeping(
    folder: Path,
    config: SimpleNamespace,
    *,
    steps: int | None = None,
    logs: int = 40,
    saves: int = 4,
    tokens: str | None = "non_padding",
) -> dict[str, Any]:
    """Return a trainer's arguments that change nothing of what is learned.

    Checkpoints go to `folder`, about `saves` in a training of `steps` (or `config.max_steps`), of
    which two stay; about `logs` lines are logged, for tensorboard too. `tokens` says which count.
    The seed is the run's, and a processor gets what it needs (`cpu.arguments`).
    """
    steps = config.max_steps if steps is None else steps
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "logging_steps": max(1, steps // logs),
        "save_steps": max(1, steps // saves),
        "save_total_limit": 2,
        "seed": config.seed,
        "report_to": "tensorboard",
        **({"include_num_input_tokens_seen": tokens} if tokens else {}),
        **cpu.arguments(),
    }


def metric(
    name: str,
    before: Score,
    after: Score,
    *,
    higher_is_better: bool,
    split: str = "test",
    stages: dict[str, float] | None = None,
    baselines: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Return one entry of `metrics.json`: one metric on the same examples, before and after."""
    if before.examples != after.examples:
        raise ValueError(f"{name}: {before.examples} examples before, {after.examples} after.")
    return {
        "name": name,
        "split": split,
        "higher_is_better": higher_is_better,
        "examples": before.examples,
        "before": before.value,
        "after": after.value,
        "ci95": {"before": list(before.interval), "after": list(after.interval)},
        "stages": stages or {},
        "baselines": baselines or {},
    }


def write_metrics(
    folder: Path,
    recipe: str,
    config: SimpleNamespace,
    trainer: Trainer,
    metrics: list[dict[str, Any]],
    forgetting: tuple[Score, Score],
    resumed_from: str | None = None,
    comparison: dict[str, dict[str, float]] | None = None,
    curves: Sequence[str] = (),
    planned: dict[str, dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Write `metrics.json` into the run's folder and return its content.

    `comparison` holds what each of several ways of training cost (`seconds`, `peak_memory_bytes`,
    ...), where a recipe compares some; `trainer` is then the one that the forgetting check is of.

    `planned` is what `Plan.compared` returned: the prediction and what came of it.

    `curves` names more logged values than the loss that are worth keeping, such as the reward.

    `resumed_from` is the checkpoint that training went on from, if any. Tokens are real ones (the
    trainer's `include_num_input_tokens_seen`); those seen before an interruption are in the
    trainer's state and count too, so tokens per second are taken over this process's steps alone.
    """
    state, run = trainer.state, trainer.state.log_history[-1]
    seconds = float(run["train_runtime"])
    resumed_from_step = step_of(resumed_from)
    here = int(state.num_input_tokens_seen) * (1 - resumed_from_step / state.global_step)
    before, after = forgetting
    peaks = [int(cost["peak_memory_bytes"]) for cost in (comparison or {}).values()]
    content = {
        "recipe": recipe,
        "profile": config.profile,
        "seed": config.seed,
        "model": _public_name(config.model),
        "dataset": _public_name(config.dataset),
        "metrics": metrics,
        "forgetting": {
            "name": "general_text_loss",
            "before": before.value,
            "after": after.value,
            "ci95": {"before": list(before.interval), "after": list(after.interval)},
        },
        "train": {
            "steps": state.global_step,
            "tokens": int(state.num_input_tokens_seen),
            "seconds": seconds,
            "tokens_per_second": here / seconds,
            "peak_memory_bytes": max([peak_memory_bytes(), *peaks]),
            "resumed_from_step": resumed_from_step,
            "loss_curve": loss_curve(state.log_history),
            "curves": {key: loss_curve(state.log_history, key) for key in curves},
        },
        "hardware": {
            "device": device_name(),
            "count": max(torch.cuda.device_count(), 1),
            "threads": torch.get_num_threads(),
            "precision": str(compute_dtype()).removeprefix("torch."),
        },
        "versions": {"python": platform.python_version()} | _installed(_VERSIONS),
    }
    if comparison:
        content["comparison"] = comparison
    if planned:
        content["planned"] = planned
    write_atomically(folder / "metrics.json", json.dumps(content, indent=2) + "\n")
    return content


def _public_name(source: str) -> str:
    """Return a Hub id or embedded name as it is, and of a path only the last part."""
    return Path(source).name if Path(source).is_absolute() or source.startswith(".") else source


def _installed(names: Sequence[str]) -> dict[str, str]:
    present = {one.name.lower() for one in metadata.distributions()}
    return {name: metadata.version(name) for name in names if name in present}


def write_card(folder: Path, content: dict[str, Any], kind: str = "LoRA adapter") -> None:
    """Write a model card into a saved model's folder: where it comes from, and what it scores.

    `content` is that of `metrics.json`; `kind` is what the folder holds, whose files are printed.
    """
    train = content["train"]
    ModelCard(f"""---
library_name: {"peft" if "adapter" in kind else "transformers"}
base_model: {content["model"]}
---
# {kind} for {content["model"]}

Trained by the notebook {content["recipe"]}, profile {content["profile"]}, seed {content["seed"]},
on {content["dataset"]} ({train["tokens"]} tokens, {train["steps"]} steps).

```
{before_after_table(content)}
```

Licences: those of the base model and of the data apply.
""").save(folder / "README.md")
    print(*sorted(path.name for path in folder.iterdir()), sep="\n")


def before_after_table(content: dict[str, Any]) -> str:
    """Return the run's metrics as a plain-text table."""
    rows = [("metric", "before", "after", "wanted", "it got", "examples")]
    for one in content["metrics"]:
        wanted = "higher" if one["higher_is_better"] else "lower"
        rows.append((one["name"], *cells(one), wanted, verdict(one), str(one["examples"])))
        rows += [(f"  {kind} {name}", "", f"{x:.3f}", "", "", "") for kind, name, x in others(one)]
    forgetting = content["forgetting"] | {"higher_is_better": False}
    rows.append((forgetting["name"], *cells(forgetting), "no higher", verdict(forgetting), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    rise = forgetting["after"] - forgetting["before"]
    if rise >= FORGOTTEN:
        lines.append(
            f"General text became {rise:.1f} nats a token less likely, which is much (from "
            f"{FORGOTTEN} on): the model forgot. Lower the learning rate or `max_steps`, or mix "
            "general text into the training rows."
        )
    train = content["train"]
    lines.append(
        f"{train['steps']} steps, {train['tokens']} tokens in {train['seconds']:.0f} s "
        f"({train['tokens_per_second']:.0f} tokens/s), "
        f"peak memory {train['peak_memory_bytes'] / 2**30:.1f} GiB, {content['hardware']['device']}"
    )
    return "\n".join(line.rstrip() for line in lines)


def verdict(one: dict[str, Any]) -> str:
    """Return what became of a metric: `better`, `worse`, or `within noise`.

    Noise is what two means of so many examples may differ by chance: 1.96 standard errors of the
    difference, taken from the two 95 % intervals as if their examples were others. They are the
    same ones, so that small differences may be real and still count as noise here.
    """
    widths = [high - low for low, high in one["ci95"].values()]
    difference = one["after"] - one["before"]
    if abs(difference) <= math.hypot(*widths) / 2:
        return "within noise"
    return "better" if (difference > 0) == one["higher_is_better"] else "worse"


def cells(one: dict[str, Any]) -> list[str]:
    """Return a metric before and after, each with its interval."""
    ends = [(one[end], *one["ci95"][end]) for end in ("before", "after")]
    return [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, low, high in ends]


def others(one: dict[str, Any]) -> list[tuple[str, str, float]]:
    """Return (kind, name, value) of what a metric is compared with: its stages and baselines."""
    stages = [("stage", name, value) for name, value in one.get("stages", {}).items()]
    baselines = [("baseline", name, value) for name, value in one.get("baselines", {}).items()]
    return stages + baselines


def plot_training(
    trainer: Trainer | dict[str, Trainer], folder: Path, keys: Sequence[str] = ("loss",)
) -> Figure:
    """Plot logged values and their moving mean over the steps, and save `training.png`.

    Several trainers, by name, share the axes.
    """
    trainers = trainer if isinstance(trainer, dict) else {"": trainer}
    figure, axes = _grid(len(keys), most_columns=3, size=(5, 3.2))
    for axis, key in zip(axes, keys, strict=True):
        for (name, one), color in zip(trainers.items(), COLORS):
            curve = loss_curve(one.state.log_history, key)
            steps, values = [step for step, _ in curve], [value for _, value in curve]
            axis.plot(steps, values, color=color, alpha=0.35, linewidth=1)
            axis.plot(steps, moving_mean(values), color=color, linewidth=2, label=name)
        axis.set(xlabel="optimizer step", ylabel=key.replace("_", " "))
        axis.grid(alpha=0.3)
        if len(trainers) > 1:
            axis.legend()
    return _saved(figure, folder / "training.png")


def plot_before_after(content: dict[str, Any], folder: Path) -> Figure:
    """Plot each metric before and after, with 95 % intervals, and save `before_after.png`."""
    panels = [*content["metrics"], content["forgetting"] | {"higher_is_better": False}]
    figure, axes = _grid(len(panels), most_columns=4, size=(3, 3.4))
    for axis, one in zip(axes, panels, strict=True):
        values = [one["before"], one["after"]]
        bounds = [one["ci95"]["before"], one["ci95"]["after"]]
        errors = [
            [value - low for value, (low, _) in zip(values, bounds, strict=True)],
            [high - value for value, (_, high) in zip(values, bounds, strict=True)],
        ]
        axis.bar(["before", "after"], values, yerr=errors, capsize=4, color=["#b0b7bf", COLORS[0]])
        direction = "higher" if one["higher_is_better"] else "lower"
        axis.set_title(f"{one['name'].replace('_', ' ')}\n({direction} is better)", fontsize=10)
        for _, name, value in others(one):
            axis.axhline(value, color=COLORS[1], linestyle="--", linewidth=1)
            axis.text(-0.45, value, name, color=COLORS[1], fontsize=8, va="bottom", ha="left")
    return _saved(figure, folder / "before_after.png")


def _grid(panels: int, most_columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Return a figure and the axes of its panels, each of `size` inches, row by row."""
    columns = min(panels, most_columns)
    lines = math.ceil(panels / columns)
    size = (size[0] * columns, size[1] * lines)
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
    for axis in axes.flat[panels:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:panels])


def _saved(figure: Figure, path: Path) -> Figure:
    figure.tight_layout()
    if place_in_launch()[0] == 0:  # the first of several processes saves
        figure.savefig(path, dpi=120)
    plt.close(figure)  # the notebook shows the returned figure; without this it would show twice
    return figure


class SideBySide:
    """A table of texts in columns, as HTML in a notebook and as plain text elsewhere."""

    def __init__(self, **columns: Sequence[str]) -> None:
        self._columns = columns

    def __str__(self) -> str:
        names = list(self._columns)
        rows = zip(*self._columns.values(), strict=True)
        return "\n\n".join(
            "\n".join(f"{name}: {text}" for name, text in zip(names, row, strict=True))
            for row in rows
        )

    def _repr_html_(self) -> str:
        style = "text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:anywhere"
        head = "".join(f"<th style='{style}'>{html.escape(name)}</th>" for name in self._columns)
        rows = [
            "".join(f"<td style='{style}'>{html.escape(text)}</td>" for text in row)
            for row in zip(*self._columns.values(), strict=True)
        ]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table style='table-layout:fixed;width:100%'><tr>{head}</tr>{body}</table>"
