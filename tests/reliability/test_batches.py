"""Micro-batches that are accumulated train what the whole batch does, by each method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reliability.methods import METHODS, STEPS

pytestmark = pytest.mark.unit


# Largest difference of a loss, and of a weight. TRL's trainer computes in bfloat16 by itself.
LOSS = {"full": 2e-5, "seq2seq": 2e-5, "lora": 4e-4, "lora-4bit": 4e-4}


def trained(method: str, folder: Path, at_once: int, accumulated: int) -> tuple[list[float], Any]:
    """Return losses and weights after plain gradient descent, without anything random."""
    trainer: Any = METHODS[method](folder)
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    trainer.args.optim, trainer.args.learning_rate = "sgd", 0.1
    trainer.args.per_device_train_batch_size = trainer._train_batch_size = at_once
    trainer.args.gradient_accumulation_steps = accumulated
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    weights = [one.detach().clone() for one in trainer.model.parameters() if one.requires_grad]
    return losses, weights


@pytest.mark.parametrize("method", LOSS)
def test_accumulation_equals_the_larger_batch(method: str, tmp_path: Path) -> None:
    """GRPO's batch is what it samples at once, so that another split samples other answers."""
    whole, ends = trained(method, tmp_path / "whole", 8, 1)
    for at_once, accumulated in ((4, 2), (2, 4)):
        losses, weights = trained(method, tmp_path / f"{accumulated}", at_once, accumulated)
        assert losses == pytest.approx(whole, abs=LOSS[method])
        for one, other in zip(ends, weights, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=LOSS[method])
    halved, _ = trained(method, tmp_path / "halved", 4, 1)
    assert max(abs(a - b) for a, b in zip(halved, whole)) > 100 * LOSS[method], "no batch matters"
