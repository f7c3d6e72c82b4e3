"""Times and counts a contestant's optimizer steps. Needs torch alone: peers import it too."""

import json
import os
import resource
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

NAMED = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")


class Meter:
    """Step times, real tokens and losses of one run, written as JSON when it ends."""

    def __init__(self, started: float) -> None:
        self.started = started  # time.time() when the process began
        self.first_step: float | None = None
        self.ends: list[float] = []
        self.micro_batches: list[int] = []  # real tokens of each, in the order they were made
        self.losses: list[float] = []
        self.earlier: list[float] = []  # seconds that went into each step before the first began
        self.rewards: list[float] = []

    def begin_step(self) -> None:
        """Note that the first step begins; later calls change nothing."""
        if self.first_step is None:
            self.first_step = time.time()

    def end_step(self) -> None:
        """Note the end of an optimizer step."""
        self.ends.append(time.time())

    def counted(self, collate: Any) -> Any:
        """Return a collator that counts the real tokens of each batch it makes."""

        def counting(examples: Any) -> Any:
            batch = collate(examples)
            self.micro_batches.append(real_tokens(batch))
            return batch

        return counting

    def result(self, micro_batches_per_step: int, **facts: Any) -> dict[str, Any]:
        """Return what was measured. Call it before `matmul_rate`, which takes memory of its own."""
        if self.first_step is None or not self.ends:
            raise RuntimeError("no optimizer step was seen")
        starts = [self.first_step, *self.ends[:-1]]
        earlier = self.earlier or [0.0] * len(self.ends)
        size = micro_batches_per_step
        tokens = [
            sum(self.micro_batches[at * size : (at + 1) * size]) for at in range(len(self.ends))
        ]
        return {
            "startup_seconds": self.first_step - self.started - sum(earlier),
            "seconds": [
                end - start + before
                for start, end, before in zip(starts, self.ends, earlier, strict=True)
            ],
            "tokens": tokens,
            "losses": self.losses,
            "rewards": self.rewards,
            "peak_memory_bytes": peak_memory_bytes(),
            "versions": installed(NAMED),
            **facts,
        }


def process_start() -> float:
    """Return when this process began, in seconds since the epoch."""
    try:
        import psutil

        return float(psutil.Process(os.getpid()).create_time())
    except ImportError:
        return time.time()


def real_tokens(batch: Any) -> int:
    """Return the tokens of a batch that are no padding; of a pair of sequences, of both."""
    if "attention_mask" in batch:
        count = int(batch["attention_mask"].sum())
    else:
        count = int(batch["input_ids"].numel())
    if "decoder_input_ids" in batch:
        count += int((batch["labels"] != -100).sum())
    return count


def peak_memory_bytes() -> int:
    """Return the most resident memory that this process had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def matmul_rate(seconds: float = 1.0) -> float:
    """Return the floating-point operations a second of a dense bfloat16 matrix product."""
    import torch

    rows, inner, columns = 1024, 2048, 2048
    left = torch.randn(rows, inner).bfloat16()
    right = torch.randn(inner, columns).bfloat16()
    for _ in range(3):
        left @ right
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        left @ right
        count += 1
    return count * 2 * rows * inner * columns / (time.perf_counter() - start)


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result whole or not at all."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result), encoding="utf-8")
    partial.replace(path)
