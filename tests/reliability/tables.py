"""What ARCHITECTURE.md shows of the recorded kills and files."""

from __future__ import annotations

import json
from typing import Any

from cookbook.profiles import ROOT
from cookbook.record import filled

RESULTS = ROOT / "results" / "reliability"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"


def recorded(name: str) -> dict[str, Any]:
    """Return a record: `kills` or `loading`."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def kills() -> str:
    """Return the killed trainings as a Markdown table."""
    lines = [
        "| killed training | in a step | while saving | torn checkpoints left out "
        "| steps trained twice | largest difference of a weight in the end |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in recorded("kills")["methods"].items():
        lines.append(
            f"| {name} | {one['kills']['step']} | {one['kills']['saving']} | {one['torn']} "
            f"| {one['steps_lost']} | {one['largest_difference']:g} |"
        )
    return "\n".join(lines)


def loading() -> str:
    """Return what became of own files as a Markdown table."""
    lines = [
        "| recipe | files | used | used, rows dropped and counted | refused with a message |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, one in recorded("loading")["outcomes"].items():
        kinds = [one.get(kind, 0) for kind in ("used", "used, rows dropped", "refused")]
        lines.append(f"| {name} | {sum(kinds)} | {' | '.join(map(str, kinds))} |")
    return "\n".join(lines)


TABLES = {"reliability/kills": kills, "reliability/loading": loading}


def with_tables(text: str) -> str:
    """Return a Markdown text with its tables of reliability filled from the records."""
    return filled(text, lambda name: TABLES[name]() if name in TABLES else None)
