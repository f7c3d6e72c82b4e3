"""Compare DPO's losses: the same start, pairs and budget, in one table with intervals.

python -m tests.losses                  what is missing of seeds 0, 1 and 2
python -m tests.losses --seeds 0        of these
python -m tests.losses --tables         only write the table into the folder's README

The cells of the DPO notebook make the start and the pairs, once for each seed. From there every
loss trains with the cells' own trainer, and is scored on the notebook's test problems, each
answered several times. What was measured of this code is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import nbformat

from cookbook.commands.proof import code_digest
from cookbook.profiles import ROOT, compute_dtype, device_name

NOTEBOOK = ROOT / "06-Preference-Tuning" / "DPO-Preference-Tuning.ipynb"
RESULTS = ROOT / "results" / "losses"
README = NOTEBOOK.parent / "README.md"
SEEDS = (0, 1, 2)
SAMPLES = 4  # answers to a test problem
# TRL's names, each with the `beta` that makes about the same of one nat: the first is the recipe's.
# Where differences are means over tokens, of which an answer has five or six, one of the whole
# answer counts a fifth. IPO wants a difference of 1 / (2 beta) a token, here one nat.
LOSSES = {
    "sigmoid": 1.0,
    "hinge": 1.0,
    "ipo": 0.5,
    "sigmoid_norm": 5.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
}
BEFORE = "before"  # after fine-tuning, where all begin
MARKED = re.compile(r"(<!-- losses: measured -->\n).*?(<!-- end losses -->)", re.DOTALL)

Content = dict[str, Any]
Names = dict[str, Any]


class Cells:
    """The notebook's code, executed cell by cell in one namespace."""

    def __init__(self) -> None:
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        self.code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        self.names: Names = {"__name__": "losses"}

    def place(self, text: str) -> int:
        """Return the number of the cell that begins with a text. Raises LookupError."""
        found = [n for n, one in enumerate(self.code) if one.startswith(text)]
        if len(found) != 1:
            raise LookupError(f"{len(found)} cells of {NOTEBOOK.name} begin with {text!r}")
        return found[0]

    def run(self, first: int, last: int) -> None:
        """Execute the cells `first` to `last`, without the last."""
        for code in self.code[first:last]:
            exec(compile(code, NOTEBOOK.name, "exec"), self.names)


@contextmanager
def _as_the_notebook_runs(seed: int) -> Iterator[Path]:
    """Be in the notebook's folder, with a seed and a temporary folder for runs."""
    names = {"COOKBOOK_PROFILE": "cpu", "COOKBOOK_SEED": str(seed), "MPLBACKEND": "agg"}
    before, here = dict(os.environ), Path.cwd()
    with tempfile.TemporaryDirectory() as runs:
        os.environ.update(names, COOKBOOK_RUNS=runs)
        os.chdir(NOTEBOOK.parent)
        try:
            yield Path(runs)
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(before)


def _scores(names: Names) -> Content:
    """Return what the model that stands in the cells' names is worth now, problem by problem."""
    asker, model = names["asker"], names["model"]
    test, held_out = names["test"], names["held_out"]
    size = names["config"].per_device_eval_batch_size
    rows = [test[n] for n in range(len(test))]
    several = asker.several(test, SAMPLES)
    log_probs = names["pairs"].log_probabilities(model, held_out, size)
    away = (log_probs - names["log_probs_sft"]).mean(0).tolist()
    likeliest = asker._answers(test, sampled=False, batch_size=size)
    return {
        "sampled": [
            fmean(asker.values(texts, [row] * SAMPLES)) for texts, row in zip(several, rows)
        ],
        "greedy": asker.values(likeliest, rows),
        "pairs": [(float((a - b).sign()) + 1) / 2 for a, b in log_probs],
        "away": {"chosen": away[0], "rejected": away[1]},
    }


def measured(seed: int, wanted: Sequence[str]) -> Iterator[tuple[str, Content]]:
    """Yield each loss with what it came to, the start first."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    cells = Cells()
    with _as_the_notebook_runs(seed) as runs:
        trains = cells.place("trainer = DPOTrainer(")
        cells.run(0, trains)
        names = cells.names
        model = names["model"]
        start = {name: one.clone() for name, one in get_peft_model_state_dict(model).items()}
        if BEFORE in wanted:
            yield BEFORE, _scores(names)
        ends = cells.place("keys = (")
        for loss in (one for one in LOSSES if one in wanted):
            names["config"].loss_type, names["config"].beta = loss, LOSSES[loss]
            names["of_dpo"]["output_dir"] = str(runs / loss)
            names["set_seed"](seed)
            begin = time.monotonic()
            cells.run(trains, ends)
            seconds = time.monotonic() - begin
            yield loss, _scores(names) | {"seconds": seconds}
            set_peft_model_state_dict(model, start)
            model.delete_adapter("ref")


def measure(seeds: Sequence[int]) -> None:
    """Measure what is missing, and keep it after each loss."""
    device, precision = device_name(), str(compute_dtype()).removeprefix("torch.")
    path = RESULTS / f"{device.lower().replace(' ', '-')}-{precision}.json"
    of = {
        "notebook": code_digest(nbformat.read(NOTEBOOK, as_version=4)),
        "device": device,
        "precision": precision,
    }
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if {name: kept.get(name) for name in of} != of:
        kept = of | {"betas": LOSSES, "samples": SAMPLES, "found": {}}
    for seed in seeds:
        found = kept["found"].setdefault(str(seed), {})
        wanted = [one for one in (BEFORE, *LOSSES) if one not in found]
        if not wanted:
            continue
        for loss, scores in measured(seed, wanted):
            found[loss] = scores
            kept["date"] = datetime.now(UTC).date().isoformat()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            print(f"measured {loss}, seed {seed}: {fmean(scores['sampled']):.3f}", flush=True)


def difference(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> str:
    """Return by how much the mean of `one` is over that of `other`, with its 95 % interval.

    Both are of the same problems, seed by seed: the bootstrap draws problems of each seed, and
    compares them with themselves (10,000 draws).
    """
    gaps = [[a - b for a, b in zip(mine, theirs)] for mine, theirs in zip(one, other)]
    generator = random.Random(0)
    draws = sorted(
        fmean(fmean(generator.choices(own, k=len(own))) for own in gaps) for _ in range(10_000)
    )
    low, high = draws[250], draws[-251]
    return f"{fmean(map(fmean, gaps)):+.3f} [{low:+.3f}, {high:+.3f}]"


def table(content: Mapping[str, Any]) -> str:
    """Return the losses of one machine as a Markdown table."""
    found, seeds = content["found"], sorted(content["found"])
    lines = [
        f"| {content['device']}, {content['precision']}, seeds {', '.join(seeds)} | `beta` | exact "
        "match, sampled | over `sigmoid` [95 %] | greedy | held-out pairs | nats, chosen | nats, "
        "rejected |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    first = next(iter(LOSSES))

    def every(loss: str, kind: str) -> list[list[float]]:
        return [found[seed][loss][kind] for seed in seeds]

    for loss in (BEFORE, *content["betas"]):
        means = [f"{fmean(map(fmean, every(loss, one))):.3f}" for one in ("sampled", "greedy")]
        means.append(f"{fmean(map(fmean, every(loss, 'pairs'))):.3f}")
        away = [
            f"{fmean(found[seed][loss]['away'][one] for seed in seeds):+.2f}"
            for one in ("chosen", "rejected")
        ]
        gap = "" if loss == first else difference(every(loss, "sampled"), every(first, "sampled"))
        name = "fine-tuning alone" if loss == BEFORE else f"`{loss}`"
        beta = "" if loss == BEFORE else f"{content['betas'][loss]:g}"
        lines.append(f"| {name} | {beta} | {means[0]} | {gap} | {' | '.join(means[1:] + away)} |")
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """Return a Markdown text with the table of losses filled in."""
    contents = [json.loads(one.read_text(encoding="utf-8")) for one in sorted(RESULTS.glob("*"))]
    made = "\n\n".join(map(table, contents))
    return MARKED.sub(lambda found: f"{found[1]}{made}\n{found[2]}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--tables", action="store_true", help="only rewrite the table")
    options = parser.parse_args(arguments)
    if not options.tables:
        measure(options.seeds)
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
