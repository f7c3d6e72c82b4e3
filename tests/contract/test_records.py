"""The recorded runs keep what is promised of every run: its plan, its memory, its minutes.

And they are what was measured: a record that was edited, or whose digests belong to code that was
never run, is found out.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from cookbook.commands import proof, record, run
from cookbook.memory import GIB
from cookbook.profiles import ROOT
from tests import proofs
from tests.contract.lock_rules import read_lock
from tests.contract.repository import FOLDER_GROUPS
from tests.gpu import check
from tests.hub.notebooks import DISTRIBUTED, settings_of

pytestmark = pytest.mark.contract

RECIPES = [run.recipe_of(path) for path in record.notebooks()]
# Two short trainings, and then what llama.cpp does: its minutes are bounded apart.
EXPORT = proofs.EXPORT
COMPARED = check.COMPARED
# The sums below were set for eight recipes; each one of a later technique has a bound of its own.
LATER = [one for one in RECIPES if one.startswith("06-") or one == COMPARED]
TRAINING = [one for one in RECIPES if one not in (EXPORT, *LATER)]
GRPO = "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO"
EPYC, XEON = "AMD EPYC", "Intel Xeon"  # with units for bfloat16; the second has AMX besides
# A plan is of computing. This training of twelve steps writes four checkpoints of 1.6 GB, each file
# of which is synchronized, and sends a gigabyte from process to process in each step.
_COMPUTING = pytest.mark.xfail(strict=True, reason="checkpoints and traffic are not planned")
# 0.79: the one recipe whose memory is planned below what it took by more than a fifth.
_LITTLE = pytest.mark.xfail(strict=True, reason="a plan 0.01 below the bound")
# Two layers are timed and the others added to them, so what disturbs those seconds counts many
# times: seed 1's plan was 63 s for 49. The other seeds' are within 0.08.
_DISTURBED = pytest.mark.xfail(strict=True, reason="planned on a busy machine")
_OFF = {
    ("06-Preference-Tuning/Reward-Model-and-Best-of-N", "seconds", EPYC): _DISTURBED,
    (COMPARED, "seconds", EPYC): _DISTURBED,  # seed 0: 19 s for 15
    (DISTRIBUTED, "seconds", XEON): _COMPUTING,
    ("04-Reasoning-Tuning/Qwen3-Reasoning-Conversational", "peak_memory_bytes", XEON): _LITTLE,
}


def planned_runs(recipe: str) -> list[record.Run]:
    """Return a recipe's runs since there is a planner."""
    found = [one for one in record.recorded_runs(recipe) if "planned" in one]
    assert {one["seed"] for one in found} >= {0, 1, 2}, "run: make record"
    return found


def minutes(recipe: str, device: str | None = None) -> float:
    """Return the whole notebook's mean time on a device, or on that where it took longest: where
    none is named, and where it was not recorded on the one that is.
    """
    by_hardware: dict[str, list[float]] = defaultdict(list)
    for one in planned_runs(recipe):
        if one["profile"] == "cpu" and one["hardware"]["precision"] == "bfloat16":
            by_hardware[one["hardware"]["device"]].append(one["notebook_seconds"] / 60)
    if device in by_hardware:
        return fmean(by_hardware[device])
    return max(map(fmean, by_hardware.values()))


def plans() -> list[Any]:
    """Return (recipe, what, device) of all plans; what is known to be off is marked."""
    found = []
    for recipe in RECIPES:
        devices = {one["hardware"]["device"] for one in planned_runs(recipe)}
        for what, device in product(("seconds", "peak_memory_bytes"), sorted(devices)):
            marks = [mark] if (mark := _OFF.get((recipe, what, device))) else []
            found.append(pytest.param(recipe, what, device, marks=marks))
    return found


@pytest.mark.parametrize(("recipe", "what", "device"), plans())
def test_a_plan_comes_true(recipe: str, what: str, device: str) -> None:
    """Within a fifth in bfloat16, for which both were recorded; elsewhere only safe for memory."""
    for one in planned_runs(recipe):
        if one["hardware"]["device"] != device:
            continue
        planned, measured = (one["planned"][what][end] for end in ("planned", "measured"))
        if one["hardware"]["precision"] == "bfloat16":
            assert planned == pytest.approx(measured, rel=0.2), one["seed"]
        elif what == "peak_memory_bytes":
            assert 0.8 < planned / measured < 1.5, one["seed"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_cpu_run_needs_less_than_8_gib(recipe: str) -> None:
    for one in record.recorded_runs(recipe):
        if one["profile"] == "cpu":
            assert one["train"]["peak_memory_bytes"] < 8 * GIB


@pytest.mark.parametrize("device", [EPYC, XEON])
def test_the_recipes_of_one_process_take_less_than_25_minutes(device: str) -> None:
    """Where a CPU has units for bfloat16, as in CI; without them it takes twice as long."""
    assert sum(minutes(recipe, device) for recipe in TRAINING if recipe != DISTRIBUTED) < 25


@pytest.mark.parametrize(
    ("device", "most"),
    [
        (EPYC, 29),
        pytest.param(
            EPYC, 25, marks=pytest.mark.xfail(strict=True, reason="the distributed recipe")
        ),
        # Machines by this name differ: 35 minutes were recorded on one, of what another does in 22.
        (XEON, 29),
    ],
)
def test_all_recipes_together(device: str, most: float) -> None:
    """The aim is 25, set before there was a recipe that trains twice; see ARCHITECTURE.md."""
    assert sum(minutes(one, device) for one in TRAINING) < most


def test_the_distributed_recipe_takes_less_than_4_minutes() -> None:
    assert minutes(DISTRIBUTED) < 4


def test_exporting_and_serving_takes_less_than_8_minutes() -> None:
    """The aim is 5: it writes, checks and serves seven files, each in processes of their own."""
    assert minutes(EXPORT) < 8


@pytest.mark.parametrize("recipe", LATER)
def test_a_later_recipe_takes_less_than_5_minutes(recipe: str) -> None:
    assert minutes(recipe) < 5


def test_grpo_takes_less_than_6_minutes() -> None:
    assert minutes(GRPO) < 6


def records() -> list[Path]:
    """Return the records of runs and of tests that passed."""
    return sorted([*record.RESULTS.rglob("*-seed*.json"), *proofs.RESULTS.rglob("proof-*.json")])


def faults(content: dict[str, Any]) -> list[str]:
    """Return what shows that a record is not as it was written."""
    found = []
    if content.get("seal") != proof.seal_of(content):
        found.append("it was edited: its seal is another")
    if "recipe" in content and content.get("digests") == proof.digests(content["recipe"]):
        locked = {one["name"]: one["version"] for one in read_lock(ROOT / "poetry.lock")}
        versions = {name: one for name, one in content["versions"].items() if name in locked}
        wrong = [name for name, one in versions.items() if one != locked[name]]
        found += [f"it never ran with its digests: {name}" for name in wrong]
        table = settings_of(ROOT / f"{content['recipe']}.ipynb", content["profile"])
        told = ("model", "dataset")
        found += [f"it never ran with its digests: {k}" for k in told if content[k] != table[k]]
        if table["max_steps"] not in (content["train"]["steps"], -1):
            found.append("it never ran with its digests: steps")
    return found


@pytest.mark.parametrize("path", records(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_record_is_as_it_was_written(path: Path) -> None:
    found = faults(json.loads(path.read_text(encoding="utf-8")))
    assert found == [], "run: make record (or .venv/bin/python -m tests.proofs record)"


def a_record() -> dict[str, Any]:
    """Return a record of what the repository holds today, as `make record` would write it."""
    content = copy.deepcopy(record.recorded_runs(RECIPES[0])[0])
    content["digests"] = proof.digests(RECIPES[0])
    assert faults(sealed := proof.sealed(content)) == []
    return sealed


def test_every_group_has_its_size_on_record() -> None:
    sizes = json.loads((ROOT / "results" / "install" / "groups.json").read_text("utf-8"))
    how = "run: COOKBOOK_RECORD=1 .venv/bin/python -m tests.proofs record groups"
    assert set(sizes["groups"]) == set(FOLDER_GROUPS.values()), how


def test_an_edited_record_is_found_out() -> None:
    content = a_record()
    content["metrics"][0]["after"] -= 0.001
    assert faults(content) == ["it was edited: its seal is another"]


def test_digests_copied_into_an_older_record_are_found_out() -> None:
    content = a_record()
    content["digests"]["notebook"] = "of a notebook that was changed since"
    copied = proof.sealed(content) | {"digests": proof.digests(RECIPES[0])}
    assert faults(copied) == ["it was edited: its seal is another"]


@pytest.mark.parametrize("what", ["torch", "model", "steps"])
def test_digests_of_what_never_ran_are_found_out(what: str) -> None:
    """Sealed anew: the packages and settings that the run tells of are others."""
    content = a_record()
    if what == "torch":
        content["versions"]["torch"] = "2.14.0"
    elif what == "model":
        content["model"] = "offline:another"
    else:
        content["train"]["steps"] += 1
    assert faults(proof.sealed(content)) == [f"it never ran with its digests: {what}"]
