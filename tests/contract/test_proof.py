"""A change makes exactly those records stale whose runs depend on it."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch

from cookbook.commands import proof, record
from cookbook.commands.run import recipe_of
from cookbook.profiles import ROOT
from tests import proofs, times

pytestmark = pytest.mark.contract

RECIPES = proofs.RECIPES
GRPO = "04-Reasoning-Tuning/Math-Reasoning-Qwen-GRPO"
FALCON = "02-PEFT/Falcon-7B-LoRA"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what digests are made of."""
    for path in record.notebooks():
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    shutil.copytree(ROOT / "cookbook", tmp_path / "cookbook")
    shutil.copy(ROOT / "poetry.lock", tmp_path)
    return tmp_path


@cache
def present(recipe: str) -> dict[str, Any]:
    """The digests of the repository itself."""
    return proof.digests(recipe)


def changed(tree: Path) -> dict[str, list[str]]:
    """Return recipe -> what differs in the copy, of the recipes where something does."""
    found = {
        recipe: proof.changes(present(recipe), proof.digests(recipe, tree)) for recipe in RECIPES
    }
    return {recipe: names for recipe, names in found.items() if names}


def replace(path: Path, old: str, new: str) -> None:
    """Change a file in one place."""
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path.name} has no {old!r} any more: change this test with it"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def edit(path: Path, old: str, new: str) -> None:
    """Change a notebook's first cell that has a text."""
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if old in cell.source)
    cell.source = cell.source.replace(old, new, 1)
    nbformat.write(notebook, path)


def test_a_copy_is_as_the_original(tree: Path) -> None:
    assert changed(tree) == {}


def test_one_comma_in_a_notebook(tree: Path) -> None:
    edit(tree / f"{FALCON}.ipynb", "choose_profile(SETTINGS)", "choose_profile(SETTINGS,)")
    assert changed(tree) == {FALCON: ["notebook"]}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# Falcon-7B with LoRA", "# Falcon with LoRA"),  # a text cell
        ("  # tokens in prompt and answer together", "  # tokens of both"),
        ("config = choose_profile(SETTINGS)", "config = choose_profile(  SETTINGS )\n"),
    ],
)
def test_what_does_not_run_does_not_count(old: str, new: str, tree: Path) -> None:
    edit(tree / f"{FALCON}.ipynb", old, new)
    assert changed(tree) == {}


def test_what_only_a_gpu_runs_leaves_a_processor_s_record_current(tree: Path) -> None:
    """Runs of the GPU profiles against the Hub and in a rehearsal are made again all the same."""
    edit(tree / f"{FALCON}.ipynb", "512,    1024)", "512,    1000)")
    assert changed(tree) == {}
    whole = (proof.digests(FALCON, root, gpu=True) for root in (ROOT, tree))
    assert proof.changes(*whole) == ["notebook"]
    edit(tree / f"{FALCON}.ipynb", "(192,    512", "(190,    512")
    assert changed(tree) == {FALCON: ["notebook"]}


def test_a_docstring_and_a_comment_of_the_package_do_not_count(tree: Path) -> None:
    path = tree / "cookbook" / "training.py"
    replace(path, '"""Cast the trainable', '"""Now cast the trainable')
    replace(path, "# Samplers draw an", "# Sampling: they draw an")
    assert changed(tree) == {}


def test_a_function_that_one_recipe_uses(tree: Path) -> None:
    path = tree / "cookbook" / "planner.py"
    replace(path, "def answer_shapes(", "def answer_shapes( *,")
    assert changed(tree) == {GRPO: ["cookbook.planner.answer_shapes"]}


def calling(name: str) -> list[str]:
    """Return the recipes whose notebook calls a function."""
    texts = {one: (ROOT / f"{one}.ipynb").read_text(encoding="utf-8") for one in RECIPES}
    users = [one for one, text in texts.items() if f"{name}(" in text]
    assert 0 < len(users) < len(RECIPES)
    return users


def test_a_function_that_others_use_inside(tree: Path) -> None:
    """`experts.lora_targets` is called by the recipes with adapters."""
    path = tree / "cookbook" / "experts.py"
    replace(path, "def lora_targets(", "def lora_targets( *,")
    users = calling("lora_targets")
    assert changed(tree) == dict.fromkeys(users, ["cookbook.experts.lora_targets"])


def test_a_part_that_is_used_through_others(tree: Path) -> None:
    """No notebook names it, and every one of them prints the table."""
    replace(tree / "cookbook" / "report.py", 'f"{value:.3f} [', 'f"{value:.4f} [')
    assert set(changed(tree)) == set(RECIPES)


def test_an_import_under_the_same_name(tree: Path) -> None:
    path = tree / "cookbook" / "groups.py"
    text = path.read_text(encoding="utf-8")
    first = next(line for line in text.splitlines() if line.startswith("from collections.abc"))
    path.write_text(text.replace(first, first.replace("collections.abc", "typing")))
    assert set(changed(tree)) == {*calling("cpu.share_prompts")}


def test_how_a_product_is_built(tree: Path) -> None:
    replace(tree / "cookbook" / "offline" / "builders.py", "def shakespeare(", "def shakespeare(*,")
    gpt2 = "01-Full-Fine-Tuning/GPT-2-From-Scratch"
    assert changed(tree) == {gpt2: ["products.shakespeare"]}


def test_a_package_of_one_group(tree: Path) -> None:
    path = tree / "poetry.lock"
    before, name, after = path.read_text(encoding="utf-8").partition(
        'name = "deeplake"\nversion = "'
    )
    assert name
    path.write_text(before + name + "0" + after, encoding="utf-8")
    full = [one for one in RECIPES if one.startswith("01-")]
    assert changed(tree) == dict.fromkeys(full, ["packages"])


def test_every_part_that_a_notebook_names_is_found() -> None:
    """Against a plain search, which knows nothing of what uses what."""
    for path in record.notebooks():
        code = proof.notebook_code(nbformat.read(path, as_version=4))
        used = proof.digests(recipe_of(path), gpu=True)["cookbook"]
        modules = "chat data evaluation experts forms memory models planner report saving training"
        for module in modules.split():
            for name in re.findall(rf"(?<![\w.]){module}\.(\w+)", code):
                part = getattr(importlib.import_module(f"cookbook.{module}"), name, None)
                if getattr(part, "__module__", None) == f"cookbook.{module}":
                    assert f"{module}.{name}" in used, path


def test_what_own_data_go_through_makes_no_record_stale() -> None:
    """Yet everything is part of what runs with own data depend on."""
    recipe = RECIPES[0]
    recorded = proof.digests(recipe)["cookbook"]
    whole = proof.digests(recipe, gpu=True)["cookbook"]
    for module, name in proof.GIVEN:
        place = f"{module.removeprefix('cookbook.')}.{name}"
        assert name in proof.package()._modules[module].defined, place
        assert place not in recorded
    assert "data._given_splits" in whole and "models._given_model" in whole
    assert "data.load_splits" in recorded and "models.resolve_model" in recorded


def test_the_areas_know_their_files() -> None:
    """A pattern that matches nothing would hold a proof for ever."""
    for area in proofs.AREAS.values():
        assert len(area.inputs()) >= 3
        assert all(area.inputs().values())


def test_groups_depend_on_what_notebooks_and_the_package_import(tree: Path) -> None:
    before = proofs.imports(tree)
    assert before == proofs.imports()
    replace(tree / "cookbook" / "serving" / "server.py", "import uvicorn", "import another")
    after = proofs.imports(tree)
    edit(tree / f"{FALCON}.ipynb", "import torch", "import another as one")
    assert len({before, after, proofs.imports(tree)}) == 3


def test_runs_against_the_hub_depend_on_one_recipe_and_on_the_hub() -> None:
    inputs = proofs.AREAS[proofs.against_the_hub(FALCON)].inputs()
    assert inputs[FALCON] == proof.digests(FALCON, gpu=True)
    assert set(RECIPES).intersection(inputs) == {FALCON}
    assert {"tests/hub/server.py", "tests/hub/test_notebooks.py", "packages"} <= set(inputs)


def test_an_area_has_a_name_and_several_have_one_in_common() -> None:
    assert proofs.named("kills") == ["kills"]
    assert proofs.named("hub") == [proofs.against_the_hub(one) for one in RECIPES]
    assert proofs.named("hub/05-Export-and-Serving") == [proofs.against_the_hub(proofs.EXPORT)]
    assert proofs.named("kill") == ["kill"], "which is none, and said to be"
    assert proofs.main(["is-current", "hub", "kill"]) == 2


def test_another_recipe_is_checked_after_each_commit() -> None:
    """Over as many commits as there are recipes, each comes once where all are current."""
    turns = {proofs.in_turn(count, lambda _: True) for count in range(len(proofs.IN_TURN))}
    assert turns == set(proofs.IN_TURN)
    assert proofs.in_turn(3, lambda recipe: recipe == FALCON) == FALCON
    assert proofs.in_turn(3, lambda _: False) is None


def test_how_long_a_recipe_takes_is_known_before_it_is_begun() -> None:
    half: list[record.Run] = [
        {"notebook_seconds": seconds, "hardware": {"precision": "bfloat16"}} for seconds in (90, 80)
    ]
    half.append({"hardware": {"precision": "float32"}})  # an old one
    assert times.expected_seconds(half, torch.bfloat16) == 90
    assert times.expected_seconds(half, torch.float32) == 540
    whole: record.Run = {"notebook_seconds": 300, "hardware": {"precision": "float32"}}
    assert times.expected_seconds([*half, whole], torch.float32) == 300
    for recipe in proofs.RECIPES:
        assert times.expected_seconds(record.recorded_runs(recipe), torch.float32) > 60


def test_the_imports_of_the_quickstart_are_what_is_timed() -> None:
    imports = times.imports_of(times.QUICKSTART).splitlines()
    assert "import torch" in imports
    assert "from trl import SFTConfig, SFTTrainer" in imports
    assert times.seconds_of("print('some library speaks')\ntime.sleep(0.3)") >= 0.3


@pytest.mark.parametrize("path", sorted(times.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_the_recorded_gate_keeps_its_times(path: Path) -> None:
    """Recorded with nothing stale; calculated for twice the recipes and the slowest spot check.

    `make test` keeps its 15 minutes with units for bfloat16; without, the spot check alone may take
    20. Imports are compared with torch's own, since machines differ: five times as long is what the
    libraries take together; one more heavy one would be seen.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    tests, held = content["tests"], content["recipes"]
    other = sum(content["phases"].values()) - sum(part["seconds"] for part in tests.values())
    assert other + times.at_worst(tests, 2 * held, content["precision"], held) <= 40 * 60
    assert times.at_worst(tests, 2 * held, "bfloat16", held) <= 15 * 60
    imports = content["imports_seconds"]
    assert imports["torch"] < imports["quickstart"] <= 6 * imports["torch"]


def test_more_recipes_take_longer_in_what_is_there_for_each() -> None:
    tests = {
        "small": {
            "seconds": 400,
            "files": {"tests/hub/test_mistakes.py": 300.0, "tests/unit/test_data.py": 300.0},
        },
        "large": {"seconds": 200, "files": {}},
    }
    assert times.with_recipes(tests, recipes=16, held=8) == 400 * 1.5 + 200


def test_the_slowest_spot_check_stands_for_the_one_that_was_executed() -> None:
    def tests(recipe: int, hub: int) -> dict[str, Any]:
        files = {times.AGAINST_THE_HUB: hub, "tests/unit/test_data.py": 800}
        return {
            "small": {"seconds": 400 + hub / 2, "files": files},
            "large": {"seconds": 10 + recipe, "files": {"tests/recipes/test_recipes.py": recipe}},
        }

    short, long = (
        times.at_worst(tests(*spot), 16, "bfloat16", held=8) for spot in ((150, 60), (900, 200))
    )
    assert short == pytest.approx(long)
    assert short > 410 + 4 * 60, "a recipe takes minutes"


def test_what_was_not_recorded_yet_stops_no_calculation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is the last line of the gate, also where a recipe is new or was run here alone."""
    tests = {
        one: {"seconds": 100, "files": {"tests/unit/test_data.py": 1}} for one in ("small", "large")
    }
    run: record.Run = {"notebook_seconds": 300, "hardware": {"precision": "float32"}}
    monkeypatch.setattr(proofs, "path_of", lambda _: Path("nowhere"))
    monkeypatch.setattr(record, "recorded_runs", lambda recipe: [run] * (recipe == FALCON))
    assert times.at_worst(tests, times.RECIPES, "bfloat16") == 100 + 100 + 300
