"""`make sweep`: what is asked for, the copies that are executed, the table, and what goes wrong."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
import torch

from cookbook.commands import record, run, sweep
from cookbook.profiles import CookbookError
from tests.unit.test_record import RUN

pytestmark = pytest.mark.unit

CONFIG = SimpleNamespace(
    learning_rate=1e-3,
    lora_r=16,
    packing=False,
    loss_type="ipo",
    model="m",
    profile="cpu",
    own=False,
)


def test_values_take_the_type_that_the_setting_has() -> None:
    found = sweep.asked("learning_rate=1e-4,1 lora_r=4,8 packing=True loss_type=hinge", CONFIG)
    assert len(found) == 4
    assert found[0] == {
        "learning_rate": 1e-4,
        "lora_r": 4,
        "packing": True,
        "loss_type": "hinge",
    }
    assert found[-1]["learning_rate"] == 1.0 and isinstance(found[-1]["learning_rate"], float)
    assert sweep.asked("lora_r=4,4,", CONFIG) == [{"lora_r": 4}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Name settings and their values"),
        ("learning_rate", "names no values"),
        ("learning_rate=", "names no values"),
        ("lerning_rate=1", "Is learning_rate meant"),
        ("lora_r=1e-3", "which is int"),
        ("lora_r=True", "which is int"),
        ("lora_r=many", "'many' is none"),
        ("packing=1", "which is bool"),
        ("lora_r=4 lora_r=8", "named twice"),
        ("model=a,b", "COOKBOOK_MODEL"),
        ("profile=cpu", "There is no setting profile"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(CookbookError, match=said):
        sweep.asked(text, CONFIG)


@pytest.mark.parametrize("path", record.notebooks(), ids=lambda path: path.stem)
def test_every_notebook_becomes_a_trial(path: Path) -> None:
    """Its settings are set for all profiles; other rows are loaded; it ends with its metrics."""
    notebook = nbformat.read(path, as_version=4)
    before = run.parameters(notebook)
    sweep.trial_notebook(notebook, {"max_steps": 3})
    nbformat.validate(notebook)
    assert run.parameters(notebook) == before, "the table itself stays, to be read"
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    names: dict[str, Any] = {}
    exec(cells[0], names)
    assert names["SETTINGS"]["max_steps"] == (3, 3, 3)
    loads = next(n for n, code in enumerate(cells) if "load_splits(" in code or "load_conv" in code)
    assert cells.index(sweep.APART) < loads
    assert "write_metrics(" in cells[-1] and sum("write_metrics(" in code for code in cells) == 1


def trials(*after: float) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Trials of rates whose losses are these, each with an interval of 0.1 to both sides."""
    found: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
    for place, value in enumerate(after):
        content = copy.deepcopy(RUN)
        content["metrics"][0] |= {"after": value}
        content["metrics"][0]["ci95"]["after"] = [value - 0.1, value + 0.1]
        found.append(({"learning_rate": 10.0 ** (place - 4)}, content))
    return found


def test_the_table_names_the_best_and_those_that_are_not_told_apart() -> None:
    found = trials(2.0, 1.45, 1.5, 3.0)
    assert sweep.best(found) == (
        "Best loss: learning_rate 0.001 (1.450). Not told apart from it by their intervals: "
        "learning_rate 0.01."
    )
    lines = sweep.table([*found, ({"learning_rate": 5.0}, None)]).splitlines()
    assert lines[0].split("|")[1:3] == [" learning_rate ", " loss                 "]
    assert "1.450 [1.350, 1.550]" in lines[3] and lines[-1].count("failed") == 3
    assert len({len(line) for line in lines}) == 1


def test_higher_is_better_where_it_is() -> None:
    found = trials(0.2, 0.9, 0.3)
    for _, content in found:
        assert content
        content["metrics"][0]["higher_is_better"] = True
    assert sweep.best(found) == "Best loss: learning_rate 0.001 (0.900)."


@pytest.mark.parametrize("settings", [{"learning_rate": 1e-3}, {"a": "x", "b": 2}])
def test_a_plot_is_drawn_of_numbers_and_of_others(settings: dict[str, Any], tmp_path: Path) -> None:
    found = [(settings | {next(iter(settings)): value}, RUN) for value in (1e-4, 1e-3)]
    sweep.plot([*found, (settings, None)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


SETTINGS = """RECIPE = "02-PEFT/X"
SETTINGS = {
    "model": ("m", "m", "m"),
    "dataset": ("offline:two-digit-sums", "x", "x"),
    "max_steps": (1, 1, 1),
    "size": (4, 4, 4),
}"""
SCORES = """import json, os, pathlib
from cookbook import data
rows = data.load_splits("offline:two-digit-sums")
size = SETTINGS["size"][0]
assert size < 9, "too large"
folder = pathlib.Path(os.environ["COOKBOOK_RUNS"], RECIPE, "cpu")
folder.mkdir(parents=True, exist_ok=True)
(folder / "weights.safetensors").write_bytes(b"large")
content["metrics"][0] |= {"after": float(size), "examples": len(rows["test"])}
content |= {"hardware": {"device": "x"}, "model": "m", "recipe": RECIPE}
content["train"]["tokens"] = 1
content["gpu"] = os.environ.get("CUDA_VISIBLE_DEVICES")
(folder / "metrics.json").write_text(json.dumps(content))  # as report.write_metrics() does"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebook whose first metric is its setting, without any training."""
    monkeypatch.setenv("COOKBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COOKBOOK_PROFILE", "cpu")
    for name in ("MODEL", "DATASET", "MAX_STEPS", "SEED"):
        monkeypatch.delenv(f"COOKBOOK_{name}", raising=False)
    cells = [
        nbformat.v4.new_code_cell(SETTINGS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_markdown_cell("## Data Loading"),
        nbformat.v4.new_code_cell(f"content = {RUN!r}\n{SCORES}"),
        nbformat.v4.new_code_cell("raise SystemExit('after the metrics nothing is run')"),
    ]
    path = tmp_path / "02-PEFT" / "X.ipynb"
    path.parent.mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_a_sweep_is_run_kept_and_not_run_again(
    made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main([str(made), "size=2,3"]) == 0
    said = capfd.readouterr().out
    assert "Best loss: size 2 (2.000)" in said and said.count("== size") == 2
    folder = made.parents[1] / "runs" / "sweeps" / "02-PEFT" / "X" / "cpu"
    page = (folder / "size.md").read_text(encoding="utf-8")
    assert "Best loss: size 2" in page and (folder / "size.png").is_file()
    assert not list(folder.rglob("*.safetensors")), "weights of trials fill the disk"
    (content,) = [json.loads(one.read_text()) for one in folder.glob("size=2*/metrics.json")]
    assert 150 < content["metrics"][0]["examples"] <= 200, "of the 2,000 training rows, no test row"
    assert sweep.main([str(made), "size=2,3,4"]) == 0
    assert capfd.readouterr().out.count("== size") == 1, "only what is new"


def test_several_gpus_have_a_trial_each(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert sweep.main([str(made), "size=2,3"]) == 0
    folder = made.parents[1] / "runs" / "sweeps" / "02-PEFT" / "X" / "cpu"
    found = [json.loads(path.read_text()) for path in folder.glob("size=*/metrics.json")]
    assert sorted({one["gpu"] for one in found}) == ["0", "1"]


def test_a_trial_that_fails_is_named_and_the_others_are_kept(
    made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main([str(made), "size=2,50"]) == 1
    said = capfd.readouterr()
    assert "Best loss: size 2 (2.000)" in said.out
    assert "failed: size 50; see " in said.err and "too large" in said.err


def test_data_that_are_streamed_are_refused(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = made.read_text(encoding="utf-8")
    made.write_text(text.replace('data.load_splits(\\"offline:two-digit-sums\\")', "{'test': []}"))
    assert sweep.main([str(made), "size=2,3"]) == 2
    assert "streams the data" in capfd.readouterr().err


def test_mistakes_end_with_a_sentence(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main([str(made)]) == 2
    assert "CookbookError: Name settings and their values" in capsys.readouterr().err
