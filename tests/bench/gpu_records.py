"""What `make bench WORK=gpu` leaves behind: records that grow run by run, lines, a table."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.gpu_works import DEFAULT, OURS, SCALES, GpuWork
from tests.bench.results import GIB, ON_A_GPU, RESULTS, Record, Run, history, path_of

NOT_MEASURED = "not measured yet"
# The GPU figures to reach: shares of the matrix product's rate, and times TRL's default.
MFU_TARGETS = {"gpu-full": 0.45}
TIMES_TARGETS = {"gpu-lora": 2.0}


def new(work: GpuWork, scale: str) -> Record:
    """Return the record of a work before its first run."""
    return {
        "work": work.name,
        "title": work.title,
        "scale": scale,
        "date": datetime.now(UTC).isoformat(timespec="microseconds"),
        "max_length": work.max_length,
        "rows_per_step": work.rows_in_batch * work.accumulation,
        "timed_steps": work.timed_steps,
        "contestants": {},
        "ours_is_times_as_fast_as": {},
        "left_out": {},
    }


def tokens_per_second(run: Run) -> float:
    """Return the real tokens a second of a run's timed steps."""
    return float(run["tokens"] / run["seconds"])


def mfu(run: Run, attention: bool = False) -> float:
    """Return the share of a matrix product's rate that the needed operations reach.

    Those of products with weights alone, or those of attention too.
    """
    needed = run["operations"] + (run["attention_operations"] if attention else 0)
    return float(needed / run["seconds"] / run["matmul_flops_per_second"])


def summary(runs: dict[str, Run], steps: int) -> dict[str, Any]:
    """Return the medians of a contestant over its rounds; `runs` is kept whole beside them."""
    found = list(runs.values())
    medians: dict[str, Any] = {
        "rounds": len(found),
        "tokens_per_second": median(map(tokens_per_second, found)),
        "seconds_per_step": median(run["seconds"] / steps for run in found),
        "mfu": median(map(mfu, found)),
        "mfu_with_attention": median(mfu(run, attention=True) for run in found),
        "peak_memory_bytes": median(run["peak_reserved_bytes"] for run in found),
        "peak_allocated_bytes": median(run["peak_allocated_bytes"] for run in found),
        "startup_seconds": median(run["startup_seconds"] for run in found),
    }
    if "sampling_seconds" in found[0]:
        sampling = median(run["sampling_seconds"] / steps for run in found)
        medians["sampling_seconds_per_step"] = sampling
        medians["training_seconds_per_step"] = medians["seconds_per_step"] - sampling
    return medians | {"runs": runs}


def add_run(one: Record, contestant: str, number: int, run: Run) -> None:
    """Add what a contestant measured in round `number`, and what follows from it."""
    contestants = one["contestants"]
    one["device"] = run["device"]
    one["left_out"].pop(contestant, None)
    runs = contestants.get(contestant, {}).get("runs", {}) | {str(number): run}
    contestants[contestant] = summary(runs, one["timed_steps"])
    one["ours_is_times_as_fast_as"] = ratios(contestants)


def ratios(contestants: dict[str, dict[str, Any]], of: str = OURS) -> dict[str, float]:
    """Return how many times as fast as each other one was, over the rounds that both have."""
    mine = contestants.get(of, {"runs": {}})["runs"]
    found = {}
    for name, one in contestants.items():
        both = [number for number in mine if number in one["runs"]]
        if name != of and both:
            found[name] = median(
                tokens_per_second(mine[number]) / tokens_per_second(one["runs"][number])
                for number in both
            )
    return found


def write(one: Record, folder: Path) -> Path | None:
    """Write a record into its history, over what it was before; None if nothing was measured."""
    if not one["contestants"]:
        return None
    path = path_of(one["work"], one["device"], folder)
    records = [before for before in history(path) if before["date"] != one["date"]]
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps([*records, one], indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def latest(folder: Path = RESULTS) -> list[Record]:
    """Return the newest record of each work and device at full size, in the works' order."""
    newest = [history(path)[-1] for path in sorted(folder.glob(f"{ON_A_GPU}*.json"))]
    order = list(SCALES["full"])
    measured = (one for one in newest if one["scale"] == "full")
    return sorted(measured, key=lambda one: (one["device"], order.index(one["work"])))


def before(one: Record, folder: Path) -> Record | None:
    """Return the record before this one of the same work on the same device."""
    if "device" not in one:
        return None
    path = path_of(one["work"], one["device"], folder)
    return next((old for old in reversed(history(path)) if old["date"] != one["date"]), None)


def lines(one: Record, old: Record | None) -> list[str]:
    """Return what is printed of a record, `<work>: <ratio>x <contestant>` last."""
    work = one["work"]
    said = [f"{work}: {name}: {why}" for name, why in one["left_out"].items()]
    for name, now in one["contestants"].items():
        said.append(
            f"{work}: {name} {now['tokens_per_second']:,.0f} tokens/s, MFU {now['mfu']:.1%}, "
            f"{now['peak_memory_bytes'] / GIB:.1f} GiB"
        )
        then = (old or {"contestants": {}})["contestants"].get(name)
        if old is not None and then is not None:
            speed, use, memory = (
                now[key] / then[key] - 1
                for key in ("tokens_per_second", "mfu", "peak_memory_bytes")
            )
            said.append(
                f"{work}: {name} since {old['date'][:10]}: tokens/s {speed:+.0%}, MFU {use:+.0%}, "
                f"memory {memory:+.0%}"
            )
    said += targets(one)
    times = one["ours_is_times_as_fast_as"]
    return said + [f"{work}: {ratio:.2f}x {name}" for name, ratio in times.items()]


def targets(one: Record) -> list[str]:
    """Return whether the fastest of our settings reaches what is to be reached at full size."""
    work, contestants = one["work"], one["contestants"]
    ours = {name: found for name, found in contestants.items() if name.startswith(OURS)}
    if one["scale"] != "full" or not ours:
        return []
    name = max(ours, key=lambda each: float(ours[each]["tokens_per_second"]))
    said = []
    if work in MFU_TARGETS:
        reached, wanted = ours[name]["mfu"], MFU_TARGETS[work]
        said.append(f"{work}: {_word(reached >= wanted)} {wanted:.0%} MFU: {name} {reached:.1%}")
    times = ratios(contestants, name).get(DEFAULT)
    if work in TIMES_TARGETS and times is not None:
        wanted = TIMES_TARGETS[work]
        found = f"{name} {times:.2f}"
        said.append(f"{work}: {_word(times >= wanted)} {wanted:g} times {DEFAULT}: {found}")
    return said


def _word(reached: bool) -> str:
    return "reaches" if reached else "misses"


def table(records: Sequence[Record]) -> str:
    """Return all works with what was measured of them, or that nothing was yet."""
    rows = [
        "| work | on | contestant | rounds | tokens/s | seconds a step | MFU | with attention "
        "| peak memory | ours is |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, work in SCALES["full"].items():
        found = [one for one in records if one["work"] == name]
        if not found:
            rows.append(f"| {work.title} | - | - | - | {NOT_MEASURED} | | | | | |")
        for one in found:
            rows += [_row(one, contestant) for contestant in one["contestants"]]
            rows += [
                f"| {one['title']} | {one['device']} | {contestant} | - | {why} | | | | | |"
                for contestant, why in one["left_out"].items()
            ]
    return "\n".join(rows)


def _row(one: Record, contestant: str) -> str:
    found = one["contestants"][contestant]
    times = one["ours_is_times_as_fast_as"].get(contestant)
    step = f"{found['seconds_per_step']:.2f}"
    if "sampling_seconds_per_step" in found:
        step += f", {found['sampling_seconds_per_step']:.2f} of them sampling"
    return (
        f"| {one['title']} | {one['device']} | {contestant} | {found['rounds']} "
        f"| {found['tokens_per_second']:,.0f} | {step} | {found['mfu']:.2f} "
        f"| {found['mfu_with_attention']:.2f} | {found['peak_memory_bytes'] / GIB:.1f} GiB "
        f"| {f'{times:.2f} times as fast' if times else '-'} |"
    )
