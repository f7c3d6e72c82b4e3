"""What a notebook teaches, where a wrong value would train on and say nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from cookbook.proof import notebook_code
from tests.contract.repository import notebooks

pytestmark = pytest.mark.contract


def calls(path: Path, name: str) -> Iterator[dict[str, ast.expr]]:
    """Yield the arguments, by name or place, of a notebook's calls of a function."""
    code = notebook_code(nbformat.read(path, as_version=4))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
            named = {one.arg: one.value for one in node.keywords if one.arg}
            yield {str(place): one for place, one in enumerate(node.args)} | named


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_adapters_are_on_every_linear_layer(path: Path) -> None:
    """As QLoRA found necessary to match full fine-tuning (arXiv 2305.14314, figure 2)."""
    for arguments in calls(path, "LoraConfig"):
        assert ast.literal_eval(arguments["target_modules"]) == "all-linear"


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_loss_is_better_when_lower_and_all_else_when_higher(path: Path) -> None:
    found = list(calls(path, "metric"))
    assert found, "no metric"
    for arguments in found:
        falls = "loss" in ast.unparse(arguments["0"])
        assert ast.literal_eval(arguments["higher_is_better"]) is not falls
