"""Draw what a GPU measured into the documents: `python -m tests.gpu.documents`.

The table of tests/bench/README.md and two cells of each row in the notebooks' first table come from
`results/gpu`. Where there is no record they say so.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cookbook.commands.record import filled
from cookbook.commands.run import recipe_of
from tests.bench.documents import SPEED, with_markdown
from tests.bench.gpu_records import NOT_MEASURED
from tests.gpu import check
from tests.gpu.records import GIB, RESULTS

Record = dict[str, Any]

NAME = "gpu/profiles"


def records(folder: Path = RESULTS) -> list[Record]:
    """Return the records of checks at full size that passed and timed a step, the newest last."""
    paths = [path for path in folder.rglob("*.json") if not path.name.endswith(".failed.json")]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    whole = [one for one in found if one["status"] == "passed" and one["scale"] == "full"]
    whole = [one for one in whole if one["speed"]["steady_seconds_per_step"]]  # two steps time none
    return sorted(whole, key=lambda one: (str(one["date"]), str(one["machine"]["device"])))


def newest(found: Iterable[Record], recipe: str, profile: str) -> Record | None:
    """Return the newest record of a recipe's profile, or None."""
    mine = [one for one in found if (one["recipe"], one["profile"]) == (recipe, profile)]
    return mine[-1] if mine else None


def table(found: list[Record]) -> str:
    """Return a line for each recipe and profile: memory, speed, and how right the plan was."""
    lines = [
        "| recipe | profile | on | peak memory | planned | tokens/s | seconds a step "
        "| the check took | expected |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for profile in check.PROFILES:
        for recipe in check.notebooks():
            one = newest(found, recipe, profile)
            name = recipe.partition("/")[2]
            cells = _cells(one) if one else f"- | {NOT_MEASURED} | | | | | |"
            lines.append(f"| {name} | `{profile}` | {cells}")
    return "\n".join(lines)


def _cells(one: Record) -> str:
    speed, planned = one["speed"], one["metrics_json"].get("planned", {})
    share = planned.get("peak_memory_bytes", {})
    plan = f"{share['planned'] / share['measured'] - 1:+.0%}" if share else "-"
    took = sum(one["seconds"].get(part, 0.0) for part in ("data", "notebook"))
    return (
        f"{one['machine']['device']} | {one['memory']['peak_reserved_bytes'] / GIB:.1f} GiB "
        f"| {plan} | {speed['steady_tokens_per_second']:,.0f} "
        f"| {speed['steady_seconds_per_step']:.2f} | {took:.0f} s "
        f"| {one['seconds']['expected']:.0f} s |"
    )


def first_table(text: str, recipe: str, found: list[Record]) -> str:
    """Return a notebook's text with memory and time of the GPU profiles filled in.

    Rows of the check are as long as the profile allows, so both are the most that there can be.
    """
    for profile in check.PROFILES:
        if one := newest(found, recipe, profile):
            device, step = one["machine"]["device"], one["speed"]["steady_seconds_per_step"]
            minutes = check.settings_of(recipe, profile)["max_steps"] * step / 60
            memory = f"{one['memory']['peak_reserved_bytes'] / GIB:.1f} GiB on {device}"
            time = f"at most {minutes:.0f} minutes of training on {device}"
            row = re.compile(rf"^(\| `{profile}` \|.*\|)[^|\n]*\|[^|\n]*\|$", re.MULTILINE)
            text = row.sub(lambda line: f"{line[1]} {memory} | {time} |", text)
    return text


def rewritten(path: Path, found: list[Record]) -> str:
    """Return a notebook file with its table of profiles drawn anew."""
    recipe = recipe_of(path)
    text = path.read_text(encoding="utf-8")
    return with_markdown(text, lambda cell: first_table(cell, recipe, found))


def with_table(text: str, found: list[Record]) -> str:
    """Return the page with its table drawn anew."""
    return filled(text, lambda name: table(found) if name == NAME else None)


def main() -> int:
    """Rewrite the documents and return the exit status."""
    found = records()
    SPEED.write_text(with_table(SPEED.read_text(encoding="utf-8"), found), encoding="utf-8")
    for path in check.notebooks().values():
        path.write_text(rewritten(path, found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
