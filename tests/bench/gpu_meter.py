"""Counts and times the steps of a run on a GPU."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from cookbook import memory
from cookbook.chat import IGNORED
from tests.bench.gpu_operations import Given
from tests.bench.gpu_works import GpuWork


def finished() -> float:
    """Return the time in seconds at which all that was asked of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def given(batch: dict[str, torch.Tensor]) -> Given:
    """Return what a batch holds. A row's first token is predicted from nothing."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    long = torch.full((len(ids),), ids.shape[1]) if mask is None else mask.sum(1)
    outputs = int((batch["labels"][:, 1:] != IGNORED).sum())
    return Given(int(long.sum()), outputs, int((long**2).sum()))


class GpuMeter(TrainerCallback):
    """Watches a trainer: the time of its timed steps, what it is given, and its peak memory."""

    def __init__(self, work: GpuWork) -> None:
        self.work = work
        self.batches: list[Given] = []  # of each micro-batch; of GRPO, of each step
        self.padded: list[int] = []  # tokens of each, padding included
        self.sampling: list[float] = []  # seconds of each step of GRPO
        self.losses: list[float] = []
        self.steps = 0
        self.begin = self.timed_from = self.timed_to = 0.0

    def counted(self, collate: Any) -> Any:
        """Return a collator that counts each batch it makes."""

        def counting(examples: Any) -> Any:
            batch = collate(examples)
            self.batches.append(given(batch))
            self.padded.append(int(batch["input_ids"].numel()))
            return batch

        return counting

    def watch_sampling(self, trainer: Any) -> None:
        """Time a GRPO trainer's sampling and count its prompts and answers."""
        sample = trainer._generate_single_turn

        def generate(prompts: Any, *args: Any, **kwargs: Any) -> Any:
            begin = finished()
            answers, *rest = sample(prompts, *args, **kwargs)
            self.sampling.append(finished() - begin)
            pairs = [(len(asked), len(said)) for asked, said in zip(prompts, answers, strict=True)]
            whole = [asked + said for asked, said in pairs]
            outputs = sum(said for _, said in pairs)
            self.batches.append(Given(sum(whole), outputs, sum(one**2 for one in whole)))
            self.padded.append(len(pairs) * sum(max(side) for side in zip(*pairs)))
            return (answers, *rest)

        trainer._generate_single_turn = generate

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Train inside this: peak memory is counted from here on."""
        memory.reset_peak()
        yield

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Note when the first step begins."""
        self.begin = self.begin or finished()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Wait for the GPU where timing begins and ends, and nowhere between."""
        self.steps += 1
        if self.steps == self.work.warm_up_steps:
            self.timed_from = finished()
        if self.steps == self.work.steps:
            self.timed_to = finished()

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        """Keep the losses that are logged."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def timed(self) -> Given:
        """Return what the timed steps were given."""
        return sum(self._of_timed_steps(self.batches), Given())

    def _of_timed_steps(self, found: list[Any]) -> list[Any]:
        size = 1 if self.work.kind == "grpo" else self.work.accumulation
        return found[size * self.work.warm_up_steps : size * self.work.steps]

    def result(self) -> dict[str, Any]:
        """Return what was measured, in seconds, tokens and bytes. Call it before anything else."""
        if not self.timed_to:
            raise RuntimeError(f"{self.steps} of {self.work.steps} optimizer steps were seen")
        seen = self.timed()
        measured: dict[str, Any] = {
            "seconds": self.timed_to - self.timed_from,
            "warm_up_seconds": self.timed_from - self.begin,
            "tokens": seen.tokens,
            "predicted_tokens": seen.outputs,
            "padding": 1 - seen.tokens / sum(self._of_timed_steps(self.padded)),
            "losses": self.losses,
            **peaks(),
        }
        if self.sampling:
            measured["sampling_seconds"] = sum(self._of_timed_steps(self.sampling))
        return measured


def peaks() -> dict[str, int]:
    """Return the most bytes that were held: by CUDA's allocator, or by the process on a CPU."""
    if torch.cuda.is_available():
        return {
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        }
    peak = int(memory.peak_memory_bytes())
    return {"peak_reserved_bytes": peak, "peak_allocated_bytes": peak}
