"""What a run of a peer is given, and what is counted of it from outside."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

from tests.bench.meter import Meter

PADDING = 0  # <|endoftext|> of SmolLM2, which no row has

Task = SimpleNamespace


class Watch:
    """Counts the batches that training takes and the steps that its optimizer makes."""

    def __init__(self, seen: Meter) -> None:
        self.meter = seen
        self.trainable = 0

    def start(self) -> None:
        """Begin to watch every data loader and every optimizer of this process."""
        self.watch_loaders(DataLoader)
        register_optimizer_step_post_hook(self.step)

    def watch_loaders(self, kind: Any) -> None:
        """Watch the data loaders of a class with an `__iter__` of its own."""
        iterate = kind.__iter__
        watch = self

        def counting(loader: Any) -> Any:
            for batch in iterate(loader):
                watch.batch(batch)
                yield batch

        kind.__iter__ = counting

    def batch(self, batch: Any) -> None:
        """Count the real tokens of a batch; one taken without gradients is for evaluation."""
        if not torch.is_grad_enabled():
            return
        self.meter.begin_step()
        if "attention_mask" in batch:
            count = int((batch["attention_mask"] != 0).sum())
        else:
            count = int((batch["tokens" if "tokens" in batch else "input_ids"] != PADDING).sum())
        self.meter.micro_batches.append(count)

    def step(self, optimizer: Any, *_: Any) -> None:
        """Note the end of a step, and how many weights it changed."""
        self.meter.end_step()
        if not self.trainable:
            weights = [one for group in optimizer.param_groups for one in group["params"]]
            self.trainable = sum(one.numel() for one in weights if one.requires_grad)


def read(path: str) -> list[Any]:
    """Return the rows of a JSON lines file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
