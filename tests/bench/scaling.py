"""What 8, 64 and 512 GPUs mean, by arithmetic: the table of SCALING.md.

Nothing here is measured. Each figure follows from the constants below, whose sources the document
names beside the table.
"""

from __future__ import annotations

import math
from collections.abc import Callable

GPUS = (8, 64, 512)
OF_A_MACHINE = 8
MODELS = {"8B": 8.03e9, "70B": 70.6e9}  # weights of Llama 3.1
PEAK = 989e12  # operations a second, H100 SXM, dense bfloat16
MFU = 0.36  # the middle of what torchtitan reports for the 8B model on 8 to 128 H100
NVLINK, NETWORK = 450e9, 50e9  # bytes a second into a GPU: NVLink 4; 400 Gb/s for each GPU
REACHED = 0.8  # of a link's rate, by large messages
GPU_HOURS_A_FAILURE = 54 * 24 * 16_384 / 419  # Llama 3: 419 unexpected stops in 54 days
STORAGE = 10e9  # bytes a second that all processes together write
DOLLARS_A_GPU_HOUR = 2.0
GIB = 2**30

BYTES_HELD = 16  # a weight: float32 weight, gradient, two moments of AdamW
BYTES_SAVED = 12  # a weight: no gradient
BYTES_MOVED = 2 + 2 + 4  # a weight and step: gathered twice in 16 bits, gradient in float32


def held(weights: float, shards: int) -> float:
    """Return the bytes that each of so many shards holds of weights, gradients and optimizer."""
    return BYTES_HELD * weights / shards


def tokens_to_hide(moved: float, rate: float) -> float:
    """Return the tokens that a GPU must compute with, each step, while `moved` bytes a weight come.

    Computing takes 6 operations a weight and token. The number of weights cancels out.
    """
    return moved / (REACHED * rate) * MFU * PEAK / 6


def moved_between_machines(gpus: int) -> float:
    """Return the bytes a weight over the network where each machine holds one whole copy.

    A GPU has the gradients of its shard, in float32, summed over the machines: an all-reduce sends
    and receives twice the share that is not its own.
    """
    machines = gpus // OF_A_MACHINE
    return 2 * (machines - 1) / machines * 4 / OF_A_MACHINE


def hours_between_failures(gpus: int) -> float:
    """Return the mean hours until something stops so many GPUs."""
    return GPU_HOURS_A_FAILURE / gpus


def saving(weights: float) -> float:
    """Return the seconds that a checkpoint takes to write."""
    return BYTES_SAVED * weights / STORAGE


def interval(weights: float, gpus: int) -> float:
    """Return the seconds between checkpoints that lose the least time (Young, 1974)."""
    return math.sqrt(2 * saving(weights) * 3600 * hours_between_failures(gpus))


def lost(weights: float, gpus: int) -> float:
    """Return the share of time that saving and repeating take at that interval."""
    return 2 * saving(weights) / interval(weights, gpus)


def tokens_per_second(weights: float, gpus: int) -> float:
    """Return the tokens that all GPUs train on in a second."""
    return gpus * MFU * PEAK / (6 * weights)


def dollars(weights: float, gpus: int) -> float:
    """Return what a million tokens cost, with what saving and failures take."""
    an_hour = DOLLARS_A_GPU_HOUR * gpus / (1 - lost(weights, gpus))
    return an_hour / (tokens_per_second(weights, gpus) * 3600 / 1e6)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table() -> str:
    """Return the arithmetic as a Markdown table, one column for each number of GPUs."""

    def rate(gpus: int) -> float:
        return NVLINK if gpus == OF_A_MACHINE else NETWORK

    small, large = MODELS.values()
    rows: dict[str, Callable[[int], float]] = {
        "machines": lambda gpus: gpus / OF_A_MACHINE,
        "GiB a GPU for the 8B model, sharded over all": lambda gpus: held(small, gpus) / GIB,
        "GiB a GPU for the 70B model, sharded over all": lambda gpus: held(large, gpus) / GIB,
        "tokens a GPU and step that hide the traffic, sharded over all": lambda gpus: (
            tokens_to_hide(BYTES_MOVED, rate(gpus))
        ),
        "the same, each machine one copy (between machines)": lambda gpus: (
            tokens_to_hide(moved_between_machines(gpus), NETWORK)
        ),
        "tokens an update then has at least, sharded over all": lambda gpus: (
            gpus * tokens_to_hide(BYTES_MOVED, rate(gpus))
        ),
        "the same, each machine one copy": lambda gpus: (
            gpus
            * max(
                tokens_to_hide(BYTES_MOVED, NVLINK),
                tokens_to_hide(moved_between_machines(gpus), NETWORK),
            )
        ),
        "hours between failures": hours_between_failures,
        "minutes between checkpoints, 70B": lambda gpus: interval(large, gpus) / 60,
        "time lost to saving and repeating, 70B, %": lambda gpus: 100 * lost(large, gpus),
        "tokens a second, 8B": lambda gpus: tokens_per_second(small, gpus),
        "dollars a million tokens, 8B": lambda gpus: dollars(small, gpus),
        "dollars a million tokens, 70B": lambda gpus: dollars(large, gpus),
    }
    lines = [
        "| GPUs | " + " | ".join(map(str, GPUS)) + " |",
        "| --- |" + " --- |" * len(GPUS),
    ]
    for name, value in rows.items():
        lines.append(f"| {name} | " + " | ".join(_amount(value(one)) for one in GPUS) + " |")
    return "\n".join(lines)
