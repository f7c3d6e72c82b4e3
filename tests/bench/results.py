"""What a benchmark leaves behind: medians of interleaved rounds, a history, a table, a plot."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from cookbook.commands.record import in_file_names
from cookbook.profiles import ROOT, device_name
from tests.bench.works import LENGTHS, WITHOUT, WORKS, Work
from tests.gpu.process import run_logged

RESULTS = ROOT / "results" / "bench"
GIB = 2**30
BASELINE = "ours"
ON_A_GPU = "gpu-"  # begins the names of the works of `tests.bench.gpu_works`
FEWEST_ROUNDS = 5  # of a record
MOST_OTHER_TOKENS = 0.05  # templates end a turn with or without a line feed, and cut differently
MOST_OTHER_LOSS = 0.1
# Operations that a weight needs for a token, a multiplication and an addition: forward, for the
# gradient of its inputs, and for its own gradient, which a frozen weight needs none of.
FORWARD, OF_INPUTS, OF_WEIGHTS = 2, 2, 2
TRAINED = FORWARD + OF_INPUTS + OF_WEIGHTS
FROZEN = FORWARD + OF_INPUTS
ADAPTED = ("lora", "qlora")
# Weights of tables that are looked up and multiplied with nothing: GPT-2's positions, 128 x 128.
# The other models' tables are their output layers too.
LOOKED_UP = {"pretrain": 128 * 128}
# GRPO and DPO that read each prompt for every answer, as the count below assumes.
READS_PROMPTS_EACH_TIME = ("defaults", f"{WITHOUT}shared-prompts")

Run = dict[str, Any]
Record = dict[str, Any]


class CouldNotRun(Exception):
    """A contestant ended without a result; the message is the last thing it said."""


def last_line(log: Path) -> str:
    """Return the last thing a log says, on one line and without this machine's folders."""
    said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    last = next((line for line in reversed(said) if line), "it said nothing")
    return last.replace(f"{ROOT}/", "").replace(str(Path.home()), "~")[:300]


def measured(
    command: Sequence[str], environment: dict[str, str], log: Path, result: Path, seconds: float
) -> Run:
    """Run a contestant, and return what it wrote to `result`. Raises CouldNotRun."""
    result.unlink(missing_ok=True)
    status, _ = run_logged(command, environment, log, seconds, show=False)
    if status is None:
        raise CouldNotRun(f"took longer than {seconds:.0f} s")
    if not result.is_file():
        raise CouldNotRun(last_line(log))
    found: Run = json.loads(result.read_text(encoding="utf-8"))
    return found


def rate(run: Run, warm_up: int) -> float:
    """Return real tokens a second over the timed steps of a run."""
    return float(sum(run["tokens"][warm_up:]) / sum(run["seconds"][warm_up:]))


def operations_per_token(work: str, contestant: str, found: dict[str, Any]) -> float | None:
    """Return the operations that the work needs for a real token, or None where none can tell.

    Each weight is counted at each token, the output layer too. What is computed twice, as under
    activation checkpointing, is counted once. Attention between tokens is not counted. GRPO
    samples, reads the reference (its `beta` is above 0) and trains; DPO does the last two, from a
    reference without the adapter. Their records do not tell prompts from answers, so nothing can be
    said where a prompt is read once for several. Nor does a record tell the tokens of an encoder
    from those of its decoder, each with weights of its own.
    """
    kind, trained = WORKS[work].kind, found["trainable_parameters"]
    multiplied = found["parameters"] - LOOKED_UP.get(kind, 0)
    if kind in ADAPTED:
        return float(FROZEN * multiplied + TRAINED * trained)
    if kind == "grpo" and contestant in READS_PROMPTS_EACH_TIME:
        passes = FORWARD + FORWARD + FROZEN
        return float(passes * multiplied + (FORWARD + TRAINED) * trained)
    if kind == "dpo" and contestant in READS_PROMPTS_EACH_TIME:
        return float((FORWARD + FROZEN) * multiplied + TRAINED * trained)
    if kind in ("full", "pretrain"):
        return float(TRAINED * multiplied)
    return None


def tokens_per_operation(found: dict[str, Any]) -> float:
    """Return tokens a second over the operations a second of a matrix product, the rounds' median.

    Older records hold it as `mfu`, times 6 and the number of weights.
    """
    if "tokens_per_operation" in found:
        return float(found["tokens_per_operation"])
    return float(found["mfu"] / (6 * found["parameters"]))


def mfu(one: Record, contestant: str) -> float | None:
    """Return the share of a matrix product's rate that a contestant's needed operations reach."""
    found = one["contestants"][contestant]
    needed = operations_per_token(one["work"], contestant, found)
    return None if needed is None else needed * tokens_per_operation(found)


def summary(runs: Sequence[Run], work: Work) -> dict[str, Any]:
    """Return a contestant's medians over its rounds, and each round's own rate."""
    rates = [rate(run, work.warm_up_steps) for run in runs]
    used = [one / run["matmul_flops_per_second"] for run, one in zip(runs, rates)]
    timed = work.timed_steps
    return {
        "rounds": len(runs),
        "tokens_per_second": median(rates),
        "tokens_per_second_of_each_round": rates,
        "steps_per_minute": median(60 * timed / sum(run["seconds"][-timed:]) for run in runs),
        "startup_seconds": median(run["startup_seconds"] for run in runs),
        "first_step_seconds": median(run["seconds"][0] for run in runs),
        "peak_memory_bytes": median(run["peak_memory_bytes"] for run in runs),
        "tokens_per_operation": median(used),
        "matmul_flops_per_second": median(run["matmul_flops_per_second"] for run in runs),
        "trainable_parameters": runs[0]["trainable_parameters"],
        "parameters": runs[0]["parameters"],
        "tokens_of_each_step": runs[0]["tokens"],
        "losses": runs[0]["losses"],
        "rewards": runs[0]["rewards"],
        "versions": runs[0]["versions"],
    }


def ratios_of_rounds(contestants: dict[str, dict[str, Any]], name: str) -> list[float]:
    """Return how many times as fast as another contestant `ours` was, round by round."""
    mine, theirs = (contestants[one]["tokens_per_second_of_each_round"] for one in (BASELINE, name))
    return [ours / other for ours, other in zip(mine, theirs)]


def ratios(contestants: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return how many times as fast as each other contestant `ours` was: the rounds' median."""
    return {
        name: median(ratios_of_rounds(contestants, name))
        for name, one in contestants.items()
        if name != BASELINE and "tokens_per_second" in one
    }


def differences(contestants: dict[str, dict[str, Any]], work: Work) -> list[str]:
    """Return where a contestant's work was another than the default's.

    It has to train the same number of weights on the same tokens. Each shuffles the rows by itself,
    so the loss of the first step is that of other rows. GRPO's tokens are the model's own answers.
    """
    compared = [("trainable weights", "trainable_parameters", 0.0)]
    if work.kind != "grpo":
        contestants = {name: _with_work(one) for name, one in contestants.items()}
        compared += [
            ("tokens", "tokens", MOST_OTHER_TOKENS),
            ("loss of the first step", "first_loss", MOST_OTHER_LOSS),
        ]
    like = contestants.get("defaults") or contestants[BASELINE]
    return [
        f"{name}: {what} {one[key]:,.6g} instead of {like[key]:,.6g}"
        for name, one in contestants.items()
        for what, key, most in compared
        if abs(one[key] / like[key] - 1) > most
    ]


def _with_work(one: dict[str, Any]) -> dict[str, Any]:
    """Return a contestant with the tokens of its run and its first loss as plain numbers."""
    return one | {"tokens": sum(one["tokens_of_each_step"]), "first_loss": one["losses"][0]}


def record(work: Work, runs: dict[str, list[Run]], failures: dict[str, str]) -> Record:
    """Return what is kept of one work: the contestants, the ratios, and who could not run."""
    contestants = {name: summary(found, work) for name, found in runs.items() if found}
    return {
        "work": work.name,
        "title": work.title,
        "max_length": work.max_length,
        "examples_per_step": work.examples_per_step,
        "timed_steps": work.timed_steps,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(),
        "contestants": contestants,
        "ours_is_times_as_fast_as": ratios(contestants) if BASELINE in contestants else {},
        "other_work": differences(contestants, work) if BASELINE in contestants else [],
        "could_not_run": failures,
    }


def path_of(work: str, device: str, folder: Path = RESULTS) -> Path:
    """Return the file that holds the history of a work on a device."""
    return folder / f"{work}-{in_file_names(device)}.json"


def history(path: Path) -> list[Record]:
    """Return the records of a file, oldest first."""
    if not path.is_file():
        return []
    content: list[Record] = json.loads(path.read_text(encoding="utf-8"))
    return content


def add(new: Record, folder: Path = RESULTS) -> Record | None:
    """Add a record to its history and return the one before it."""
    path = path_of(new["work"], new["device"], folder)
    records = history(path)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps([*records, new], indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return records[-1] if records else None


def lines(new: Record, before: Record | None) -> list[str]:
    """Return what is printed of a record: `<work>: <ratio>x <contestant>`, and what changed."""
    said = [f"{new['work']}: {why}" for why in [*_failures(new), *new["other_work"]]]
    if before is not None:
        said += list(_changes(new, before))
    return said + [
        f"{new['work']}: {ratio:.2f}x {name}"
        for name, ratio in new["ours_is_times_as_fast_as"].items()
    ]


def _failures(new: Record) -> list[str]:
    return [f"{name} could not run: {why}" for name, why in new["could_not_run"].items()]


def _changes(new: Record, before: Record) -> list[str]:
    """Return the changes against the last record; MFU sets off a faster or slower machine.

    A contestant does the same operations in both, so their number cancels out of MFU's change.
    """
    said = []
    for name, now in new["contestants"].items():
        if (then := before["contestants"].get(name)) is None:
            continue
        speed = now["tokens_per_second"] / then["tokens_per_second"] - 1
        use = tokens_per_operation(now) / tokens_per_operation(then) - 1
        memory = now["peak_memory_bytes"] / then["peak_memory_bytes"] - 1
        said.append(
            f"{new['work']}: {name} since {before['date'][:10]}: tokens/s {speed:+.0%}, "
            f"MFU {use:+.0%}, memory {memory:+.0%}"
        )
    return said


def latest(folder: Path = RESULTS) -> list[Record]:
    """Return the newest record of each work and device, in the order of the works.

    Those of a GPU are of works of their own: `gpu_records.latest`.
    """
    paths = (path for path in sorted(folder.glob("*.json")) if not path.name.startswith(ON_A_GPU))
    newest = [history(path)[-1] for path in paths]
    order = list(WORKS)
    return sorted(newest, key=lambda one: (one["device"], order.index(one["work"])))


def table(records: Sequence[Record]) -> str:
    """Return the contestants of all works but the growing ones; what was taken away is not here."""
    rows = [
        "| work | on | contestant | tokens/s | steps/min | MFU | peak memory | start-up "
        "| ours is |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in records:
        names = [name for name in one["contestants"] if not name.startswith(WITHOUT)]
        if one["work"] in _growing() or names == [BASELINE]:
            continue
        for name in names:
            found = one["contestants"][name]
            times = one["ours_is_times_as_fast_as"].get(name)
            used = mfu(one, name)
            rows.append(
                f"| {one['title']} | {one['device']} "
                f"| {' '.join(filter(None, [name, found['versions'].get(name)]))} "
                f"| {found['tokens_per_second']:.0f} "
                f"| {found['steps_per_minute']:.1f} | {'-' if used is None else f'{used:.2f}'} "
                f"| {found['peak_memory_bytes'] / GIB:.1f} GiB "
                f"| {found['startup_seconds']:.0f} s "
                f"| {f'{times:.1f} times as fast' if times else '-'} |"
            )
        rows += [
            f"| {one['title']} | {one['device']} | {name} | could not run: {why} | | | | | |"
            for name, why in one["could_not_run"].items()
        ]
    return "\n".join(rows)


def gains_table(records: Sequence[Record]) -> str:
    """Return what each choice is worth: `ours` beside `ours` without it."""
    rows = [
        "| work | on | choice | times as fast with it | peak memory with it | without it |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in records:
        for name, found in one["contestants"].items():
            if not name.startswith(WITHOUT):
                continue
            chosen = one["contestants"][BASELINE]
            rows.append(
                f"| {one['title']} | {one['device']} | {name.removeprefix(WITHOUT)} "
                f"| {one['ours_is_times_as_fast_as'][name]:.2f} "
                f"| {chosen['peak_memory_bytes'] / GIB:.1f} GiB "
                f"| {found['peak_memory_bytes'] / GIB:.1f} GiB |"
            )
    return "\n".join(rows)


def growth_table(records: Sequence[Record]) -> str:
    """Return tokens a second by the length of the rows."""
    rows = ["| on | contestant | " + " | ".join(f"{length} tokens" for length in LENGTHS) + " |"]
    rows.append("| --- " * (len(LENGTHS) + 2) + "|")
    found = {(one["device"], one["work"]): one for one in records}
    for device in dict.fromkeys(one["device"] for one in records):
        for name in ("ours", "defaults"):
            at = [found.get((device, work), {}).get("contestants", {}) for work in _growing()]
            if not any(name in one for one in at):
                continue
            cells = [f"{one[name]['tokens_per_second']:.0f}" if name in one else "-" for one in at]
            rows.append(f"| {device} | {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _growing() -> list[str]:
    return [f"lora-{length}" for length in LENGTHS]


def plot(records: Sequence[Record], path: Path) -> None:
    """Draw tokens a second of every contestant, one panel for each work."""
    import matplotlib.pyplot as plt

    shown = [one for one in records if one["work"] not in _growing()]
    shown = [one for one in shown if one["work"] != "choices"]
    if not shown:
        return
    figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 3.4), squeeze=False)
    for axis, one in zip(axes.flat, shown):
        found = one["contestants"]
        found = {name: value for name, value in found.items() if not name.startswith(WITHOUT)}
        names = sorted(found, key=lambda name: -found[name]["tokens_per_second"])
        rates = [found[name]["tokens_per_second"] for name in names]
        spread = [found[name]["tokens_per_second_of_each_round"] for name in names]
        errors = [
            [value - min(each) for value, each in zip(rates, spread)],
            [max(each) - value for value, each in zip(rates, spread)],
        ]
        colors = ["#30638e" if name == BASELINE else "#b0b7bf" for name in names]
        axis.bar(names, rates, yerr=errors, capsize=3, color=colors)
        axis.set_title(one["title"], fontsize=9)
        axis.set_ylabel("real tokens a second")
        axis.tick_params(axis="x", labelrotation=45)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
