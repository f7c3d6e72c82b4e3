"""What a notebook teaches, where a wrong value would train on and say nothing."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest

from tests.contract.notebook_rules import calls
from tests.contract.repository import notebooks

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_adapters_are_on_every_linear_layer(path: Path) -> None:
    """As QLoRA found necessary to match full fine-tuning (arXiv 2305.14314, figure 2)."""
    for arguments in calls(nbformat.read(path, as_version=4), "LoraConfig"):
        # All linear layers, and experts, which are none; test_experts holds what it returns.
        assert ast.unparse(arguments["**"]) == "experts.lora_targets(model_config)"


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_loss_is_better_when_lower_and_all_else_when_higher(path: Path) -> None:
    found = list(calls(nbformat.read(path, as_version=4), "metric"))
    assert found, "no metric"
    for arguments in found:
        # What it is called, and the score before: where a loop makes several, that one says it.
        falls = "loss" in ast.unparse(arguments["0"]) + ast.unparse(arguments["1"])
        assert ast.literal_eval(arguments["higher_is_better"]) is not falls
