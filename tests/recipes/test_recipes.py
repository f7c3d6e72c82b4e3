"""Every notebook executed end to end on the cpu profile, and what it learned.

Margin: half of the smallest improvement among the seeds recorded under `results/recipes`. The runs
land in `runs/`, where the executed notebooks can be read.
"""

import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbmake.nb_run import NotebookRun

from cookbook.commands import record, run
from cookbook.profiles import choose_profile, compute_dtype
from cookbook.report import run_folder
from tests import times
from tests.hub.notebooks import deprecations, printed

pytestmark = pytest.mark.recipes

TIMEOUT = 1200  # seconds per cell; a whole cpu recipe takes a few minutes
FORGETTING = 0.5  # nats that general text may become less likely, see each README
QWEN3 = "04-Reasoning-Tuning/Qwen3-Reasoning-Conversational"
# What a recipe exists to beat: counting pairs of tokens, and copying a document's first sentence.
MUST_BEAT = {
    "01-Full-Fine-Tuning/GPT-2-From-Scratch": {"held_out_loss": "bigram"},
    "03-Instruction-Tuning/Summarization-FLAN-T5": {
        f"rouge{kind}_{way}": "lead" for kind in "1L" for way in ("full", "lora")
    },
    "03-Instruction-Tuning/Financial-Sentiment-OPT": {"macro_f1": "few_shot"},
    "04-Reasoning-Tuning/Financial-Reasoning-Gemma-3": {
        f"exact_match_unseen_{kind}": "three_shot" for kind in ("numbers", "template")
    },
    "06-Preference-Tuning/Reward-Model-and-Best-of-N": {"pair_accuracy": "longer"},
    QWEN3: {"exact_match_thinking": "three_shot", "chat_loss": "own_template"},
}
# What has to improve on an earlier stage of the same run as well: GRPO on its warm-up.
# And DPO and KTO on their fine-tuning.
MUST_ADD = {
    "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO": {"exact_match_sampled": "warm_up"},
    "06-Preference-Tuning/DPO-Preference-Tuning": {
        name: "sft" for name in ("exact_match_sampled", "exact_match", "pair_accuracy")
    },
    # Its greedy answers gained by 0.02 to 0.19, less than the width of an interval.
    "06-Preference-Tuning/KTO-Thumbs-Up-Down": {
        name: "sft" for name in ("exact_match_sampled", "thumb_auc")
    },
    # What one answer of the same policy is worth.
    "06-Preference-Tuning/Reward-Model-and-Best-of-N": {
        name: "sft" for name in ("exact_match_best_of_4", "exact_match_voted")
    },
}
# What an untrained model reaches by chance, whatever the layer that was drawn for it happens to do:
# three seeds' gave 0.53, 0.55 and 0.66.
CHANCE = {"06-Preference-Tuning/Reward-Model-and-Best-of-N": {"pair_accuracy": 0.5}}
# Shares that an untrained model reaches too (it has no thoughts), and that must be there after.
MUST_KEEP = {QWEN3: {"adherence_direct": 0.9}}
NOTEBOOKS = record.notebooks()


def since(run: record.Run, metric: str, kind: str, name: str) -> dict[str, Any]:
    """A run's metric with the value of a stage or baseline in place of that before training."""
    (one,) = (one for one in run["metrics"] if one["name"] == metric)
    moved: dict[str, Any] = one | {"before": one[kind][name]}
    return moved


def from_chance(run: record.Run) -> record.Run:
    """A run with what chance gives as its metrics before training, where they are in CHANCE."""
    chances = CHANCE.get(run["recipe"], {})
    metrics = [one | {"before": chances.get(one["name"], one["before"])} for one in run["metrics"]]
    return run | {"metrics": metrics}


def marked(path: Path) -> object:
    """The notebook, held by the record of its recipe."""
    recipe = run.recipe_of(path)
    return pytest.param(path, id=recipe, marks=pytest.mark.held(recipe))


@pytest.mark.parametrize("path", [marked(one) for one in NOTEBOOKS])
def test_the_notebook_runs_and_learns(
    path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    record_property("recipe", run.recipe_of(path))
    for name in ("MODEL", "DATASET", "MAX_STEPS", "SEED", "PRECISION"):
        monkeypatch.delenv(f"COOKBOOK_{name}", raising=False)
    if until := os.environ.get("COOKBOOK_RECIPES_UNTIL"):
        expected = times.expected_seconds(
            record.recorded_runs(run.recipe_of(path)), compute_dtype()
        )
        if time.time() + expected > float(until):
            pytest.skip("no time is left for it; see COOKBOOK_RECIPES_UNTIL in .ci/run")
    monkeypatch.setenv("COOKBOOK_PROFILE", "cpu")
    table = run.parameters(nbformat.read(path, as_version=4))["SETTINGS"]
    folder = run_folder(run.recipe_of(path), choose_profile(table))

    result = NotebookRun(path, TIMEOUT).execute()
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(result.nb, folder / path.name)
    assert result.error is None, f"{result.error.summary}\n{result.error.trace}"
    assert not deprecations(result.nb)
    assert "Failed to load" not in printed(result.nb)  # what a reader would take for an error

    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    scores = [
        f"{one['name']} {one['before']:.3f} -> {one['after']:.3f}" for one in content["metrics"]
    ]
    record_property("scores", ", ".join(scores))
    recorded = [one for one in record.recorded_runs(content["recipe"]) if one["profile"] == "cpu"]
    kept = MUST_KEEP.get(content["recipe"], {})
    for one in from_chance(content)["metrics"]:
        if one["name"] in kept:
            assert one["after"] >= kept[one["name"]], one
            continue
        margin = record.learning_margin([*map(from_chance, recorded)], one["name"])
        assert margin > 0, f"{one['name']}: a recorded seed got worse"
        assert record.improvement(one) >= margin, f"{one['name']}: less than {margin:.3f} better"
    for metric, baseline in MUST_BEAT.get(content["recipe"], {}).items():
        ahead = record.improvement(since(content, metric, "baselines", baseline))
        assert ahead > 0, f"{metric} is {-ahead:.3f} behind the baseline {baseline}"
    for metric, stage in MUST_ADD.get(content["recipe"], {}).items():
        earlier = [{"metrics": [since(run, metric, "stages", stage)]} for run in recorded]
        margin = record.learning_margin(earlier, metric)
        assert margin > 0, f"{metric}: with a recorded seed the stage {stage} was better"
        added = record.improvement(since(content, metric, "stages", stage))
        assert added >= margin, f"{metric}: {added:.3f} better than after {stage}, not {margin:.3f}"
    forgotten = content["forgetting"]["after"] - content["forgetting"]["before"]
    if forgotten > 0.1:
        warnings.warn(f"general text became {forgotten:.2f} nats less likely", stacklevel=1)
    assert forgotten < FORGETTING
    assert content["train"]["peak_memory_bytes"] < 8 * 2**30
