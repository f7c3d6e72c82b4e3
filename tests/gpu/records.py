"""What a check leaves behind: one JSON file per recipe, profile and device, and a table."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from cookbook.commands.record import in_file_names
from cookbook.profiles import ROOT

RESULTS = ROOT / "results" / "gpu"
GIB = 2**30
LOSS = "train/loss"  # as the trainer logs it for TensorBoard

Status = Literal["passed", "failed", "not run"]


@dataclass
class Outcome:
    """How one recipe on one profile went. `why` is empty where it passed."""

    recipe: str
    profile: str
    status: Status
    why: str = ""
    record: dict[str, Any] = field(default_factory=dict)


def write(outcome: Outcome, device: str, results: Path) -> Path:
    """Write an outcome's record and return where: a failure never replaces what passed.

    It lies beside it as `<name>.failed.json`, until the same check passes.
    """
    folder = results / outcome.recipe
    name = f"{outcome.profile}-{in_file_names(device)}"
    passed, failed = folder / f"{name}.json", folder / f"{name}.failed.json"
    target = passed if outcome.status == "passed" else failed
    head = {"status": outcome.status, "recipe": outcome.recipe, "profile": outcome.profile}
    content = head | ({"error": outcome.why} if outcome.why else {}) | outcome.record
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(target)
    if outcome.status == "passed":
        failed.unlink(missing_ok=True)
    return target


def steady_seconds(run: Path) -> float | None:
    """Return the median seconds from one logged step to the next of a run's last training.

    Tokens per second over a whole short training count the first step, which compiles and
    allocates, and the saving of checkpoints. None where there are fewer than three steps.
    """
    from tensorboard.backend.event_processing import (  # type: ignore[import-untyped]
        event_accumulator,
    )

    files = sorted(run.rglob("events.out.tfevents*"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        return None
    events = event_accumulator.EventAccumulator(str(files[-1]))
    events.Reload()
    if LOSS not in events.Tags()["scalars"]:
        return None
    seen = [(event.step, event.wall_time) for event in events.Scalars(LOSS)]
    gaps = [
        (after - before) / (later - earlier)
        for (earlier, before), (later, after) in zip(seen, seen[1:])
        if later > earlier
    ]
    return median(gaps) if len(gaps) > 1 else None


def table(outcomes: Sequence[Outcome]) -> str:
    """Return one line for each recipe and profile."""
    rows = [("recipe", "profile", "result", "peak GiB", "cap GiB", "tokens/s", "why")]
    for one in outcomes:
        memory, speed = one.record.get("memory", {}), one.record.get("speed", {})
        peak, cap = memory.get("peak_reserved_bytes"), memory.get("memory_cap_bytes")
        rate = speed.get("steady_tokens_per_second") or speed.get("tokens_per_second")
        rows.append(
            (
                *(one.recipe, one.profile, one.status),
                f"{peak / GIB:.1f}" if peak else "-",
                f"{cap / GIB:.1f}" if cap else "-",
                f"{rate:.0f}" if rate else "-",
                one.why,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """Return 1 if anything failed, 3 if nothing ran, else 0."""
    statuses = {one.status for one in outcomes}
    if "failed" in statuses:
        return 1
    return 0 if "passed" in statuses else 3
