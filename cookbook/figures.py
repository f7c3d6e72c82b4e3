"""Pictures that explain more than words, one call each."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import matplotlib.pyplot as plt
from datasets import Dataset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from transformers import PreTrainedTokenizerBase

from cookbook.chat import IGNORED
from cookbook.training import loss_curve, moving_mean

BLUE, RED, GREY, PALE = "#30638e", "#d1495b", "#b0b7bf", "#e7eaee"


def low_rank(rows: int, columns: int, rank: int) -> Figure:
    """Draw a weight of (rows, columns) and LoRA's B (rows, rank) and A (rank, columns) to scale."""
    figure, axis = _bare(7, 3.2)
    gap = 0.35 * columns
    for left, bottom, wide, high, color, name, weights in (
        (0, 0, columns, rows, PALE, "W, frozen", rows * columns),
        (columns + gap, 0, rank, rows, BLUE, "B", rows * rank),
        (columns + rank + 2 * gap, rows - rank, columns, rank, BLUE, "A", rank * columns),
    ):
        axis.add_patch(Rectangle((left, bottom), wide, high, facecolor=color, edgecolor=BLUE))
        text = f"{name}\n{high:,} x {wide:,}\n{weights:,} weights"
        axis.text(left + wide / 2, -0.06 * rows, text, ha="center", va="top", fontsize=9)
    axis.text(columns + gap / 2, rows / 2, "+", ha="center", va="center", fontsize=20)
    axis.text(columns + rank + 1.5 * gap, rows / 2, "x", ha="center", va="center", fontsize=16)
    share = rank * (rows + columns) / (rows * columns)
    axis.set_title(f"Rank {rank}: {share:.1%} as many weights to train", fontsize=10)
    axis.set(xlim=(-0.3 * columns, 3 * columns + rank), ylim=(-0.42 * rows, 1.02 * rows))
    axis.set_aspect("equal")
    return _shown(figure)


def mask(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Sequence[int]]) -> Figure:
    """Draw what a decoder sees of a tokenized row, around the border of prompt and answer.

    A line is one position: it sees the tokens that are filled, and predicts the token named at its
    right end. The loss learns from it where the line is blue. `row` has `input_ids` and `labels`.
    """
    labels = row["labels"]
    border = next(place for place, label in enumerate(labels) if label != IGNORED)
    first, last = max(0, border - 7), min(len(labels) - 1, border + 6)
    places = range(first, last)
    texts = [_visible(str(tokenizer.decode([one]))) for one in row["input_ids"][first : last + 1]]
    figure, axis = plt.subplots(figsize=(7, 4.4))
    for line, place in enumerate(places):
        color = GREY if labels[place + 1] == IGNORED else BLUE
        for column in range(line + 1):
            axis.add_patch(Rectangle((column, line), 0.92, 0.86, facecolor=color))
        predicted = texts[line + 1]
        axis.text(len(places) + 0.3, line + 0.45, predicted, va="center", fontsize=9, color=color)
    axis.set(xlim=(0, len(places) + 3), ylim=(len(places), 0))
    axis.set_xticks([one + 0.5 for one in range(len(places))], texts[:-1], rotation=60, ha="right")
    axis.set_yticks([])
    axis.set_xlabel("tokens that are read")
    kinds = [Patch(color=GREY, label="predicted, not learned"), Patch(color=BLUE, label="learned")]
    axis.legend(handles=kinds, loc="upper center", bbox_to_anchor=(0.55, 1), fontsize=9)
    axis.set_title("What each position sees, and predicts (right)", fontsize=10)
    axis.spines[:].set_visible(False)
    return _shown(figure)


def windows(layer_types: Sequence[str], window: int, length: int) -> Figure:
    """Draw what the last of `length` tokens sees in each layer: all of them, or a `window`.

    `layer_types` are those of a model's configuration, the first layer's first.
    """
    seen = [min(window, length) if "sliding" in kind else length for kind in layer_types]
    figure, axis = plt.subplots(figsize=(7, 3.4))
    left = [length - one for one in seen]
    colors = [BLUE if one == length else GREY for one in seen]
    axis.barh(range(1, len(seen) + 1), seen, left=left, color=colors)
    kinds = [Patch(color=BLUE, label="sees all"), Patch(color=GREY, label=f"sees {window:,}")]
    axis.legend(handles=kinds, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    axis.set(xlim=(0, length), xlabel="token of the row", ylabel="layer")
    axis.set_title(
        f"What the last of {length:,} tokens sees: all in {seen.count(length)} of {len(seen)} "
        f"layers\n{sum(seen) / length / len(seen):.0%} of the keys and values that full "
        "attention would keep",
        fontsize=10,
    )
    axis.spines[["top", "right"]].set_visible(False)
    return _shown(figure)


def encoder_decoder(
    tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Sequence[int]], count: int = 6
) -> Figure:
    """Draw what an encoder-decoder sees of a tokenized row, around the border of its two parts.

    A line is one position. The encoder's see all of the document (`input_ids`), in both directions.
    The decoder's see it too, and what was written before them; each predicts the token named at its
    right end, a label. Shown are the last `count` tokens that are read and the first of `labels`.
    """
    ids = row["input_ids"][-count:], row["labels"][:count]
    read, written = ([_visible(str(tokenizer.decode([n]))) for n in one] for one in ids)
    figure, axis = plt.subplots(figsize=(7, 4.4))
    for line in range(len(read) + len(written)):
        place = line - len(read)  # of the decoder's
        for column in range(len(read) + max(0, place + 1)):
            left, top = column + 0.4 * (column >= len(read)), line + 0.4 * (place >= 0)
            color = GREY if place < 0 else BLUE
            axis.add_patch(Rectangle((left, top), 0.92, 0.86, facecolor=color))
        if place >= 0:
            right = len(read) + len(written) + 0.7
            axis.text(right, line + 0.85, written[place], va="center", fontsize=9, color=BLUE)
    names, total = [*read, "(begin)", *written[:-1]], len(read) + len(written)
    places = [n + 0.5 + 0.4 * (n >= len(read)) for n in range(total)]
    axis.set(xlim=(0, total + 3.4), ylim=(total + 0.4, 0), yticks=[])
    axis.set_xticks(places, names, rotation=60, ha="right")
    axis.set_xlabel("last tokens of the document | first tokens of the summary")
    kinds = [Patch(color=GREY, label="encoder"), Patch(color=BLUE, label="decoder, learned")]
    axis.legend(handles=kinds, loc="upper right", fontsize=9)
    axis.set_title("What each position sees, and predicts (right)", fontsize=10)
    axis.spines[:].set_visible(False)
    return _shown(figure)


def blocks(lengths: Sequence[int], block_size: int, count: int = 6) -> Figure:
    """Draw how documents of these lengths, in tokens, fill the first `count` blocks."""
    figure, axis = _bare(7, 2.6)
    start, end = 0, count * block_size
    for number, length in enumerate(lengths):
        color = (BLUE, GREY, RED)[number % 3]
        stop = min(start + length, end)
        while start < stop:
            line, within = divmod(start, block_size)
            taken = min(stop - start, block_size - within)
            axis.add_patch(Rectangle((within, line + 0.1), taken, 0.8, facecolor=color, alpha=0.8))
            start += taken
        if start >= end:
            break
    axis.set(xlim=(0, block_size), ylim=(count, 0))
    axis.set_title(f"{count} blocks of {block_size} tokens; a colour is one document", fontsize=10)
    return _shown(figure)


def advantages(rewards: Sequence[float], values: Sequence[float]) -> Figure:
    """Draw the rewards of one group with their mean, and the advantages (`values`) below."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 3.6), sharex=True)
    names = range(1, len(rewards) + 1)
    above.bar(names, rewards, color=GREY)
    above.axhline(mean(rewards), color=RED, linestyle="--", linewidth=1)
    above.text(0.55, mean(rewards), "mean", color=RED, fontsize=9, va="bottom")
    above.set_ylabel("reward")
    below.bar(names, values, color=[BLUE if one > 0 else RED for one in values])
    below.axhline(0, color="black", linewidth=0.8)
    below.set(xlabel="answer", ylabel="advantage", xticks=list(names))
    above.set_title("More likely: what is better than its siblings (blue)", fontsize=10)
    return _shown(figure)


def preferences(history: Sequence[dict[str, Any]], beta: float) -> Figure:
    """Draw how far both answers of the pairs went from the reference, in nats, over the steps.

    `history` is a DPO trainer's `state.log_history`; its rewards are `beta` times that.
    """
    figure, axis = plt.subplots(figsize=(7, 3.2))
    lines = []
    for name, color in (("chosen", BLUE), ("rejected", RED)):
        curve = loss_curve(history, f"rewards/{name}")
        steps, away = [step for step, _ in curve], [value / beta for _, value in curve]
        axis.plot(steps, away, color=color, alpha=0.35, linewidth=1)
        lines.append(moving_mean(away))
        axis.plot(steps, lines[-1], color=color, linewidth=2, label=name)
    axis.fill_between(steps, lines[0], lines[1], color=PALE, label="margin")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xlabel="optimizer step", ylabel="nats away from the reference")
    axis.legend()
    return _shown(figure)


def calibration(promises: Sequence[tuple[float, float, int]]) -> Figure:
    """Draw how often comparisons were right over how often they were promised to be.

    `promises` are those of `rewards.calibration`: promised share, share that held, pairs.
    """
    figure, axis = plt.subplots(figsize=(4.4, 3.6))
    axis.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", label="as promised")
    promised, held, pairs = zip(*promises)
    axis.plot(promised, held, color=BLUE, marker="o", label="held-out pairs")
    for x, y, count in promises:
        axis.annotate(str(count), (x, y), textcoords="offset points", xytext=(5, -12), fontsize=8)
    axis.set(xlabel="promised: sigmoid of the margin", ylabel="share in the right order")
    axis.set(xlim=(0.48, 1.02), ylim=(min(0.45, *held) - 0.03, 1.03))
    axis.legend(fontsize=9)
    return _shown(figure)


def over_optimisation(
    counts: Sequence[int], truths: Sequence[float], rewards: Sequence[float]
) -> Figure:
    """Draw reward and truth of the best of n answers over how far that is from the policy.

    The distance is log n - (n - 1) / n nats (Gao et al., 2022).
    """
    away = [math.log(n) - (n - 1) / n for n in counts]
    figure, axis = plt.subplots(figsize=(7, 3.2))
    _against(axis, away, rewards, truths)
    axis.set_xticks(away, [f"{one:.2f}\nn = {n}" for one, n in zip(away, counts)])
    axis.set_xlabel("nats away from the policy")
    return _shown(figure)


def against_truth(history: Sequence[dict[str, Any]]) -> Figure:
    """Draw the two rewards of a GRPO trainer over its steps: what it learns from, and the truth.

    `history` is its `state.log_history`; the reward functions are called `learned` and `truth`.
    """
    learned, truth = (loss_curve(history, f"rewards/{one}/mean") for one in ("learned", "truth"))
    figure, axis = plt.subplots(figsize=(7, 3.2))
    steps = [step for step, _ in learned]
    smooth = [moving_mean([value for _, value in curve], 4) for curve in (learned, truth)]
    _against(axis, steps, *smooth)
    axis.set_xlabel("optimizer step")
    return _shown(figure)


def _against(
    axis: Axes, places: Sequence[float], rewards: Sequence[float], truths: Sequence[float]
) -> None:
    axis.plot(places, truths, color=BLUE, marker=".", label="truth")
    axis.set_ylabel("truth", color=BLUE)
    other = axis.twinx()
    other.plot(places, rewards, color=RED, marker=".", linestyle="--", label="reward")
    other.set_ylabel("reward", color=RED)


def sharding(parts: Mapping[str, float], processes: int) -> Figure:
    """Draw what each of `processes` holds of a training's parts, in bytes: copied, and sharded."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True)
    gib, colors = 2**30, (BLUE, GREY, RED)
    for axis, name, share in zip(axes, ("DDP: copied", "FSDP: sharded"), (1, processes)):
        for process in range(processes):
            low = 0.0
            for (part, size), color in zip(parts.items(), colors):
                high, whole = size / share / gib, size / gib
                label = part if process == 0 else None
                axis.bar(process, whole, bottom=low, color="none", edgecolor=color, linestyle=":")
                at = low + whole * process / processes if share > 1 else low
                axis.bar(process, high, bottom=at, color=color, label=label)
                low += whole
        axis.set(title=name, xlabel="process", xticks=range(processes))
    axes[0].set_ylabel("GiB held")
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _shown(figure)


def shares(parts: Mapping[str, Dataset]) -> Figure:
    """Draw each part's share of the rows beside its share of the tokens that are learned."""
    rows = [len(part) for part in parts.values()]
    learned = [
        sum(label != IGNORED for labels in part["labels"] for label in labels)
        for part in parts.values()
    ]
    figure, axis = plt.subplots(figsize=(7, 2.2))
    for line, counts in enumerate((rows, learned)):
        left = 0.0
        for (name, count), color in zip(zip(parts, counts), (BLUE, GREY, RED)):
            width = count / sum(counts)
            axis.barh(line, width, left=left, color=color, label=name if line == 0 else None)
            text = f"{width:.0%}" if width > 0.02 else ""
            ink = "black" if color == GREY else "white"
            axis.text(left + width / 2, line, text, ha="center", va="center", color=ink)
            left += width
    axis.set_yticks([0, 1], ["rows", "learned tokens"])
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xticks=[])
    axis.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    axis.spines[:].set_visible(False)
    return _shown(figure)


def _visible(token: str) -> str:
    """Return a token's text with blanks that can be seen, and nothing that Matplotlib reads."""
    return repr(token)[1:-1].replace(" ", "\N{OPEN BOX}").replace("$", r"\$")


def _bare(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axis = plt.subplots(figsize=(width, height))
    axis.set_axis_off()
    return figure, axis


def _shown(figure: Figure) -> Figure:
    figure.tight_layout()
    plt.close(figure)  # the notebook shows the returned figure; without this it would show twice
    return figure
