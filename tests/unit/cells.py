"""What one tagged cell of a notebook defines, executed as it stands there."""

from pathlib import Path
from typing import Any

import nbformat


def defined_by(notebook: Path, tag: str, imports: str) -> dict[str, Any]:
    """Return the names that the cell tagged `tag` defines; it needs `imports` alone.

    It is a cell that checks answers with math-verify, whose first expression builds the parser's
    tables: a busy machine may not do that within the cell's own time limit.
    """
    cells = nbformat.read(notebook, as_version=4).cells
    (cell,) = [one for one in cells if tag in one.metadata.get("tags", [])]
    names: dict[str, Any] = {}
    exec(f"{imports}\nfrom math_verify import parse, verify\n{cell.source}", names)
    names["parse"]("$1$", parsing_timeout=None)
    return names
