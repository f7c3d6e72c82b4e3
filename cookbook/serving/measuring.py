"""What a server gives: how likely reference answers are to it, and how fast it writes."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from datasets import Dataset
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from cookbook.chat import IGNORED
from cookbook.evaluation import Score, score
from cookbook.report import COLORS
from cookbook.serving.checks import opened
from cookbook.serving.merging import log_probability
from cookbook.training import write_atomically

SLOTS = 8  # sequences that llama.cpp scores at once


def served_losses(gguf: Path, rows: Dataset) -> list[float]:
    """Return llama.cpp's loss of each row's labels, in nats a token: what a GGUF file is worth.

    `rows` have `input_ids` and `labels`, of which those before the last tokens are -100. It is the
    loss of `evaluation.completion_loss`, computed by what serves: rounded weights, and activations
    that llama.cpp rounds beside them.
    """
    longest = max(map(len, rows["input_ids"])) + 1

    def share(slot: int) -> list[float]:
        # Every request adds a token to the prompt before it, which its slot has computed already.
        def likely(prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
            ids = [*prompt, *answer]
            places = range(len(prompt), len(ids))
            return [llama.log_probability(ids[:at], ids[at], slot) for at in places]

        return [_mean(row, likely) for row in rows.select(range(slot, len(rows), slots))]

    slots = min(SLOTS, len(rows))
    with opened(gguf, parallel=slots, context=longest) as llama, ThreadPoolExecutor(slots) as pool:
        shares = list(pool.map(share, range(slots)))
    return [shares[at % slots][at // slots] for at in range(len(rows))]


def losses(model: PreTrainedModel, rows: Dataset) -> list[float]:
    """Return the same of a model in transformers, row by row, so that nothing is padded."""

    return [_mean(row, partial(log_probability, model)) for row in rows]


def _mean(
    row: dict[str, Any], likely: Callable[[Sequence[int], Sequence[int]], list[float]]
) -> float:
    """Return the loss of a row's labels, given how likely each token after a prompt is."""
    begin = next(at for at, label in enumerate(row["labels"]) if label != IGNORED)
    found = likely(row["input_ids"][:begin], row["input_ids"][begin:])
    kept = [one for one, label in zip(found, row["labels"][begin:]) if label != IGNORED]
    return -sum(kept) / len(kept)


def paired(values: Sequence[float], others: Sequence[float], weights: Sequence[float]) -> Score:
    """Return the mean difference of two losses on the same examples, with its 95 % interval.

    What makes one example harder than another is in both, and falls out of the difference. The
    `weights` are the examples' numbers of labels.
    """
    return score([one - other for one, other in zip(values, others, strict=True)], weights)


def throughput(ask: Callable[[str], int], prompts: Iterable[str], at_once: int) -> dict[str, float]:
    """Return `tokens_per_second` of all answers together, and `seconds` of the median answer.

    `ask` sends a prompt and returns how many tokens came back; `at_once` of them wait at any time.
    """

    def timed(prompt: str) -> tuple[int, float]:
        began = time.perf_counter()
        return ask(prompt), time.perf_counter() - began

    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(timed, prompts))
    seconds = time.perf_counter() - began
    written = sum(tokens for tokens, _ in answers)
    return {
        "tokens_per_second": written / seconds,
        "seconds": median(took for _, took in answers),
    }


def keep(
    run: Path,
    formats: dict[str, dict[str, Any]],
    at_once: dict[int, dict[str, float]],
    **shares: Sequence[int],
) -> None:
    """Add what serving measured to a run's `metrics.json`, as `serving`.

    `formats` is the table that `plot_formats` takes, `at_once` what `throughput` found for each
    number of requests, and `shares` are (how many, of how many) by name.
    """
    path = run / "metrics.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    plain = {name: {key: _plain(one) for key, one in row.items()} for name, row in formats.items()}
    content["serving"] = {"formats": plain, "at_once": at_once, **shares}
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _plain(value: Any) -> Any:
    return [value.value, *value.interval] if isinstance(value, Score) else value


def plot_formats(table: dict[str, dict[str, Any]], folder: Path) -> Figure:
    """Plot what each format costs in loss against the size of its file; save `formats.png`.

    `table` has for each format `bytes`, `loss` (a `Score` of differences) and `tokens_per_second`.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    names = list(table)
    sizes = [table[name]["bytes"] / 2**20 for name in names]
    losses = [table[name]["loss"] for name in names]
    errors = [
        [one.value - one.interval[0] for one in losses],
        [one.interval[1] - one.value for one in losses],
    ]
    values = [one.value for one in losses]
    axes[0].errorbar(sizes, values, errors, fmt="o", capsize=4, color=COLORS[0])
    for name, size, loss in zip(names, sizes, values, strict=True):
        axes[0].annotate(name, (size, loss), xytext=(6, 6), textcoords="offset points")
    axes[0].axhline(0, color="#b0b7bf", linewidth=1)
    axes[0].margins(x=0.15)
    axes[0].set(xlabel="file (MiB)", ylabel="loss beside float32 (nats a token)")
    axes[1].bar(names, [table[name]["tokens_per_second"] for name in names], color=COLORS[0])
    axes[1].set(ylabel="tokens a second, one request")
    return _saved(figure, folder / "formats.png")


def plot_throughput(found: dict[int, dict[str, float]], folder: Path) -> Figure:
    """Plot tokens a second and an answer's seconds against requests at once; save a picture."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    at_once = list(found)
    names = {"tokens_per_second": "tokens a second, all together", "seconds": "seconds an answer"}
    for axis, (key, label) in zip(axes, names.items(), strict=True):
        axis.plot(at_once, [found[one][key] for one in at_once], marker="o", color=COLORS[0])
        axis.set(xlabel="requests at once", ylabel=label, xticks=at_once, ylim=(0, None))
        axis.grid(alpha=0.3)
    return _saved(figure, folder / "throughput.png")


def _saved(figure: Figure, path: Path) -> Figure:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return figure
