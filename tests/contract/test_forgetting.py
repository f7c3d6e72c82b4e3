"""The forgetting check of a notebook compares losses of one text, cut at one length."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest

from tests.contract.notebook_rules import calls, code_cells
from tests.contract.repository import notebooks

pytestmark = pytest.mark.contract


def given(notebook: nbformat.NotebookNode, name: str) -> list[str]:
    """Return every value that a notebook gives a name."""
    nodes = ast.walk(ast.parse("\n".join(code_cells(notebook))))
    assigned = [one for one in nodes if isinstance(one, ast.Assign)]
    return [ast.unparse(one.value) for one in assigned if name in map(ast.unparse, one.targets)]


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_the_text_is_the_same_before_and_after(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    found = [[ast.unparse(one) for one in call.values()] for call in calls(notebook, "text_loss")]
    assert found, "there is no forgetting check"
    texts = {(text, *length) for _, _, text, _, *length in found}
    assert len(texts) == 1, "other texts after the training than before"
    (source,) = given(notebook, texts.pop()[0])
    assert source.startswith("data.general_text(")
