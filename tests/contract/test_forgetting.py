"""The forgetting check of a notebook compares losses of one text, cut at one length."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest

from tests.contract.notebook_rules import code_cells
from tests.contract.repository import notebooks

pytestmark = pytest.mark.contract


def parsed(path: Path) -> list[ast.AST]:
    """Return all that a notebook's code consists of."""
    code = "\n".join(code_cells(nbformat.read(path, as_version=4)))
    return list(ast.walk(ast.parse(code)))


def scored_texts(nodes: list[ast.AST]) -> list[tuple[str, ...]]:
    """Return for each call of the forgetting check its texts, and how they are cut."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "evaluation.text_loss":
            _, _, texts, _, *length = [*node.args, *(one.value for one in node.keywords)]
            found.append((ast.unparse(texts), *map(ast.unparse, length)))
    return found


def given(nodes: list[ast.AST], name: str) -> list[str]:
    """Return every value that a notebook gives a name."""
    assigned = [one for one in nodes if isinstance(one, ast.Assign)]
    return [ast.unparse(one.value) for one in assigned if name in map(ast.unparse, one.targets)]


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_the_text_is_the_same_before_and_after(path: Path) -> None:
    nodes = parsed(path)
    texts = scored_texts(nodes)
    assert texts, "there is no forgetting check"
    assert len(set(texts)) == 1, "other texts after the training than before"
    (source,) = given(nodes, texts[0][0])
    assert source.startswith("data.general_text(")
