"""What the page here shows of the recorded kills, files and processes."""

from __future__ import annotations

import json
from typing import Any

from cookbook.commands.record import filled
from cookbook.profiles import ROOT

RESULTS = ROOT / "results" / "reliability"
PAGE = ROOT / "tests" / "reliability" / "README.md"


def recorded(name: str) -> dict[str, Any]:
    """Return a record: `kills`, `loading` or `processes`."""
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


def processes() -> str:
    """Return how far trainings in several processes lie apart as a Markdown table."""
    content = recorded("processes")
    lines = [
        f"| {content['steps']} steps | largest difference of a loss (fall in all) "
        "| largest difference of a weight (largest move) |",
        "| --- | --- | --- |",
    ]
    for name, one in content["ways"].items():
        lines.append(
            f"| {name} | {one['loss']:.1e} ({one['learned']:.2f}) "
            f"| {one['weight']:.1e} ({one['moved']:.1e}) |"
        )
    return "\n".join(lines)


TABLES = {
    "reliability/kills": kills,
    "reliability/loading": loading,
    "reliability/processes": processes,
}


def with_tables(text: str) -> str:
    """Return a Markdown text with its tables of reliability filled from the records."""
    return filled(text, lambda name: TABLES[name]() if name in TABLES else None)
