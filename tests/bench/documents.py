"""Writes what was measured into the pages here and into the notebooks' "Why it is fast".

A generated table of a page stands between `<!-- generated: bench/NAME -->` and `<!-- end
generated -->`. In a notebook `<!-- measured: WORK -->` stands above a table whose rows begin with a
setting's name and end with its gain and its memory; only these two are rewritten.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from cookbook.commands.record import filled
from cookbook.profiles import ROOT
from tests.bench import gpu_records, results, scaling
from tests.bench.results import Record
from tests.bench.works import WITHOUT

SPEED = ROOT / "tests" / "bench" / "README.md"
PAGES = (SPEED, SPEED.with_name("SCALING.md"))
PROFILES = ROOT / "results" / "profiles"
SHOWN_OPERATIONS = 10
MEASURED = re.compile(r"<!-- measured: (\S+) -->\n(?:.+\n?)+")
ROW = re.compile(r"^(\| `([a-z0-9_]+)\b.*\| )[^|\n]* \| [^|\n]*( \|)$", re.MULTILINE)
# The benchmark's name of each setting that a notebook explains.
CHOICE_OF = {
    "use_supervised_positions_loss": "supervised-loss",
    "keep_freed_memory": "kept-memory",
    "attn_implementation": "plain-attention",
    "train_sampling_strategy": "like-lengths",
    "disable_input_dtype_casting": "lean-casts",
    "dtype": "half-base",
    "activation_checkpointing": "kept-activations",
    "read_prompts_once": "shared-prompts",
    "precompute_ref_log_probs": "reference-in-step",
    "attn_pdrop": "no-dropout",
}


def gain(work: str, setting: str, records: Sequence[Record]) -> str:
    """Return what a setting is worth, from the newest record of a work, as two cells of a table.

    They are how many times as fast training is with it, and by how much that changes peak memory.
    Where some rounds were faster with the setting and some without, that is said.
    Raises KeyError where the setting was never taken away in that work.
    """
    newest = max((one for one in records if one["work"] == work), key=lambda one: one["date"])
    name = WITHOUT + CHOICE_OF[setting]
    ours, without = (
        newest["contestants"][one]["peak_memory_bytes"] for one in (results.BASELINE, name)
    )
    memory = round(ours / without - 1, 2) + 0.0  # never "-0%"
    times = f"{newest['ours_is_times_as_fast_as'][name]:.2f}"
    ratios = results.ratios_of_rounds(newest["contestants"], name)
    if min(ratios) <= 1 <= max(ratios):
        times = f"no gain seen ({times})"
    return f"{times} | {memory:+.0%}"


def with_gains(text: str, records: Sequence[Record]) -> str:
    """Return a Markdown text with the gains of its measured tables filled in."""

    def table(found: re.Match[str]) -> str:
        return ROW.sub(lambda row: f"{row[1]}{gain(found[1], row[2], records)}{row[3]}", found[0])

    return MEASURED.sub(table, text)


def profile_table() -> str:
    """Return the seconds of a step by operation, defaults beside ours."""
    rows = [
        "| work | on | operation | defaults, seconds | calls | ours, seconds | calls |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in sorted(PROFILES.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        where = f"| {content['title']} | {content['device']} "
        found = {
            name: {one["name"]: one for one in profile["operations"]}
            for name, profile in content["profiles"].items()
        }
        whole = {name: profile["seconds"] for name, profile in content["profiles"].items()}
        rows.append(
            f"{where}| the whole step | {whole['defaults']:.2f} | | {whole['ours']:.2f} | |"
        )
        for name, one in list(found["defaults"].items())[:SHOWN_OPERATIONS]:
            same = found["ours"].get(name)
            ours = f"{same['seconds']:.2f} | {same['calls']}" if same else "less than listed |"
            rows.append(f"{where}| `{name}` | {one['seconds']:.2f} | {one['calls']} | {ours} |")
    return "\n".join(rows)


def with_tables(text: str, records: Sequence[Record]) -> str:
    """Return a Markdown text with its generated tables filled in."""
    made: dict[str, Callable[[Sequence[Record]], str]] = {
        "bench/contestants": results.table,
        "bench/choices": results.gains_table,
        "bench/growth": results.growth_table,
        "bench/gpu": lambda _: gpu_records.table(gpu_records.latest()),
        "bench/profile": lambda _: profile_table(),
        "bench/scaling": lambda _: scaling.table(),
    }
    return filled(text, lambda name: made[name](records) if name in made else None)


def with_markdown(notebook: str, change: Callable[[str], str]) -> str:
    """Return the text of a notebook file with each of its Markdown cells changed."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = change("".join(cell["source"])).splitlines(keepends=True)
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def rewritten(notebook: str, records: Sequence[Record]) -> str:
    """Return the text of a notebook file with the gains in its Markdown cells filled in."""
    return with_markdown(notebook, lambda text: with_gains(text, records))


def rewrite(records: Sequence[Record], notebooks: Sequence[Path]) -> None:
    """Rewrite the pages and the notebooks."""
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        path.write_text(with_tables(text, records), encoding="utf-8")
    for path in notebooks:
        text = path.read_text(encoding="utf-8")
        path.write_text(rewritten(text, records), encoding="utf-8")
