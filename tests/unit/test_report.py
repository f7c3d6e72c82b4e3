"""`metrics.json`, its table and its pictures."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cookbook import report
from cookbook.evaluation import score

pytestmark = pytest.mark.unit

BEFORE, AFTER = score([3.0, 3.2]), score([2.0, 2.2])


def _trainer(step: int = 4) -> Any:
    history = [{"step": n, "loss": 4.0 - n} for n in range(1, step + 1)]
    history.append({"step": step, "train_runtime": 10.0})
    state = SimpleNamespace(
        global_step=step, max_steps=step, num_input_tokens_seen=800, log_history=history
    )
    return SimpleNamespace(state=state)


def _write(
    folder: Path,
    model: str = "offline:m",
    resumed: str | None = None,
    metrics: int = 1,
    comparison: dict[str, dict[str, float]] | None = None,
) -> dict[str, Any]:
    config = SimpleNamespace(profile="cpu", seed=1, own=False, model=model, dataset="offline:d")
    entry = report.metric(
        "loss", BEFORE, AFTER, higher_is_better=False, baselines={"three_shot": 2.5}
    )
    return report.write_metrics(
        folder,
        "02-PEFT/X",
        config,
        _trainer(),
        [entry] * metrics,
        (BEFORE, AFTER),
        resumed,
        comparison,
    )


def test_metrics_json_has_the_agreed_fields(tmp_path: Path) -> None:
    content = _write(tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["seed"] == 1
    assert {"recipe", "profile", "seed", "model", "dataset", "metrics", "forgetting"} < set(content)
    assert content["metrics"][0]["before"] == pytest.approx(3.1)
    assert content["train"]["tokens_per_second"] == pytest.approx(80)
    assert content["train"]["peak_memory_bytes"] > 2**20
    assert content["versions"]["torch"]


def test_tokens_before_an_interruption_are_not_counted_as_speed(tmp_path: Path) -> None:
    assert _write(tmp_path, resumed="runs/02-PEFT/X/checkpoint-2")["train"][
        "tokens_per_second"
    ] == pytest.approx(40)


def test_compared_ways_are_kept_and_the_largest_peak_counts(tmp_path: Path) -> None:
    ways = {
        "full": {"seconds": 9.0, "peak_memory_bytes": float(2**50)},
        "lora": {"seconds": 3.0, "peak_memory_bytes": 1.0},
    }
    _write(tmp_path, comparison=ways)
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert content["comparison"] == ways
    assert content["train"]["peak_memory_bytes"] == 2**50
    # The process's own peak may be the largest, when what follows the training needs more.
    own = _write(tmp_path, comparison={"lora": ways["lora"]})["train"]["peak_memory_bytes"]
    assert 2**20 < own < 2**50
    assert "comparison" not in _write(tmp_path)


def test_no_path_of_the_machine_is_recorded(tmp_path: Path) -> None:
    assert _write(tmp_path, model=str(tmp_path / "my-model"))["model"] == "my-model"


def test_different_examples_before_and_after_are_refused() -> None:
    with pytest.raises(ValueError, match="2 examples before, 1 after"):
        report.metric("loss", BEFORE, score([1.0]), higher_is_better=False)


def test_the_table_shows_before_after_and_baseline(tmp_path: Path) -> None:
    table = report.before_after_table(_write(tmp_path))
    for text in ("3.100 [", "2.100 [", "baseline three_shot", "2.500", "4 steps, 800 tokens"):
        assert text in table


def test_several_trainers_share_the_axes_by_name(tmp_path: Path) -> None:
    names = ["full", "lora", "prompt"]
    figure = report.plot_training({name: _trainer() for name in names}, tmp_path)
    (axis,) = figure.axes
    # For each its values and their moving mean, in a colour of its own.
    assert len(axis.lines) == 6
    assert len({line.get_color() for line in axis.lines}) == 3
    legend = axis.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == names
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "training.png").unlink()
    (alone,) = report.plot_training(_trainer(), tmp_path).axes
    assert len(alone.lines) == 2 and alone.get_legend() is None
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("metrics", "places"), [(1, 2), (3, 4), (4, 2 * 4), (8, 3 * 4)])
def test_more_than_four_panels_take_another_line(tmp_path: Path, metrics: int, places: int) -> None:
    figure = report.plot_before_after(_write(tmp_path, metrics=metrics), tmp_path)
    assert len(figure.axes) == places
    shown = [axis for axis in figure.axes if axis.axison]
    assert len(shown) == metrics + 1  # and the forgetting check
    assert all(len(axis.patches) == 2 and axis.get_title() for axis in shown)
    assert (tmp_path / "before_after.png").read_bytes().startswith(b"\x89PNG")


def test_side_by_side_escapes_html() -> None:
    table = report.SideBySide(before=["<b>"], after=["x"])
    assert "&lt;b&gt;" in table._repr_html_()
    assert "after: x" in str(table)


def test_runs_can_go_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COOKBOOK_RUNS", str(tmp_path))
    own = SimpleNamespace(profile="gpu16", own=True)
    assert report.run_folder("02-PEFT/X", own) == tmp_path / "02-PEFT/X/gpu16-own"


def test_stages_and_baselines_are_what_a_metric_is_compared_with() -> None:
    one = {"stages": {"warm_up": 0.3}, "baselines": {"three_shot": 0.1}}
    assert report.others(one) == [("stage", "warm_up", 0.3), ("baseline", "three_shot", 0.1)]
    assert report.others({"name": "general_text_loss"}) == []
