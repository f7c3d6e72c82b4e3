"""What the cells of one tag of a notebook define, executed as they stand there."""

from pathlib import Path
from typing import Any

import nbformat


def defined_by(notebook: Path, tag: str, imports: str) -> dict[str, Any]:
    """Return the names that the cells tagged `tag` define; they need `imports` alone.

    They check answers with math-verify, whose first expression builds the parser's tables: a busy
    machine may not do that within the cells' own time limit.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    tagged = [one.source for one in cells if tag in one.metadata.get("tags", [])]
    assert tagged, f"{notebook.name} has no cell tagged {tag}"
    names: dict[str, Any] = {}
    exec("\n".join([imports, "from math_verify import parse, verify", *tagged]), names)
    names["parse"]("$1$", parsing_timeout=None)
    return names
