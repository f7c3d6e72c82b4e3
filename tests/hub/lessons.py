"""The cells that carry a notebook's lesson, as a reader pastes them into a project of their own.

A folder's README lists the lines to replace, in a block after `<!-- copies out: NAME -->`: what a
minus marks goes, and what a plus marks takes its place; a plus before the first minus goes in after
the imports.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat

MOST = 10  # lines to replace
_BLOCK = r"<!-- copies out: {} -->\n+```diff\n(.*?)```"


@dataclass(frozen=True)
class Line:
    """A line of a notebook, and what takes its place; no old line for one that is new."""

    old: str
    new: str


def lines_to_replace(path: Path) -> list[Line]:
    """Return what the README beside a notebook says. Raises LookupError where it says nothing."""
    text = (path.parent / "README.md").read_text(encoding="utf-8")
    block = re.search(_BLOCK.format(re.escape(path.stem)), text, re.DOTALL)
    if block is None:
        raise LookupError(f"{path.parent.name}/README.md has no block for {path.stem}")
    found: list[Line] = []
    for line in block[1].splitlines():
        sign, content = line[:1], line[2:]
        if sign == "-":
            found.append(Line(content.strip(), ""))
        elif sign == "+" and found and found[-1].old and not found[-1].new:
            found[-1] = Line(found[-1].old, content)
        elif sign == "+" and not any(one.old for one in found):
            found.append(Line("", content))
        else:
            raise LookupError(f"{path.stem}: {line!r} stands after no line that it could replace")
    return found


def pasted(path: Path, lines: list[Line], after_config: str = "") -> str:
    """Return a notebook's cells tagged `lesson`, one after the other, with lines replaced.

    Each old line must be in them. A test adds `after_config` below the line that makes `config`.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = [cell.source for cell in notebook.cells if "lesson" in cell.metadata.get("tags", [])]
    own = "\n".join(one.new for one in lines if not one.old)
    own = re.sub(r"^config.*$", lambda found: found[0] + after_config, own, flags=re.MULTILINE)
    code = "\n\n".join([*cells[:2], own, *cells[2:]])  # the settings, and the imports
    for one in lines:
        if not one.old:
            continue
        place = re.compile(rf"^([ \t]*){re.escape(one.old)}[ \t]*(#.*)?$", re.MULTILINE)
        if not place.search(code):
            raise LookupError(f"{path.stem}: no cell tagged lesson has the line {one.old!r}")
        code = place.sub(lambda found: found[1] + one.new if one.new else "", code)
    return code
