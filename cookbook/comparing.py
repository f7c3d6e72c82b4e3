"""Methods side by side: their recorded cells, one table, and pictures."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cookbook.evaluation import Score
from cookbook.profiles import ROOT, compute_dtype, device_name
from cookbook.report import COLORS, _grid, _saved
from cookbook.training import moving_mean

RECORDED = ROOT / "results" / "methods"
CELLS = "*-*.json"
# In the order of tables and pictures; others come after them.
METHODS = (
    *("full", "lora_r2", "lora_r8", "lora_r32", "lora_r128", "rslora_r128", "dora_r8", "pissa_r8"),
    *("lora_plus_r8", "attention_r8", "qlora_4bit_r8", "qlora_8bit_r8"),
    *("vera", "ia3", "oft", "prompt_tuning"),
)
MIB = 2**20
_WINDOW = 4  # steps, whose mean loss counts as that of a moment
_DRAWS = 2000
_GREY = "#8a939c"

Cell = dict[str, Any]


@dataclass(frozen=True)
class Summary:
    """What a method came to over its seeds. Memory is what it took beside the process before."""

    method: str
    learning_rate: float
    seeds: int
    loss: Score  # nats a token of the held-out solutions
    score: Score  # share of right results
    general: Score  # nats a token of general text
    weights_trained: float = 0
    bytes: float = 0
    peak_memory_bytes: float = 0
    tokens_per_second: float = 0
    seconds: float = 0
    ready_seconds: float = 0


def summary(cells: Sequence[Cell]) -> Summary:
    """Return the means of one method's cells, with 95 % intervals over rows and seeds.

    The bootstrap draws seeds, and for all of them the same rows: both would be others in a
    repetition. An untrained model's one cell has scores and no costs.
    """
    losses, tokens, right = (
        np.array([cell[kind] for cell in cells], dtype=float)
        for kind in ("losses", "tokens", "right")
    )
    kinds = ("weights_trained", "bytes", "peak_memory_bytes", "seconds", "ready_seconds")
    mean: dict[str, float] = {}
    if "seconds" in cells[0]:
        mean = {kind: fmean(cell[kind] for cell in cells) for kind in kinds}
        mean["tokens_per_second"] = fmean(map(_tokens, cells))
    return Summary(
        cells[0].get("method", "untrained"),
        cells[0].get("learning_rate", 0.0),
        len(cells),
        _over_seeds(losses, tokens),
        _over_seeds(right, np.ones_like(right)),
        _general(cells),
        **mean,
    )


def forgotten(general: Score) -> Cell:
    """Return the loss on general text as a cell has it."""
    return {
        "general_text_loss": general.value,
        "general_text_interval": list(general.interval),
        "general_texts": general.examples,
    }


def _general(cells: Sequence[Cell]) -> Score:
    low, high = (fmean(cell["general_text_interval"][end] for cell in cells) for end in (0, 1))
    mean = fmean(cell["general_text_loss"] for cell in cells)
    return Score(mean, (low, high), cells[0]["general_texts"])


def _tokens(cell: Cell) -> float:
    return float(cell["trained_tokens"] / cell["seconds"])


def _over_seeds(values: np.ndarray, weights: np.ndarray) -> Score:
    """Return the sum of values over that of weights (each of seeds, rows), with its interval."""
    seeds, rows = values.shape
    random = np.random.default_rng(0)
    of_seeds = random.integers(seeds, size=(_DRAWS, seeds, 1))
    of_rows = random.integers(rows, size=(_DRAWS, 1, rows))
    totals = (one[of_seeds, of_rows].sum(axis=(1, 2)) for one in (values, weights))
    low, high = np.percentile(np.divide(*totals), [2.5, 97.5])
    return Score(float(values.sum() / weights.sum()), (float(low), float(high)), rows)


def by_method(cells: Iterable[Cell], order: Iterable[str] = METHODS) -> dict[str, list[Cell]]:
    """Return the scored cells of each method, those of `order` first."""
    found: dict[str, list[Cell]] = {name: [] for name in order}
    for cell in cells:
        if "right" in cell:
            found.setdefault(cell["method"], []).append(cell)
    return {name: own for name, own in found.items() if own}


def line(cell: Cell) -> str:
    """Return what came of one training, in a line."""
    one = summary([cell])
    return (
        f"{one.method:<14} {one.learning_rate:.0e} seed {cell['seed']}: loss {one.loss.value:.3f}, "
        f"exact match {one.score.value:.3f}, {one.weights_trained:,.0f} weights, "
        f"{one.seconds:.0f} s, {one.peak_memory_bytes / MIB:,.0f} MiB"
    )


def recorded(config: SimpleNamespace) -> list[Cell]:
    """Return the recorded cells of this profile: this device's, else any; none for own data."""
    folders = sorted(path.parent for path in RECORDED.glob(f"{config.profile}-*/digests.json"))
    precision = str(compute_dtype()).removeprefix("torch.")
    here = [one for one in folders if _has(one, device_name(), precision)]
    return read((here or folders)[-1]) if folders else []


def _has(folder: Path, device: str, precision: str) -> bool:
    one = json.loads(next(folder.glob(CELLS)).read_text(encoding="utf-8"))
    return (one["device"], one["precision"]) == (device, precision)


def recorded_rate(config: SimpleNamespace, method: str) -> float | None:
    """Return the rate that was found for a method on this profile's own model and data.

    For another model or data it is a place to begin, and a line says so.
    """
    found = [cell for cell in recorded(config) if cell["method"] == method and "right" in cell]
    if found and config.own:
        print(f"{method}: {found[0]['learning_rate']:.0e} was found for another model and data.")
    return float(found[0]["learning_rate"]) if found else None


def seconds_to(cells: Sequence[Cell], loss: float) -> float | None:
    """Return after how many seconds of training the loss was down at a value, as the seeds' mean.

    None if with any seed it never was. A step's loss is that of rows that were not trained on yet,
    as long as none comes twice; the mean of four steps counts.
    """
    found = []
    for cell in cells:
        means = moving_mean([one for _, one, _ in cell["curve"]], _WINDOW)
        times = [seconds for _, _, seconds in cell["curve"]]
        whole = zip(means[_WINDOW - 1 :], times[_WINDOW - 1 :], strict=True)
        reached = [seconds for mean, seconds in whole if mean <= loss]
        if not reached:
            return None
        found.append(reached[0])
    return fmean(found)


def given_loss(found: dict[str, list[Cell]], share: float = 0.5) -> float:
    """Return the loss of `lora_r8`, or else of the first method, after a share of its steps."""
    losses = []
    for cell in found.get("lora_r8", next(iter(found.values()))):
        means = moving_mean([one for _, one, _ in cell["curve"]], _WINDOW)
        losses.append(means[math.ceil(share * len(means)) - 1])
    return fmean(losses)


def costs(one: Summary) -> dict[str, float]:
    """Return what `metrics.json` tells of a way of training."""
    return {
        "weights_trained": one.weights_trained,
        "seconds": one.seconds,
        "peak_memory_bytes": one.peak_memory_bytes,
        "general_text_loss": one.general.value,
    }


def unbeaten(found: Sequence[Summary], cost: str) -> list[str]:
    """Return the methods than which none is better and cheaper, by loss and one of the costs."""

    def beats(one: Summary, other: Summary) -> bool:
        mine, theirs = ((each.loss.value, getattr(each, cost)) for each in (one, other))
        return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]

    return [one.method for one in found if not any(beats(other, one) for other in found)]


def rows(found: dict[str, list[Cell]], given: float) -> list[list[str]]:
    """Return the table of all methods: the names of its columns, then a method a row.

    `found` are the cells by method, `given` is the loss whose time is told.
    """
    lines = [
        ["method", "learning rate", "held-out loss [95 %]", "exact match [95 %]", "general text"]
        + ["weights trained", "file, MiB", "memory, MiB", "tokens/s", "seconds"]
        + [f"seconds to a loss of {given:.2f}"]
    ]
    for name, own in found.items():
        one, reached = summary(own), seconds_to(own, given)
        lines.append(
            [name, f"{one.learning_rate:.0e}", _shown(one.loss), _shown(one.score)]
            + [f"{one.general.value:.3f}", f"{one.weights_trained:,.0f}"]
            + [f"{one.bytes / MIB:,.2f}", f"{one.peak_memory_bytes / MIB:,.0f}"]
            + [f"{one.tokens_per_second:,.0f}", f"{one.seconds:,.1f}"]
            + ["-" if reached is None else f"{reached:,.1f}"]
        )
    return lines


def _shown(score: Score) -> str:
    return f"{score.value:.3f} [{score.interval[0]:.3f}, {score.interval[1]:.3f}]"


def text(table: Sequence[Sequence[str]]) -> str:
    """Return a table for a terminal or a cell's output."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    padded = ("  ".join(map(str.ljust, line, widths)) for line in table)
    return "\n".join(line.rstrip() for line in padded)


def plot_curves(found: dict[str, list[Cell]], path: Path) -> Figure:
    """Plot each method's loss over its steps, of its first seed, and save the picture."""
    figure, (axis,) = _grid(1, most_columns=1, size=(7, 4))
    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for (name, own), color in zip(found.items(), colors):
        steps, losses, _ = zip(*own[0]["curve"], strict=True)
        axis.plot(steps, losses, color=color, alpha=0.3, linewidth=1)
        axis.plot(steps, moving_mean(losses, _WINDOW), color=color, linewidth=2, label=name)
    axis.set(xlabel="optimizer step", ylabel="loss", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return _saved(figure, path)


def plot_rates(cells: Sequence[Cell], untrained: float, path: Path) -> Figure:
    """Plot the validation loss of each method over its learning rate, the chosen one marked.

    What a training made worse than the `untrained` model is drawn as that one. Where no rate was
    searched the picture says so.
    """
    tried: dict[str, dict[float, float]] = {name: {} for name in METHODS}
    for cell in cells:
        if "validation_loss" in cell:
            own = tried.setdefault(cell["method"], {})
            own[cell["learning_rate"]] = min(cell["validation_loss"], untrained)
    tried = {name: own for name, own in tried.items() if own}
    figure, axes = _grid(len(tried) or 1, most_columns=4, size=(2.9, 2.3))
    if not tried:
        axes[0].text(0.5, 0.5, "No rate was searched.", ha="center")
        axes[0].set_axis_off()
        return _saved(figure, path)
    least = min(min(own.values()) for own in tried.values())
    for axis, (name, own) in zip(axes, tried.items(), strict=True):
        rates = sorted(own)
        axis.plot(rates, [own[one] for one in rates], marker="o", markersize=4, color=COLORS[0])
        best = min(own, key=lambda rate: own[rate])
        axis.plot(best, own[best], marker="o", markersize=9, color=COLORS[1], zorder=0)
        axis.set(title=name, xscale="log", yscale="log", ylim=(least * 0.8, untrained * 1.2))
        axis.title.set_fontsize(10)
        axis.set_xlim(best / 10**1.2, best * 10**2.2)  # as wide for all: how steep can be compared
        _plain_ticks(axis)
        axis.grid(alpha=0.3)
    figure.supxlabel("learning rate", fontsize=10)
    figure.supylabel("validation loss", fontsize=10)
    return _saved(figure, path)


def _plain_ticks(axis: Axes) -> None:
    """Write a logarithmic axis of losses in plain numbers."""
    low, high = axis.get_ylim()
    powers = (10.0**power for power in range(-4, 3))
    ticks = [n * power for power in powers for n in (1, 1.5, 2, 3, 5) if low <= n * power <= high]
    if len(ticks) > 6:
        ticks = [one for one in ticks if f"{one:e}"[:3] in ("1.0", "2.0", "5.0")]
    axis.set_yticks(ticks, [f"{one:g}" for one in ticks])
    axis.yaxis.set_minor_locator(NullLocator())


def plot_against(found: Sequence[Summary], cost: str, label: str, path: Path) -> Figure:
    """Plot the held-out loss of methods against what they cost; those that nothing beats in colour.

    `cost` is one of a summary's, in MiB where it is memory.
    """
    figure, (axis,) = _grid(1, most_columns=1, size=(8.5, 4.8))
    unit = MIB if cost.endswith("bytes") else 1
    places = {one.method: (getattr(one, cost) / unit, one.loss.value) for one in found}
    best = sorted(unbeaten(found, cost), key=lambda name: places[name])
    axis.step(*zip(*(places[name] for name in best), strict=True), where="post", color=COLORS[1])
    for one in found:
        color = COLORS[1] if one.method in best else _GREY
        x, y = places[one.method]
        ends = [[abs(end - y)] for end in one.loss.interval]
        axis.errorbar([x], [y], yerr=ends, fmt="o", color=color, capsize=2, alpha=0.9)
    axis.set(xlabel=label, ylabel="held-out loss, nats a token", yscale="log")
    if max(x for x, _ in places.values()) > 4 * min(x for x, _ in places.values()):
        axis.set_xscale("log")
    _plain_ticks(axis)
    axis.grid(alpha=0.3, which="both")
    _name_beside(axis, places, best)
    return _saved(figure, path)


def _name_beside(axis: Axes, places: dict[str, tuple[float, float]], best: Sequence[str]) -> None:
    """Write the points' names in a column beside the axes, each with a line to its point."""
    order = sorted(places, key=lambda name: -places[name][1])
    for number, name in enumerate(order):
        height = 1 - (number + 0.5) / len(order)
        color = COLORS[1] if name in best else _GREY
        axis.annotate(
            name,
            xy=places[name],
            xytext=(1.04, height),
            textcoords="axes fraction",
            fontsize=9,
            va="center",
            color=color if name in best else "#333333",
            arrowprops={"arrowstyle": "-", "color": color, "alpha": 0.35, "linewidth": 0.8},
        )


def read(folder: Path) -> list[Cell]:
    """Return the cells that a folder keeps, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(CELLS))]
